"""What a study consists of: stages (run folders), arms (methods), and cells (one evaluation each).

    stage   a run of pretrain, cluster or train-experts below OUT/runs, made when it is needed; or an earlier run
    arm     a name, the stage whose model it measures (one for each seed, or one for all), and a strategy where that
            model has sub-models to choose from. Arms with the same training options share their runs. An arm whose
            clusters another one selects has a run for every set of them that a task's vote leads to (selection.py)
    cell    arm x task x protocol x seed: what one call of `moce evaluate` gives

A plan says nothing about what is done already; cells.py and runner.py look.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moce.engine.files import sha256_of

CLASSIFYING = ("knn", "linear", "finetune")  # protocols whose tasks are classes of whole pictures
PROBES = ("knn", "linear")  # protocols in which the seed changes nothing but which few shots are drawn
# Strategies that a choice is compared with, and that are none. They bound nothing: the best on validation need not be
# the best on test, and one that was drawn at random may be better than any choice.
REFERENCES = {"oracle": "best on validation", "random": "one drawn at random"}
WHOLE = ("none", "token")  # gates whose models have no sub-models to choose from
# Options of train-experts by which an arm would see other pictures, or in another order.
PICTURES = ("epochs", "steps", "batch_size", "min_crop", "flip", "order", "only_clusters", "preset")


def slug(name: str) -> str:
    """A name as part of a path: 'MAE*' is mae-star."""
    plain = re.sub(r"[^a-z0-9.]+", "-", name.lower().replace("*", "-star"))
    return plain.strip("-.") or "arm"


def task_name(spelled: str) -> str:
    """The name of a task that is given as a name, a folder or a kind of the toy world."""
    return spelled.removeprefix("toyworld://").partition("?")[0].rstrip("/").rpartition("/")[2]


def corpus(images: str) -> str:
    """What pre-training pictures are called, without where they lie here; a file is named with its folder."""
    if images.startswith("classes:"):
        file, _, inner = images.removeprefix("classes:").partition(":")
        return f"classes:{Path(file).name}:{corpus(inner)}"
    if images.startswith("wds:"):
        return "wds:" + "/".join(Path(images.removeprefix("wds:")).parts[-2:])
    if "://" in images:
        name, _, options = images.partition("?")
        kept = [one for one in options.split("&") if one and not one.startswith("root=")]
        return f"{name}?{'&'.join(kept)}" if kept else name
    path = Path(images)
    return "/".join(path.parts[-2:]) if path.suffix else path.name or images


@dataclass(frozen=True, eq=False)
class Stage:
    """One run folder; `verb` is None for what is evaluated as it lies there (an earlier run, timm:NAME)."""

    path: str
    verb: str | None = None  # pretrain, cluster or train-experts
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the verb, without out and the folders it needs
    needs: Mapping[str, "Stage"] = field(default_factory=dict)  # argument of the verb: the stage before

    def arguments(self) -> dict[str, Any]:
        """What the verb is called with."""
        return {**{name: stage.path for name, stage in self.needs.items()}, **self.options, "out": self.path}

    def chain(self) -> Iterator["Stage"]:
        """What must be made, in order; this stage last."""
        for stage in self.needs.values():
            yield from stage.chain()
        yield self


@dataclass(frozen=True, eq=False)
class Arm:
    """One column of the tables."""

    name: str
    models: Mapping[int, Stage]  # by seed; where clusters are selected, what runs on them are made like
    options: Mapping[str, Any] = field(default_factory=dict)  # as the configuration gives them
    strategy: str | None = None
    protocols: tuple[str, ...] | None = None  # None: those of the study
    per_seed: bool = False  # whether each seed counts as a model of its own, though some have the same one
    selected_by: "Arm | None" = None  # whose sub-model says, task by task, on which clusters a run is trained

    def trained_on(self, clusters: Sequence[int], seed: int) -> Stage:
        """The run on the pictures of these clusters alone."""
        like = self.models[seed]
        path = f"{like.path}-{sha256_of(*map(str, clusters))[:8]}"
        return replace(like, path=path, options={**like.options, "only_clusters": tuple(clusters)})

    @property
    def reference(self) -> bool:
        """Whether it is a reference for the choice of sub-models, and no method."""
        return self.strategy in REFERENCES

    @property
    def seedless(self) -> bool:
        """Whether one model serves all seeds."""
        return not self.per_seed and len({stage.path for stage in self.models.values()}) == 1


@dataclass(frozen=True)
class Cell:
    """One evaluation."""

    arm: Arm
    task: str  # as it is spelled for `moce evaluate --task`
    protocol: str
    seed: int

    @property
    def stage(self) -> Stage:
        """Whose model is measured; where clusters are selected, what it is made like (`Cells.stage` knows it)."""
        return self.arm.models[self.seed]

    @property
    def file(self) -> Path:
        """Its place below OUT/cells."""
        name = f"{slug(task_name(self.task))}-{self.protocol}-seed{self.seed}.json"
        return Path(slug(self.arm.name)) / name

    def __str__(self) -> str:
        return f"{self.arm.name}, {task_name(self.task)}, {self.protocol}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole study."""

    kind: str
    out: Path
    arms: list[Arm]
    tasks: list[str]
    data_root: str | None
    protocols: list[str]
    seeds: list[int]
    images: str = ""  # the pre-training pictures, for people
    dense: Sequence[Stage] = ()  # the models that arms are trained on from, where there are any
    evaluate: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # protocol: options
    method: str = "MoCE"  # whose difference to the baseline is the point
    baseline: str = "MAE*"
    lr_from: str | None = None  # the arm that chooses a task's learning rate of fine-tuning for all
    all_seeds: Sequence[int] = ()  # of the file, where a command works on some of them

    @property
    def first_seed(self) -> int:
        """The first of all, also where this command works on others: what one seed stands for has this one."""
        return (self.all_seeds or self.seeds)[0]

    def arm(self, name: str) -> Arm | None:
        """The arm of that name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def as_it_is(self, arm: Arm) -> str | None:
        """What an arm measures that no verb of this study makes, a folder or a name; not the dense model."""
        stage = next(iter(arm.models.values()))
        return None if stage.verb is not None or stage in self.dense else stage.path

    @property
    def alike(self) -> bool:
        """Whether all arms are a seed's dense model, or it trained on with the same pictures in the same order."""
        trained = [arm for arm in self.arms if next(iter(arm.models.values())) not in self.dense]
        stages = [stage for arm in trained for stage in arm.models.values()]
        same = all(s.verb == "train-experts" and s.needs.get("mae") in self.dense for s in stages)
        other = any(arm.selected_by or any(name in arm.options for name in PICTURES) for arm in trained)
        return same and not other

    def cells(self) -> list[Cell]:
        """All of them, in the order in which they are made: the first seed first, what shares features together.

        Whose learning rates the others wait for comes before them.
        """
        seeds = list(dict.fromkeys([self.first_seed, *self.seeds]))
        found = [
            Cell(arm, task, protocol, seed)
            for seed in seeds
            for arm in self.arms
            for task in self.tasks
            for protocol in self.protocols
            if self.measured(arm, protocol) and seed in self.seeds_of(arm, protocol)
        ]
        if self.lr_from is None:
            return found

        def late(cell: Cell) -> tuple[bool, int, bool]:
            follows = cell.arm.name != self.lr_from
            return follows or cell.seed != self.first_seed, seeds.index(cell.seed), follows

        return sorted(found, key=late)

    def seeds_of(self, arm: Arm, protocol: str) -> list[int]:
        """The seeds that are worth measuring: the first of all, where another would give the same number."""
        drawn = self.evaluate.get(protocol, {}).get("shots") is not None or arm.strategy == "random"
        same = arm.seedless and protocol in PROBES and not drawn
        if same and self.first_seed in arm.models:
            return [self.first_seed]
        return [seed for seed in self.seeds if seed in arm.models]

    def chooser(self, cell: Cell) -> Cell | None:
        """The cell whose learning rate of fine-tuning another takes; None where it chooses its own."""
        arm = None if self.lr_from is None else self.arm(self.lr_from)
        if arm is None or cell.protocol != "finetune":
            return None
        first = Cell(arm, cell.task, cell.protocol, self.first_seed)
        return None if cell.file == first.file else first

    def measured(self, arm: Arm, protocol: str) -> bool:
        """Whether an arm is measured by a protocol; references are only probed."""
        if arm.reference and protocol not in PROBES:
            return False
        return arm.protocols is None or protocol in arm.protocols
