"""Downstream tasks: where their splits are, which metric they are measured with, and which pictures are validation.

A task is a folder with {train,val?,test}.parquet or {train,val?,test}/class/..., one of the data sets of the field by
its name (canonical.py), a data set of the hub, or a kind of the toy world. Without a validation split, 20 % of each
class of train are it, by one fixed seed that every method shares.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import torch
from jaxtyping import Int64

from moce.engine.randomness import uniform
from moce.errors import UserError, did_you_mean
from moce.images.annotated import refuse_other_kind
from moce.images.canonical import SETS, is_there, open_canonical
from moce.images.decode import UnreadableImage
from moce.images.part import Part
from moce.images.sources import Source, open_images
from moce.images.toyworld import KINDS
from moce.images.uris import parts_of
from moce.images.voc import VOCImages

# Small stand-ins for the eleven, in the layout above.
SMALL_SUITE = (
    "caltech101", "cars40", "cifar10", "cifar100", "dtd10", "eurosat", "flowers17", "food8", "gtsrb", "pets37",
    "scene15",
)  # fmt: skip
MEAN_PER_CLASS = (  # tasks with this metric
    "flowers17",
    "pets37",
    *(name for name, canonical in SETS.items() if canonical.metric == "mean_per_class"),
)
TOY, HUB = "toyworld://", "hf://"
# Of the validation split; not an option, so that every method chooses on the same pictures.
SPLIT_SEED = 20_23
VALIDATION = 0.2


@dataclass(frozen=True)
class Task:
    """A classification task."""

    name: str
    metric: str  # "top1", "mean_per_class" or, where a picture shows several classes, "mAP11"
    train: Source
    test: Source
    val: Source | None
    classes: list[str]
    shots: int | None = (
        None  # so many training pictures of each class and no validation pictures: see `few_shots`
    )

    @property
    def num_classes(self) -> int:
        """Classes of the training split."""
        return len(self.classes)


def open_tasks(
    task: str, data_root: str | Path | None = None, channels: int = 3, download: bool = False
) -> list[Task]:
    """The tasks of `--task`: a folder, a name below `data_root`, a kind of the toy world, hf://NAME, or all of them.

    Pictures come with so many `channels`. `data_root` may be toyworld:// for its kinds. With `download`, torchvision
    gets a data set of the field that is not there. Raises UserError for a task that is not there, that has no test
    split or no labels, or whose test split has a class that training lacks.
    """
    root = str(data_root) if data_root is not None else None
    if download and task.partition("?")[0] not in SETS:
        raise UserError(
            f"--download is for the data sets that torchvision has: give --task and one of {', '.join(SETS)}."
        )
    if task == "all":
        return [open_task(name, root, channels) for name in all_names(root)]
    return [open_task(task, root, channels, download)]


def all_names(root: str | None) -> list[str]:
    """What `--task all` stands for; ImageNet, longer than all others together, is taken by its name only."""
    if root is None:
        raise UserError("--task all needs --data-root: the folder that the tasks are in, or toyworld://.")
    if root.startswith(TOY):
        return list(KINDS)
    found = folders_with_tasks(Path(root))
    canonical = [name for name in SETS if name != "imagenet1k" and is_there(name, Path(root))]
    known = {name for name in found if name in SMALL_SUITE or name in SETS} | set(canonical)
    if not found and not known:
        raise UserError(
            f"No folder in {root} is a task: none has a train and a test split (parquet or folders), and none is a "
            "data set as torchvision lays it out."
        )
    return sorted(known) or found


def folders_with_tasks(root: Path) -> list[str]:
    """Names of the folders below `root` that have a train and a test split. UserError when there is no such folder."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root} (--data-root).")
    return sorted(p.name for p in root.iterdir() if split_uri(p, "train") and split_uri(p, "test"))


def split_uri(folder: Path, name: str) -> str | None:
    """Where a split lies in a task's folder, if it is there."""
    if (folder / f"{name}.parquet").is_file():
        return str(folder / f"{name}.parquet")
    return str(folder / name) if (folder / name).is_dir() else None


def open_task(name: str, root: str | None, channels: int = 3, download: bool = False) -> Task:
    """One task by path, by name below `root`, of the hub or of the toy world."""
    if name.startswith(TOY) or (root is not None and root.startswith(TOY)):
        return toy_task(name.removeprefix(TOY), (root or TOY).removeprefix(TOY), channels)
    if name.startswith(HUB):
        return hub_task(name, channels)
    base, _, option = name.partition("?")
    folder = Path(name).expanduser()
    root = None if root is None else str(Path(root).expanduser())
    if root is not None and not is_task(folder):
        folders_with_tasks(Path(root))  # says so when the root itself is not there
        inside = Path(root) / name
        ours = is_task(inside) or (split_uri(inside, "train") and base != "imagenet1k")  # a folder of its own
        if base in SETS and not ours:
            return canonical_task(base, option, Path(root), channels, download)
        if inside.is_dir() or not folder.is_dir():
            folder = inside
    refuse_other_kind(folder, "classes")
    if not folder.is_dir():
        raise UserError(missing(name, root))
    return folder_task(folder, channels)


def is_task(folder: Path) -> bool:
    """Whether a folder has a train and a test split."""
    return bool(split_uri(folder, "train") and split_uri(folder, "test"))


def missing(name: str, root: str | None) -> str:
    """The sentence for a task that is not there."""
    if root is None:
        return f"There is no folder '{name}': give the folder of the task, or --data-root and its name there."
    there = folders_with_tasks(Path(root))
    hint = did_you_mean(name, [*there, *SETS])
    return f"There is no task '{name}' in {root}; there are {', '.join(there) or 'none'}.{hint}"


def canonical_task(name: str, option: str, root: Path, channels: int, download: bool) -> Task:
    """A data set of the field; UserError where it has not the classes that it should have."""
    sources, num_classes = open_canonical(name, option, root, channels, download)
    spelled = f"{name}?{option}" if option else name
    if SETS[name].metric == "mAP11":
        train = sources["train"]
        assert isinstance(train, VOCImages)
        found = int((train.targets == 1).any(axis=0).sum())
        task = Task(spelled, "mAP11", train, sources["test"], sources["val"], list(train.classes or []))
    else:
        task = task_of(spelled, SETS[name].metric, sources, f"{name} in {root}")
        assert task.train.labels is not None
        found = len(np.unique(task.train.labels))
    if found != num_classes:
        raise UserError(
            f"The train split of {name} in {root} shows {found} classes, not {num_classes}: it is another data set or "
            "not unpacked completely; unpack its archive again."
        )
    return task


def hub_task(uri: str, channels: int = 3) -> Task:
    """A data set of the hub: hf://NAME, whose splits may have other names (?train=, val=, test=); see hub.py."""
    where, options = uri.partition("?")[0], parts_of(uri, "hf")[1]
    if "split" in options:
        raise UserError(
            f"The task '{uri}' has several splits: name them with train=, val= and test=, not split=."
        )
    names = {"train": options.pop("train", "train"), "test": options.pop("test", "test")}
    if "val" in options:
        names["val"] = options.pop("val")
    opened = {
        split: open_images(f"{where}?{urlencode({**options, 'split': name}, quote_via=quote)}", channels)
        for split, name in names.items()
    }
    return task_of(where.removeprefix(HUB), "top1", opened, uri)


def toy_task(kind: str, root_options: str, channels: int = 3) -> Task:
    """A kind of the toy world; options such as size follow after a question mark, of the kind or of the root."""
    kind, _, options = kind.partition("?")
    options = options or root_options.removeprefix("?")
    if kind not in KINDS:
        raise UserError(
            f"The toy world has no task '{kind}': choose one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}"
        )
    if "split=" in options:
        raise UserError(f"The task '{kind}?{options}' is both splits: leave 'split=' out.")
    extra = f"&{options}" if options else ""
    train, test = (open_images(f"{TOY}{kind}?split={split}{extra}", channels) for split in ("train", "test"))
    return Task(kind, "top1", train, test, None, list(train.classes or []))


def folder_task(folder: Path, channels: int = 3) -> Task:
    """A task from its folder."""
    where = {name: split_uri(folder, name) for name in ("train", "val", "test")}
    for name in ("train", "test"):
        if where[name] is None:
            raise UserError(
                f"The task {folder} has no {name} split: it needs {name}.parquet or a folder {name}."
            )
    name = folder.resolve().name
    sources = {split: open_images(uri, channels) for split, uri in where.items() if uri}
    return task_of(name, "mean_per_class" if name in MEAN_PER_CLASS else "top1", sources, str(folder))


def task_of(name: str, metric: str, sources: dict[str, Source], where: str) -> Task:
    """A task from its splits, whose labels are numbered as those of train; `where` is what to call it to people."""
    train = sources["train"]
    classes = class_names(train, where, "train")
    assert train.labels is not None
    shown = {classes[label] for label in np.unique(train.labels)}
    test = matched(sources["test"], classes, shown, where, "test")
    val = matched(sources["val"], classes, shown, where, "val") if "val" in sources else None
    return Task(name, metric, train, test, val, classes)


def class_names(source: Source, where: str, split: str) -> list[str]:
    """The classes of a split; numbers where they have no names. UserError where there are no labels."""
    if source.labels is None:
        raise UserError(
            f"The {split} split of {where} has no labels: it needs a sub-folder per class or a column 'label' of "
            "whole numbers from 0."
        )
    if source.labels.min() < 0:
        raise UserError(f"The {split} split of {where} has pictures without a label (a number below 0).")
    return source.classes or [str(number) for number in range(int(source.labels.max()) + 1)]


def matched(source: Source, classes: list[str], shown: set[str], where: str, split: str) -> Source:
    """A split with its labels numbered as training's; UserError for a class of which training shows no picture."""
    own = class_names(source, where, split)
    assert source.labels is not None
    present = {own[label] for label in np.unique(source.labels)}
    unknown = sorted(present - shown)
    if unknown:
        raise UserError(
            f"The {split} split of {where} has the class '{unknown[0]}', which the train split lacks."
        )
    if own == classes[: len(own)]:
        return source
    number = np.array([classes.index(name) if name in present else -1 for name in own], np.int64)
    return Part(source, classes, number[source.labels])


def split(train: Source) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " val"]]:
    """(training, validation) indices: 20 % of each class, at least 1 where it has 2, the same for every method.

    Raises UserError when no class has two pictures.
    """
    assert train.labels is not None
    chance = uniform(SPLIT_SEED, "validation split", 0, torch.arange(len(train)), 1)[:, 0]
    order = chance.argsort(stable=True).numpy()
    chosen: list[Sequence[int]] = []
    for label in np.unique(train.labels):
        own = order[train.labels[order] == label]
        chosen.append(own[: max(round(VALIDATION * len(own)), 1) if len(own) > 1 else 0])
    val = np.sort(np.concatenate(chosen)).astype(np.int64)
    if not len(val):
        raise UserError(
            f"No class of '{train.uri}' has two pictures, so none can be set aside for validation: add a val split."
        )
    return np.setdiff1d(np.arange(len(train)), val), val


def few_shots(task: Task, num: int, seed: int) -> Task:
    """The task with `num` training pictures of each class, drawn by the seed, and no validation pictures.

    With one seed fewer are always among more. Pictures that cannot be read are passed over. UserError where a class has
    too few, and for a task whose pictures show several classes each.
    """
    train = task.train
    if train.labels is None:
        raise UserError(f"--shots counts pictures of one class each, and those of {task.name} show several.")
    chance = uniform(seed, "shots", 0, torch.arange(len(train)), 1)[:, 0]
    order = chance.argsort(stable=True).numpy()
    rows: list[int] = []
    for label in np.unique(train.labels):
        own: list[int] = []
        for index in order[train.labels[order] == label].tolist():
            if len(own) < num and readable(train, index):
                own.append(index)
        if len(own) < num:
            raise UserError(
                f"--shots {num} is more than the {len(own)} pictures of the class '{task.classes[label]}' in the train "
                f"split of {task.name}."
            )
        rows += own
    chosen = np.array(rows, np.int64)
    return dataclasses.replace(
        task, train=Part(train, task.classes, train.labels[chosen], chosen), val=None, shots=num
    )


def readable(source: Source, index: int) -> bool:
    """Whether a picture can be read."""
    try:
        source.get(index)
    except UnreadableImage:
        return False
    return True
