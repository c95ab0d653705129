"""Carrying out a plan: train what is not trained, measure every cell that is missing, stop when the budget is used up.

    OUT/evaluations/ARM/TASK-PROTOCOL-seedK/    an evaluation that trains, until it is a cell; interrupted, it goes on

What is there is left alone, so several processes can work on one study in any order: a run that another process trains
is passed over with its cells, a cell that it measures too, and the same command does later what was passed over. What a
verb refuses is passed over as well, and told when the rest is done.
"""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from moce import VERBS
from moce.config import StudyConfig
from moce.engine.files import sha256_of, write_json
from moce.engine.progress import clock, say
from moce.errors import Busy, UserError, counted, require_there
from moce.study.budget import Budget, Spent
from moce.study.cells import (
    Cells,
    Waits,
    cost_of,
    evaluate_options,
    method_options,
    selecting,
)
from moce.study.lineage import all_here, is_finished, require_known, stage_is_done, training_of
from moce.study.meaning import meaning_of
from moce.study.plan import PROBES, Cell, Plan, Stage, task_name
from moce.study.table import percent

FILES = ("folder", "predictions", "pictures")  # what a result says of a folder that is gone once it is a cell


@dataclass
class Progress:
    """What a plan has come to."""

    results: list[dict[str, Any]] = field(default_factory=list)  # the cells that are there
    left: list[Cell] = field(default_factory=list)
    runs_left: list[Stage] = field(default_factory=list)  # that are known
    failed: dict[str, str] = field(default_factory=dict)  # run or cell: what its verb said
    undecided: int = 0  # runs at most that depend on votes which are not counted yet
    seconds: float = 0.0


def carry_out(plan: Plan, config: StudyConfig, started: Callable[[], None]) -> "Worker":
    """Do as much as the budget allows; says first what there is to do.

    `started` is called before anything is written, once it is known that the models and tasks are there, and for some
    cell the pictures, as far as a look at the disk tells.

    Raises UserError for a cell that cannot be read, and for what the verbs refuse.
    """
    budget, cells = Budget(config.budget_minutes), Cells(plan)
    before = look(plan, cells, config.quiet)
    tell(plan, before, len(cells.stages()), config.quiet)
    worker = Worker(plan, cells, config, budget)
    if config.budget_minutes != 0:
        require_pictures(before, cells)
        require_measurable(plan, before.left)
    started()
    worker.require_same()
    try:
        for number, cell in enumerate(before.left, 1):
            worker.measure(cell, f"[{number}/{len(before.left)}]")
    except Spent:
        pass
    return worker


def require_pictures(found: Progress, cells: Cells) -> None:
    """UserError where nothing is there, and nothing can be made for want of the pictures of every cell's runs."""
    lacking: dict[str, UserError] = {}  # by run
    for stage in found.runs_left:
        try:
            require_there(str(stage.options["images"]))
        except UserError as error:
            lacking[stage.path] = error
    needed = (any(stage.path in lacking for stage in cells.chain(cell)) for cell in found.left)
    if lacking and not found.results and all(needed):
        raise next(iter(lacking.values()))


def require_measurable(plan: Plan, left: list[Cell]) -> None:
    """UserError for a model or task that is not there or does not fit, before anything is trained for it."""
    from moce.transfer.encoder import channels_of
    from moce.transfer.evaluate import require_task

    channels = {path: channels_of(path) for path in {c.stage.path for c in left if c.stage.verb is None}}
    asked = {(cell.task, cell.protocol, channels.get(cell.stage.path, 3)) for cell in left}
    for task, protocol, number in sorted(asked):
        if not plan.evaluate.get(protocol, {}).get("download"):  # else it may come later
            require_task(task, protocol, plan.data_root, number)


def look(plan: Plan, cells: Cells, quiet: bool = True) -> Progress:
    """What is there, and what is not; stale cells are said unless `quiet`."""
    found = Progress()
    for cell in plan.cells():
        if (content := cells.there(cell)) is not None:
            found.results.append({**content, "task": task_name(cell.task)})  # as the study calls it
            continue
        found.left.append(cell)
        if not quiet and cells.path(cell).is_file():
            stale = cells.stale(cell, cells.read(cell) or {})
            say(f"{cells.path(cell)} is stale ({stale}) and is measured again")
    needed = {s.path for cell in found.left for s in cells.to_make(cells.chain(cell)[-1])}
    found.runs_left = [s for s in cells.stages() if s.path in needed and not stage_is_done(s)]
    found.undecided = cells.undecided(found.left)
    return found


def tell(plan: Plan, found: Progress, runs: int, quiet: bool) -> None:
    """What there is to do, for people; `runs` is how many are known, there or not."""
    cells = len(plan.cells())
    of = f"{counted(len(plan.arms), 'arm')}, {counted(len(plan.tasks), 'task')}, {', '.join(plan.protocols)}, seeds "
    of += ", ".join(map(str, plan.seeds))
    there = f"{runs - len(found.runs_left)} and {cells - len(found.left)}"
    say(
        f"study {plan.kind}: {of}: {runs_and(runs, found.undecided)} {counted(cells, 'cell')}, of which {there} are "
        "there or not needed any more",
        quiet,
    )
    if found.left and found.results:
        say(still_left(plan, found), quiet)
    elsewhere = {first.seed for cell in found.left if (first := plan.chooser(cell)) is not None} - {
        *plan.seeds
    }
    for seed in elsewhere:
        say(
            f"fine-tuning takes the learning rates that {plan.lr_from} chooses with seed {seed}; what has none yet "
            f"waits for the command with --seeds {seed}",
            quiet,
        )


def runs_and(known: int, undecided: int) -> str:
    """'2 runs and', '2 runs, up to 3 more that depend on votes, and'."""
    more = f", up to {undecided:,} more that depend on votes," if undecided else ""
    return f"{counted(known, 'run')}{more} and"


def still_left(plan: Plan, found: Progress) -> str:
    """'2 runs and 30 cells are left, about 12:30 for the cells ...'."""
    runs = runs_and(len(found.runs_left), found.undecided)
    text = f"{runs} {counted(len(found.left), 'cell')} are left"
    seconds, unknown = estimate(found)
    if seconds:
        text += f", about {clock(seconds)}"
        text += f" and {unknown} of a kind of which nothing is known yet" if unknown else ""
    return text


def estimate(found: Progress) -> tuple[float, int]:
    """(seconds of what is left, by runs and cells of its kind that are there; how much of it has none of its kind)."""
    took: dict[tuple, list[float]] = {}
    trained: dict[str, float] = {}
    for result in found.results:
        own = result["study"]
        strategy = own["options"].get("strategy")
        took.setdefault((result["protocol"], strategy), []).append(own.get("seconds", 0.0))
        if seconds := own.get("cost", {}).get("seconds"):
            trained[own["run"]] = seconds
    kinds = [(cell.protocol, cell.arm.strategy) for cell in found.left]
    known = [sum(took[kind]) / len(took[kind]) for kind in kinds if kind in took]
    if trained:
        mean = sum(trained.values()) / len(trained)
        known += [mean for stage in found.runs_left if stage.verb == "train-experts"]
    return sum(known), len(kinds) + len(found.runs_left) - len(known)


@dataclass
class Worker:
    """One process that works on a plan."""

    plan: Plan
    cells: Cells
    config: StudyConfig
    budget: Budget
    busy: set[str] = field(default_factory=set)  # runs that another process works in
    failed: dict[str, str] = field(default_factory=dict)  # as in Progress
    done: set[str] = field(default_factory=set)

    def progress(self) -> Progress:
        """What is there now, also of other processes."""
        found = look(self.plan, self.cells)
        found.seconds, found.failed = self.budget.seconds, self.failed
        return found

    def measure(self, cell: Cell, number: str) -> None:
        """Measure a cell, unless it is there by now or cannot be measured yet; raises Spent."""
        self.budget.require()
        quiet = self.config.quiet
        if (stage := self.run_for(cell)) is None:
            return
        with self.cells.claimed(cell) as ours:
            if not ours:
                say(f"{number} {cell}: another process measures it; passed over for now", quiet)
                return
            if self.cells.there(cell) is not None:
                return
            options = evaluate_options(self.plan, cell)
            if isinstance(options, Waits):
                say(f"{number} {cell}: waits for {options.cell}; passed over for now", quiet)
                return
            try:
                content = self.evaluated(cell, stage, options)
            except UserError as error:
                self.note_failed(str(cell), error)
                return
            write_json(self.cells.path(cell), content)
            shutil.rmtree(self.folder(cell), ignore_errors=True)
        say(f"{number} {cell}: {percent(content['value'])} ({clock(content['study']['seconds'])})", quiet)

    def evaluated(self, cell: Cell, stage: Stage, options: dict[str, Any]) -> dict[str, Any]:
        """The content of a cell, which measures a stage."""
        started = time.monotonic()
        call = dict(
            model=stage.path,
            task=cell.task,
            data_root=self.plan.data_root,
            protocol=cell.protocol,
            seed=cell.seed,
            **options,
        )
        if cell.protocol in PROBES:  # seconds; what takes longer shows its progress, and can be continued
            result = self._call("evaluate", True, **call)
        else:
            made_of = json.dumps([self.cells.run_of(cell), self.cells.pictures(cell), options])
            out = self.folder(cell) / sha256_of(made_of)
            with self.budget.within():
                result = self._call("evaluate", self.config.quiet, out=out, **call)
            result = {name: value for name, value in result.items() if name not in FILES}
        about = {
            "arm": cell.arm.name,
            "run": self.cells.run_of(cell),
            "method": result["method"],
            "options": method_options(options, cell.protocol),
            "training": training_of(stage),
            "pictures": self.cells.pictures(cell),
            # What was continued says how long all of it took.
            "seconds": max(round(time.monotonic() - started, 3), result["seconds"]),
            "cost": cost_of(stage, self.plan.dense),
            "clusters": meaning_of(stage),
        }
        return {**result, "method": cell.arm.name, "study": about}

    def note_failed(self, what: str, error: UserError) -> None:
        """One run or cell that cannot be made does not keep the others from being made; it is told at the end."""
        self.failed[what] = str(error)
        say(f"{what} failed: {error} What needs it is passed over.", self.config.quiet)

    def folder(self, cell: Cell) -> Path:
        """Where an evaluation that trains works until it is a cell."""
        return self.plan.out / "evaluations" / cell.file.with_suffix("")

    def require_same(self) -> None:
        """UserError where a finished run is not that of the plan: its verb says what differs, or has nothing to do."""
        for stage in self.cells.stages():
            if is_finished(stage) and not stage_is_done(stage):
                if not all_here(stage):
                    require_known(stage)
                    continue
                with suppress(Busy):
                    self._call(str(stage.verb), True, **stage.arguments())
                    self.done.add(stage.path)

    def run_for(self, cell: Cell) -> Stage | None:
        """The finished run that a cell measures; where votes decide which, the run that they are cast in comes first.

        None where another process works in one of them.
        """
        stage = self.cells.stage(cell)
        if stage is None:
            by = selecting(cell)
            if not self.ready(by.stage):
                return None
            if (found := self.cells.selection(cell)) is None:  # another process may have counted
                found = self.cells.select(cell, self.config.device, self.config.quiet)
                votes = f"{found['votes'][found['cluster']]} of {sum(found['votes'])} votes"
                what = f"cluster {found['cluster']} of {by} has {votes}"
                say(
                    f"{what}; {counted(len(found['clusters']), 'cluster')} with its experts",
                    self.config.quiet,
                )
            stage = cell.arm.trained_on(found["clusters"], cell.seed)
        return stage if self.ready(stage) else None

    def ready(self, stage: Stage) -> bool:
        """Make a run and those that it needs; False where another process works in one of them."""
        for one in self.cells.to_make(stage):
            if one.path in self.busy or one.path in self.failed:
                return False
            if one.path in self.done or stage_is_done(one):
                if one.path not in self.done:  # another process may have made it since
                    self.cells.made_anew(one)
                self.done.add(one.path)
                continue
            assert one.verb is not None
            say(f"{one.path}: {one.verb}", self.config.quiet)
            try:
                with self.budget.within():
                    self._call(one.verb, self.config.quiet, **one.arguments())
            except Busy as error:
                self.busy.add(one.path)
                say(f"{error} What needs it is passed over for now.", self.config.quiet)
                return False
            except UserError as error:
                self.note_failed(one.path, error)
                return False
            self.done.add(one.path)
            self.cells.made_anew(one)
        return True

    def _call(self, verb: str, quiet: bool, **options: Any) -> Any:
        name = verb.replace("-", "_")
        function: Callable[..., Any] = getattr(import_module(VERBS[name]), name)
        return function(**{"device": self.config.device, "quiet": quiet, **options})
