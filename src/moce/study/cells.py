"""The cells of a study: one JSON of `moce evaluate` each, with what it was made from.

    OUT/cells/ARM/TASK-PROTOCOL-seedK.json    evaluate's schema; `method` is the arm's name; and `study`: {arm, run (the
                                              fingerprint of the run that was measured), method, options, training
                                              (verbs and options of the runs that led to it), pictures, seconds, cost,
                                              clusters (what those mean that the run read)}

A cell is written whole and measured once. It is taken as it is while the run that it measured, the options that it was
measured with and the task's pictures are those of the study; else it is stale, which is said, and measured again.
What does not lie here any more of the run and of what led to it is compared with what the cell keeps (lineage.py). A
cell of an older version does not say of which pictures and training it is, and counts. A cell carries what its run
cost, so that cells alone, copied together from several machines, make up a study.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moce.config import EvaluateConfig
from moce.engine.files import held, read_json, write_json
from moce.engine.runs import RESULT, read_run
from moce.errors import Busy, UserError
from moce.study.lineage import all_here, identity, other_training, reads_clusters, stage_is_done
from moce.study.plan import CLASSIFYING, Cell, Plan, Stage
from moce.study.selection import read_selection, selection_file, vote
from moce.study.table import is_evaluation
from moce.verbs import resolve

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Waits:
    """A cell that cannot be measured before another one is there."""

    cell: Cell


def cost_of(stage: Stage, dense: Sequence[Stage] = ()) -> dict[str, Any]:
    """Seconds of a run, of the clusters that it reads and of the model before; sizes and FLOPs of a forward pass.

    `dense` are the models that the arms begin with: their training is `dense_seconds`, and nothing comes after.
    What nobody knows, as of weights from elsewhere, is not in it or None.
    """
    path = Path(stage.path) / RESULT
    if not path.is_file():
        return {}
    result = read_json(path)
    names = ("parameters", "active_parameters", "flops_per_image", "images")
    known = {name: result[name] for name in names if result.get(name) is not None}
    known.setdefault("active_parameters", known.get("parameters"))
    own, verb = seconds_of(stage.path), result.get("verb")
    if verb == "pretrain" and stage.path in [one.path for one in dense]:
        return {**known, "seconds": 0.0, "cluster_seconds": 0.0, "dense_seconds": own}
    if verb not in ("pretrain", "train-experts"):
        return known
    options = {**read_run(stage.path).config, **{name: one.path for name, one in stage.needs.items()}}
    if verb == "pretrain":
        before = None if options.get("init") else 0.0  # of what it began with nobody knows the cost
        return {**known, "seconds": own, "cluster_seconds": 0.0, "dense_seconds": before}
    return {
        **known,
        "seconds": own,
        "cluster_seconds": seconds_of(options.get("clusters")) if reads_clusters(options) else 0.0,
        "dense_seconds": seconds_of(options.get("mae")),
    }


def seconds_of(folder: str | None) -> float | None:
    """What a finished run took; None where it does not lie there."""
    path = None if folder is None else Path(folder) / RESULT
    seconds = read_json(path).get("seconds") if path is not None and path.is_file() else None
    return sum(seconds.values()) if isinstance(seconds, dict) else seconds


def evaluate_options(plan: Plan, cell: Cell) -> dict[str, Any] | Waits:
    """Options of `moce evaluate` for a cell, or the cell whose choice of a learning rate it waits for."""
    options = dict(plan.evaluate.get(cell.protocol, {}))
    if cell.arm.strategy is not None:
        options["strategy"] = cell.arm.strategy
    if (chooser := plan.chooser(cell)) is not None:
        content = read_cell(plan.out / "cells" / chooser.file)
        if content is None:
            return Waits(chooser)
        options["lrs"] = [content["settings"]["lr"]]
    return options


def read_measured(path: Path) -> Any:
    """The content of a JSON file of a study; UserError, which says how to come by another one, when it is broken."""
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}; delete it, and the same command measures it again."
        ) from None


def read_cell(path: Path) -> dict[str, Any] | None:
    """The content of a cell; None where there is none. UserError for a file that is no cell."""
    if not path.is_file():
        return None
    content = read_measured(path)
    if not is_evaluation(content) or not isinstance(content.get("study"), dict):
        raise UserError(f"{path} is no cell of a study; delete it, and the same command measures it again.")
    return content


def method_options(options: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """Options of `moce evaluate` by a protocol that change the result, as JSON has them."""
    config = resolve(EvaluateConfig, {"model": "x", "task": "x", "protocol": protocol, **options})
    kept = [f for f in options if EvaluateConfig.__dataclass_fields__[f].metadata["role"] == "method"]
    return json.loads(json.dumps({name: getattr(config, name) for name in kept}))


def fingerprints(task: str, data_root: str | None) -> dict[str, str | None]:
    """What tells the pictures of a task's splits from others; empty where they do not lie here."""
    from moce.images.tasks import open_task

    try:
        found = open_task(task, data_root)
    except UserError:
        return {}
    splits = {"train": found.train, "val": found.val, "test": found.test}
    return {name: None if source is None else source.fingerprint() for name, source in splits.items()}


def other_pictures(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How the pictures of a cell differ from those of the study; by their names where one of both has no others."""
    splits = [name for name in SPLITS if name in before and name in now]
    for name in splits or ("task", "data_root"):
        if before.get(name) != now.get(name):
            said = f"{name} was {before.get(name)} and is now {now.get(name)}"
            return f"the {name} pictures of its task are others now" if splits else said
    return None


def selecting(cell: Cell) -> Cell:
    """The cell of the arm that selects the clusters of a cell's run."""
    assert cell.arm.selected_by is not None
    return replace(cell, arm=cell.arm.selected_by)


class Cells:
    """The cells of a plan as they lie on disk."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.folder = plan, plan.out / "cells"
        self._runs: dict[str, str] = {}  # by path; what is not known yet may be any time
        self._pictures: dict[str, dict[str, str | None]] = {}  # by task

    def path(self, cell: Cell) -> Path:
        """Where a cell lies."""
        return self.folder / cell.file

    def stage(self, cell: Cell) -> Stage | None:
        """Whose model is measured; None where the vote that decides it is not counted yet."""
        if cell.arm.selected_by is None:
            return cell.stage
        found = self.selection(cell)
        return None if found is None else cell.arm.trained_on(found["clusters"], cell.seed)

    def chain(self, cell: Cell) -> list[Stage]:
        """What must be made for a cell, in order, as far as it is known: what selects its clusters comes first."""
        stage = self.stage(cell) or selecting(cell).stage
        return list(stage.chain())

    def to_make(self, stage: Stage) -> list[Stage]:
        """What must be there for a stage, in order: all that leads to it.

        The stage alone where it is finished and a cell of it says of what it was made, though that lies here no more.
        """
        chain = list(stage.chain())
        if all_here(stage) or not stage_is_done(stage):
            return chain
        own = (cell for cell in self.plan.cells() if (of := self.stage(cell)) and of.path == stage.path)
        return [stage] if any(self.there(cell) for cell in own) else chain

    def stages(self) -> list[Stage]:
        """Every stage that is known to be needed and that a verb makes, once, in order."""
        chains = [self.chain(cell) for cell in self.plan.cells()]
        return list({s.path: s for chain in chains for s in chain if s.verb is not None}.values())

    def selection(self, cell: Cell) -> dict[str, Any] | None:
        """The clusters of a cell's run; None where nobody voted in the run that is there, with the pictures there."""
        found = read_selection(selection_file(self.plan, cell))
        if found is None:
            return None
        run, train = self.run_of(selecting(cell)), self.pictures(cell).get("train")
        return found if run in (None, found["run"]) and train in (None, found["train"]) else None

    def undecided(self, cells: list[Cell]) -> int:
        """How many runs these cells may need beyond the `stages`, where every vote leads to other clusters."""
        waiting = [cell for cell in cells if self.stage(cell) is None]
        return len({(cell.stage.path, selection_file(self.plan, cell)) for cell in waiting})

    def select(self, cell: Cell, device: str, quiet: bool) -> dict[str, Any]:
        """Let a task's pictures vote in the finished run that selects, and write down what comes of it."""
        by = selecting(cell)
        about = {
            "arm": by.arm.name,
            "run": self.run_of(by),
            "task": cell.task,
            "train": self.pictures(cell).get("train"),
        }
        found = {**about, **vote(self.plan, cell, device, quiet)}
        write_json(selection_file(self.plan, cell), found)
        return found

    def run_of(self, cell: Cell) -> str | None:
        """The run that a cell is of: the one that lies here, else what most cells say that are of the same one."""
        if (stage := self.stage(cell)) is None:
            return None
        if stage.path not in self._runs:
            here = identity(stage)
            cells = [] if here else self._alike(cell, stage)
            said = [content["study"].get("run") for own in cells if (content := self.read(own))]
            if not (here or said):
                return None
            self._runs[stage.path] = here or max(said, key=said.count)
        return self._runs[stage.path]

    def _alike(self, cell: Cell, stage: Stage) -> list[Cell]:
        """The cells of a stage; those of its kind alone are looked at, which are selected or not."""
        selected = cell.arm.selected_by is not None
        kind = [own for own in self.plan.cells() if (own.arm.selected_by is not None) == selected]
        return [own for own in kind if (its := self.stage(own)) is not None and its.path == stage.path]

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What lies in a cell's place."""
        return read_cell(self.path(cell))

    def pictures(self, cell: Cell) -> dict[str, Any]:
        """{task, data_root} as they are spelled, and {train, val, test} of classes of whole pictures that lie here."""
        named = {"task": cell.task, "data_root": self.plan.data_root}
        if cell.protocol not in CLASSIFYING:
            return named
        if cell.task not in self._pictures:
            self._pictures[cell.task] = fingerprints(cell.task, self.plan.data_root)
        return {**named, **self._pictures[cell.task]}

    def made_anew(self, stage: Stage) -> None:
        """A run was finished: look again which one it is."""
        self._runs.pop(stage.path, None)

    def stale(self, cell: Cell, content: dict[str, Any]) -> str | None:
        """Why a cell is not that of the study as it is now; None where it is."""
        if (run := self.run_of(cell)) is None and cell.arm.selected_by is not None:
            return "the votes that say which clusters it is of are of another run or of other pictures"
        if content["study"].get("run") != run:
            return "it measured another run than the one that is there now"
        stage, trained = self.stage(cell), content["study"].get("training")
        if trained and stage and other_training(trained, stage):
            return "it is of a run with other options of training"
        known = content["study"].get("pictures")
        if known and (why := other_pictures(known, self.pictures(cell))):
            return why
        options = evaluate_options(self.plan, cell)
        if isinstance(options, Waits):
            return None  # the learning rate was chosen where that other cell lies
        before, now = content["study"].get("options", {}), method_options(options, cell.protocol)
        if changed := [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]:
            name = changed[0]
            return f"{name} was {before.get(name)} and is now {now.get(name)}"
        return None

    def there(self, cell: Cell) -> dict[str, Any] | None:
        """The content of a cell that is there and not stale."""
        content = self.read(cell)
        return None if content is None or self.stale(cell, content) else content

    @contextmanager
    def claimed(self, cell: Cell) -> Iterator[bool]:
        """Hold a cell while it is measured; False where another process of this machine or share does."""
        path = self.plan.out / ".locks" / "-".join(cell.file.with_suffix(".lock").parts)
        with ExitStack() as stack:
            try:
                stack.enter_context(held(path, wait=False))
            except Busy:
                yield False
                return
            yield True
