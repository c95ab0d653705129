"""Run folders: one run each, with its options, its lock and its results.

`result.json` is written last and says that a run is finished; everything else may be half of a run that continues.
"""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from moce import __version__
from moce.engine.boards import Boards
from moce.engine.files import LOCK, drop_leftovers, locked, read_json, require_space, write_json, write_whole
from moce.engine.processes import group
from moce.errors import UserError
from moce.options import changed_method_options

CONFIG, RESULT, METRICS = "config.json", "result.json", "metrics.jsonl"
BYTES = "bytes of the images"  # an input that is compared where both sides know it
LEAST_SPACE = 64 * 2**20  # bytes that a run folder's disk must have free before anything starts


def source_commit() -> str | None:
    """Git commit of the source tree that this program runs from; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """A run folder as it lies on disk."""

    path: Path
    verb: str
    config: dict[str, Any]
    inputs: dict[str, str]
    finished: bool

    def result(self) -> dict[str, Any]:
        """What the finished run returned; UserError when it is not finished."""
        if not self.finished:
            raise UserError(
                f"The run in {self.path} is not finished; run its `moce {self.verb}` command again first."
            )
        return read_json(self.path / RESULT)


def read_run(path: str | Path, verb: str | tuple[str, ...] | None = None) -> RunInfo:
    """The run in a folder; UserError when there is none, or one of another verb."""
    if str(path).startswith(("timm:", "hf:")):
        raise UserError(
            f"{path} is no run folder: `moce pretrain --init {path} --epochs 0` makes one of its weights, untrained."
        )
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no folder {path}.")
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} is not a run folder: it has no {CONFIG}.")
    content = read_json(path / CONFIG)
    content = content.get("moce", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or "verb" not in content or "options" not in content:
        raise UserError(f"{path} is not a run folder of moce: its {CONFIG} is of another kind.")
    verbs = (verb,) if isinstance(verb, str) else verb
    if verbs and content["verb"] not in verbs:
        wanted = " or ".join(f"`moce {one}`" for one in verbs)
        raise UserError(f"{path} holds a run of `moce {content['verb']}`; a run of {wanted} is needed here.")
    return RunInfo(
        path, content["verb"], content["options"], content.get("inputs", {}), (path / RESULT).is_file()
    )


class Run:
    """A run folder that is worked in; use it as a context manager, which holds the lock.

    Of several processes the first one alone holds the lock and writes; what it finds or fails at is known to all.
    """

    def __init__(self, path: Path, verb: str, config: Any, inputs: Mapping[str, str]) -> None:
        self.path, self.verb, self.config, self.inputs = path, verb, config, dict(inputs)
        self.started = time.monotonic()
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._boards = Boards(path, getattr(config, "wandb", None))
        self.once = group().once  # do something in the one process that writes, while the others wait
        self.finished = False  # whether the run was done when it was opened; it is then left alone

    def result(self) -> dict[str, Any]:
        """What the finished run returned."""
        return read_json(self.path / RESULT)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._boards.close(failed=kind is not None)
        for stream in (self._metrics, self._lock):
            if stream is not None:
                stream.close()

    def acquire(self) -> None:
        """Take the folder's lock for this process; it goes with the process, however that ends."""
        self._lock = locked(self.path / LOCK)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run."""
        self.once(lambda: write_json(self.path / name, content))

    def drop(self, name: str) -> None:
        """Delete a file or folder of the run that is not needed any more."""

        def delete() -> None:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

        self.once(delete)

    def metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and draw it."""
        self.once(lambda: self._append(line))

    def _append(self, line: dict[str, Any]) -> None:
        if self._metrics is None:
            self._metrics = open(self.path / METRICS, "a", encoding="utf-8")  # noqa: SIM115
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self._boards.add(line)

    def keep_metrics_before(self, step: int) -> None:
        """Drop lines of steps that a continued run computes again (the process died after its last checkpoint)."""
        self.once(lambda: self._keep_before(step))

    def _keep_before(self, step: int) -> None:
        self._boards.start(after=step)
        path = self.path / METRICS
        if not path.is_file():
            return
        kept = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(text)["step"] <= step:
                    kept.append(text)
            except (ValueError, KeyError):
                continue  # the last line of a killed process may be cut off
        with write_whole(path) as temporary:
            temporary.write_text("".join(text + "\n" for text in kept), encoding="utf-8")

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Mark the run as finished with what it returns: what the process that writes gives."""

        def write() -> dict[str, Any]:
            write_json(self.path / RESULT, result)
            return result

        self.finished = True
        return self.once(write)


def open_run(
    out: str | Path,
    verb: str,
    config: Any,
    inputs: Mapping[str, str] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Run:
    """Create or continue the run folder `out` of a verb, and lock it; by the first of several processes for all.

    With `beside`, config.json belongs to somebody else (timm) and our part goes under its key "moce".

    Raises UserError when the folder holds something else, another process works in it, a method option or an input
    differs from the run that lies there, or the disk is full.
    """
    run = Run(Path(out), verb, config, inputs or {})
    run.finished = run.once(lambda: _open(run, beside))
    return run


def earlier_run(path: Path, verb: str, config: Any, inputs: Mapping[str, str]) -> RunInfo | None:
    """The run in a folder that this one would continue, or replace with --overwrite; nothing is touched.

    Raises UserError when the folder holds something else, or a method option or an input differs from that run's.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; name a folder.")
    own = (LOCK, ".part")  # what a run that was killed right at its start may leave
    foreign = path.is_dir() and [p for p in path.iterdir() if not p.name.endswith(own)]
    if foreign and not (path / CONFIG).is_file():
        raise UserError(f"--out {path} is not empty and holds no run; name an empty or new folder.")
    earlier = read_run(path, verb) if (path / CONFIG).is_file() else None
    if earlier is not None and not config.overwrite:
        changed = changed_method_options(earlier.config, config)
        names = earlier.inputs.keys() | inputs.keys()
        if BYTES not in earlier.inputs.keys() & inputs.keys():
            names -= {BYTES}
        changed += [f"not the same {n}" for n in sorted(names) if earlier.inputs.get(n) != inputs.get(n)]
        if changed:
            raise UserError(
                f"{path} holds a run with other options: {'; '.join(changed)}; "
                "repeat the earlier options, choose another --out, or give --overwrite."
            )
    return earlier


def _open(run: Run, beside: Mapping[str, Any] | None) -> bool:
    """Make the folder of a run ready for this process; whether the run is finished."""
    path, verb, config, inputs = run.path, run.verb, run.config, run.inputs
    earlier = earlier_run(path, verb, config, inputs)
    try:
        path.mkdir(parents=True, exist_ok=True)
        run.acquire()
    except OSError as error:
        raise UserError(f"Cannot write to --out {path}: {error.strerror}; choose another place.") from None
    drop_leftovers(path)
    require_space(path, LEAST_SPACE)
    if earlier is not None and config.overwrite:
        # Last of all the config, without which the folder would be nobody's if this were interrupted.
        items = [item for item in path.iterdir() if item.name != LOCK]
        for item in sorted(items, key=lambda item: (item.name == CONFIG, item.name != RESULT)):
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    if earlier is None or config.overwrite:
        described = describe(verb, config, inputs)
        write_json(path / CONFIG, {**beside, "moce": described} if beside is not None else described)
    elif BYTES in earlier.inputs and BYTES not in inputs and not earlier.finished:
        _forget_bytes(path)
    return (path / RESULT).is_file()


def _forget_bytes(path: Path) -> None:
    """A run goes on with pictures whose bytes nobody looked at: of which it is made is not known any more."""
    content = read_json(path / CONFIG)
    del content.get("moce", content)["inputs"][BYTES]
    write_json(path / CONFIG, content)


def describe(verb: str, config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The content of config.json: every resolved option, versions, commit."""
    import torch

    return {
        "verb": verb,
        "options": dataclasses.asdict(config),
        "inputs": dict(inputs),
        "versions": {"moce": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "host": {
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
