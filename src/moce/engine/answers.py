"""The file of --json before it is written again: what it holds, so that no answer is replaced without a word.

The same question asked again replaces its answer silently. An answer to another question is replaced too, and named; a
file that holds anything else, or belongs to a run or a study, is refused before the work starts. A question is its
model, task, protocol, seed and shots: other settings replace an answer silently.
"""

from pathlib import Path
from typing import Any

from moce.engine.files import read_json, require_writable, write_json
from moce.engine.progress import say
from moce.errors import UserError

MODEL = ("model", "model_fingerprint")
ASKED = ("verb", "out", "path")  # what tells the question of a verb
MEASURED = ("method", "task", "protocol", "seed", "shots")  # and that of an evaluation, beside its model
TABLE = "table.md"  # of a study, beside its result.json
SHOWN = 2  # answers in a line
# What verbs write as JSON into their --out and folders below, which an answer must not replace.
OF_RUNS = (
    "config.json", "result.json", "clusters.json", "routing.json", "choice.json", "training.json", "wandb.json",
    "prepared.json", "predictions.json",
)  # fmt: skip


def earlier_answers(path: str | Path, out: str | Path | None = None) -> list[dict[str, Any]]:
    """What `path` holds: the answers to one command's questions, none where there is no file or an empty one.

    UserError where it cannot be written, holds something else, or is a file that the command may write at `out`.
    """
    from moce.engine.runs import CONFIG, RESULT  # which imports what imports this

    require_writable(path)
    path = Path(path)
    own = path.name in OF_RUNS or path.suffix != ".json"
    here = path.resolve()
    if out is not None and Path(out).resolve() in ([here, *here.parents] if own else [here]):
        raise UserError(f"--json {path} is what --out {out} is, or may hold; name another file.")
    if not path.exists() or not path.stat().st_size:
        return []
    try:
        content = read_json(path)
    except UserError:
        content = None
    found = content if isinstance(content, list) else [content]
    in_run = path.name == RESULT and any((path.parent / name).is_file() for name in (CONFIG, TABLE))
    if in_run or any("study" in answer for answer in found if isinstance(answer, dict)):
        raise UserError(f"--json {path} belongs to the run or study that it lies in; name another file.")
    if not found or not all(map(is_answer, found)):
        raise UserError(
            f"--json {path} is there and is no result of moce, so it is not replaced; name another file, or remove it."
        )
    return [question(answer) for answer in found]


def is_answer(content: Any) -> bool:
    """Whether this is what a verb returns; a run's config.json, which names its verb too, is none."""
    if not isinstance(content, dict):
        return False
    measured = all(isinstance(content.get(key), str) for key in ("model", "task", "protocol", "method"))
    return measured or (isinstance(content.get("verb"), str) and "options" not in content)


def question(answer: dict[str, Any]) -> dict[str, Any]:
    """What was asked, without the answer."""
    if "protocol" not in answer:
        return {key: answer.get(key) for key in ASKED}
    settings = answer.get("settings")
    shots = settings.get("shots") if isinstance(settings, dict) else None
    return {**{key: answer.get(key) for key in (*MODEL, *MEASURED)}, "shots": shots}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both are one question; a model is the same by its path, trained anew, or by its weights, moved."""
    if "protocol" not in one or "protocol" not in other:
        return one == other
    same_model = any(one[key] == other[key] for key in MODEL)
    return same_model and all(one[key] == other[key] for key in MEASURED)


def described(asked: dict[str, Any]) -> str:
    """A question for people: 'linear of MAE on flowers17'."""
    if "protocol" not in asked:
        of = asked["out"] or asked["path"]
        return f"the result of `moce {asked['verb']}`" + (f" on {of}" if of else "")
    shots = f", {asked['shots']} shots" if asked["shots"] else ""
    seed = f", seed {asked['seed']}" if asked["seed"] else ""
    return f"{asked['protocol']} of {asked['method']} on {asked['task']}{shots}{seed}"


def replace_answers(
    path: str | Path, earlier: list[dict[str, Any]], result: Any, quiet: bool = False
) -> None:
    """Write what a verb returns, and say which of the `earlier` answers it does not contain."""
    write_json(path, result)
    now = [question(answer) for answer in (result if isinstance(result, list) else [result])]
    lost = [described(old) for old in earlier if not any(alike(old, new) for new in now)]
    if lost:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        say(f"{path} is replaced, which held {'; '.join(lost[:SHOWN])}{more}", quiet)
