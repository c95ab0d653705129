"""Every configuration that was ever tried, one line each: what is reported is then seen beside what was not.

A line is an arm, seed and protocol on a set of tasks, written when all its cells are there; a line whose run, strategy,
protocol, seed, tasks, options of evaluation and pictures are in the file already is not added again.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from moce.config import CONFIGS
from moce.engine.files import locked, sha256_of, write_whole
from moce.engine.runs import CONFIG, RESULT, read_run
from moce.errors import UserError
from moce.study.cells import SPLITS
from moce.study.lineage import leading_to
from moce.study.plan import Arm, Cell, Plan, Stage, corpus, task_name
from moce.study.runner import Progress
from moce.verbs import resolve

COLUMNS = (
    "date", "commit", "study", "corpus", "arm", "options", "strategy", "seed", "protocol", "tasks", "val_score", "test",
    "train_seconds", "fingerprint", "evaluation", "data",
)  # fmt: skip
ALWAYS = ("epochs", "base_lr")  # options whose defaults were others once: they are always written down
KEY = ("fingerprint", "strategy", "protocol", "seed", "tasks", "evaluation", "data")
EARLIER = COLUMNS[: COLUMNS.index("evaluation")]  # of files that an older version began


def lines(plan: Plan, progress: Progress) -> Iterator[dict[str, str]]:
    """The lines of a study: of every arm, seed and protocol whose tasks are all there."""
    names = [task_name(task) for task in plan.tasks]
    for arm in plan.arms:
        for protocol in plan.protocols:
            for seed in plan.seeds_of(arm, protocol):
                own = {
                    r["task"]: r
                    for r in progress.results
                    if (r["method"], r["protocol"], r["seed"]) == (arm.name, protocol, seed)
                }
                if all(name in own for name in names):
                    yield line(plan, arm, [own[name] for name in names], seed)


def line(plan: Plan, arm: Arm, cells: list[dict[str, Any]], seed: int) -> dict[str, str]:
    """One line, from the cells of all tasks."""
    cells = sorted(cells, key=lambda cell: cell["task"])  # the file may name them in any order
    first = cells[0]
    scores = [cell["settings"].get("val_score") for cell in cells]
    known = [score for score in scores if score is not None]
    spent = {cell["study"]["run"]: cell["study"].get("cost", {}).get("seconds") for cell in cells}
    seconds = [own for own in spent.values() if own is not None]
    options = training_options(arm.models[seed], arm.options)
    options |= options_before(arm.models[seed], seed)
    trained_with = arm.models[seed].options.get("seed", seed)
    if trained_with != seed:  # one dense model is that of all seeds
        options["seed"] = trained_with
    if arm.selected_by is not None:
        options["selected_by"] = arm.selected_by.name
    evaluation = first["study"].get("options", {})
    # A learning rate that was chosen elsewhere is each task's own, and no choice of this arm and seed.
    chosen = ("lrs",) if plan.chooser(Cell(arm, first["task"], first["protocol"], seed)) is not None else ()
    values = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": (first.get("commit") or "")[:12],
        "study": plan.kind,
        "corpus": corpus(plan.images),
        "arm": first["study"]["arm"],
        "options": as_json(options),
        "strategy": first["settings"].get("strategy", ""),
        "seed": seed,
        "protocol": first["protocol"],
        "tasks": " ".join(cell["task"] for cell in cells),
        # Fine-tuning with a given learning rate chooses nothing, so it has no score on validation.
        "val_score": f"{sum(known) / len(known):.5f}" if len(known) == len(cells) else "",
        "test": f"{sum(cell['value'] for cell in cells) / len(cells):.5f}",
        "train_seconds": f"{sum(seconds) / len(seconds):.1f}" if seconds else "",
        "fingerprint": runs_of(cells),
        "evaluation": as_json({name: own for name, own in evaluation.items() if name not in chosen}),
        "data": sha256_of(*(as_json(pictures_of(cell)) for cell in cells)),
    }
    return {name: str(value) for name, value in values.items()}


def runs_of(cells: list[dict[str, Any]]) -> str:
    """The run that was measured; where not all tasks have the same one, that of each, in the order of `tasks`."""
    runs = [cell["study"]["run"] for cell in cells]
    return runs[0] if len(set(runs)) == 1 else " ".join(runs)


def as_json(content: Any) -> str:
    """One spelling for equal contents."""
    return json.dumps(content, sort_keys=True)


def options_before(stage: Stage, seed: int) -> dict[str, dict[str, Any]]:
    """Options of the study's own dense model and clusters by verb; their seed where it is not that of the run."""
    found: dict[str, dict[str, Any]] = {}
    for one in list(leading_to(stage))[:-1]:
        if one.verb is None:
            continue
        own = training_options(one, {})
        if (its := one.options.get("seed", seed)) != seed:  # one for all seeds
            own["seed"] = its
        if own:
            found[one.verb] = own
    return found


def training_options(stage: Stage, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run that change its result and are not the defaults, and those of `ALWAYS`.

    Of weights from elsewhere those of the arm.
    """
    if stage.verb is not None:
        verb, options = stage.verb, asdict(resolve(CONFIGS[stage.verb], stage.arguments()))
    elif (Path(stage.path) / CONFIG).is_file() and (Path(stage.path) / RESULT).is_file():
        run = read_run(stage.path)
        verb, options = run.verb, run.config
    else:
        return dict(given)
    own = [
        f for f in fields(CONFIGS[verb]) if f.metadata["role"] == "method" and f.name != "seed"
    ]  # a column
    plain = {f.name: json.loads(json.dumps(f.default)) for f in own}
    now = json.loads(json.dumps({name: options[name] for name in plain if name in options}))
    return {name: value for name, value in now.items() if value != plain[name] or name in ALWAYS}


def pictures_of(cell: dict[str, Any]) -> Any:
    """What tells a cell's pictures from others: their fingerprints, else what a cell has always said of them."""
    said = ("num_train", "num_val", "num_test", "labels")
    own = cell["study"].get("pictures", {})
    known = {name: own[name] for name in SPLITS if name in own}
    return [cell["task"], known or {name: cell.get(name) for name in said}]


def add_to(path: Path, new: list[dict[str, str]]) -> int:
    """Add what is not there yet; how many lines that were. UserError for a file of other columns."""
    with alone(path.with_name(f".{path.name}.lock")):  # two studies may name one file
        return _add(path, new)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of the block, by a lock file that goes with the block.

    Only who holds the file that lies at `path` removes it. Who waited for one that was removed meanwhile holds a file
    without a name, and asks again.
    """
    while True:
        with locked(path, wait=True) as lock:
            if not _lies_at(path, lock):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _lies_at(path: Path, opened: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _add(path: Path, new: list[dict[str, str]]) -> int:
    there = read(path)
    known = {tuple(row[name] for name in KEY) for row in there}
    # Lines of older versions do not say by which evaluation, on which pictures.
    earlier = {tuple(row[name] for name in KEY if name in EARLIER) for row in there if not row["data"]}
    added = []
    for row in new:
        key = tuple(row[name] for name in KEY)
        if key not in known and tuple(row[name] for name in KEY if name in EARLIER) not in earlier:
            known.add(key)
            added.append(row)
    if added or not path.exists():
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*there, *added])
        with write_whole(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    return len(added)


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a file; none where there is no file. UserError for a file of other columns."""
    if not path.exists():
        return []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        header, rows = reader.fieldnames or (), [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}.") from None
    if tuple(header) not in (EARLIER, COLUMNS):
        raise UserError(
            f"{path} has other columns than a list of what was tried; name another file for --tried."
        )
    for line, row in rows:
        if None in row or None in row.values():
            raise UserError(
                f"{path}, line {line}: it has more or fewer columns than the first line; mend or delete it."
            )
    if tuple(header) == EARLIER:
        return [{**dict.fromkeys(COLUMNS, ""), **row} for _, row in rows]
    return [row for _, row in rows]
