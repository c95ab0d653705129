"""Downstream tasks: where their splits are, which metric they are measured with, and which pictures are validation.

A task is a folder with {train,val?,test}.parquet or {train,val?,test}/class/..., or a kind of the toy world. Without a
validation split, 20 % of each class of train are it, by one fixed seed that every method shares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.engine.randomness import uniform
from moce.errors import UserError, did_you_mean
from moce.images.sources import Source, open_images
from moce.images.toyworld import KINDS

# The eleven tasks of Ericsson et al. (CVPR 2021), and ImageNet itself: their canonical layouts are not read yet.
CANONICAL = (
    "aircraft", "caltech101", "cars", "cifar10", "cifar100", "dtd", "flowers102", "food101", "pets", "sun397",
    "voc2007", "imagenet1k",
)  # fmt: skip
# Small stand-ins for the eleven, in the layout above.
SMALL_SUITE = (
    "caltech101", "cars40", "cifar10", "cifar100", "dtd10", "eurosat", "flowers17", "food8", "gtsrb", "pets37",
    "scene15",
)  # fmt: skip
MEAN_PER_CLASS = (
    "aircraft",
    "caltech101",
    "flowers102",
    "flowers17",
    "pets",
    "pets37",
)  # tasks with this metric
TOY = "toyworld://"
# Of the validation split; not an option, so that every method chooses on the same pictures.
SPLIT_SEED = 20_23
VALIDATION = 0.2


@dataclass(frozen=True)
class Task:
    """A classification task."""

    name: str
    metric: str  # "top1" or "mean_per_class"
    train: Source
    test: Source
    val: Source | None
    classes: list[str]

    @property
    def num_classes(self) -> int:
        """Classes of the training split."""
        return len(self.classes)


class Relabelled:
    """A source whose labels are numbered as another split's classes are."""

    def __init__(self, source: Source, classes: list[str], labels: Int64[np.ndarray, " images"]) -> None:
        self._source, self.classes, self.labels, self.uri = source, classes, labels, source.uri
        self.channels = getattr(source, "channels", 3)

    def __len__(self) -> int:
        return len(self._source)

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """The picture, and its label in the other split's numbers."""
        return self._source.get(index)[0], int(self.labels[index])

    def shards(self) -> list[range]:
        """As they are."""
        return self._source.shards()

    def name(self, index: int) -> str:
        """As it is."""
        return self._source.name(index)

    def fingerprint(self) -> str:
        """Of the pictures, which are the same."""
        return self._source.fingerprint()


def open_tasks(task: str, data_root: str | Path | None = None, channels: int = 3) -> list[Task]:
    """The tasks of `--task`: a folder, a name below `data_root`, a kind of the toy world, or all of them.

    Pictures come with so many `channels`. `data_root` may be toyworld:// for its kinds. Raises UserError for a task
    that is not there, that has no test split or no labels, or whose test split has a class that training lacks.
    """
    root = str(data_root) if data_root is not None else None
    if task == "all":
        return [open_task(name, root, channels) for name in all_names(root)]
    return [open_task(task, root, channels)]


def all_names(root: str | None) -> list[str]:
    """What `--task all` stands for."""
    if root is None:
        raise UserError("--task all needs --data-root: the folder that the tasks are in, or toyworld://.")
    if root.startswith(TOY):
        return list(KINDS)
    found = folders_with_tasks(Path(root))
    if not found:
        raise UserError(
            f"No folder in {root} is a task: none has a train and a test split (parquet or folders)."
        )
    known = [name for name in found if name in SMALL_SUITE]
    return known or found


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


def open_task(name: str, root: str | None, channels: int = 3) -> Task:
    """One task by path, by name below `root`, or of the toy world."""
    if name.startswith(TOY) or (root is not None and root.startswith(TOY)):
        return toy_task(name.removeprefix(TOY), (root or TOY).removeprefix(TOY), channels)
    folder = Path(name).expanduser()
    root = None if root is None else str(Path(root).expanduser())
    if root is not None and not folder.is_dir():
        folders_with_tasks(Path(root))  # says so when the root itself is not there
        folder = Path(root) / name
    if not folder.is_dir():
        raise UserError(missing(name, root))
    return folder_task(folder, channels)


def missing(name: str, root: str | None) -> str:
    """The sentence for a task that is not there."""
    if root is None:
        later = " (the canonical data sets are not read by name yet)" if name in CANONICAL else ""
        return f"There is no folder '{name}'{later}: give the folder of the task, or --data-root and its name there."
    there = folders_with_tasks(Path(root))
    hint = "" if name in CANONICAL else did_you_mean(name, there)
    return f"There is no task '{name}' in {root}; there are {', '.join(there) or 'none'}.{hint}"


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
    train = open_images(str(where["train"]), channels)
    classes = class_names(train, folder, "train")
    assert train.labels is not None
    shown = {classes[label] for label in np.unique(train.labels)}
    test = matched(open_images(str(where["test"]), channels), classes, shown, folder, "test")
    val = (
        matched(open_images(where["val"], channels), classes, shown, folder, "val") if where["val"] else None
    )
    name = folder.resolve().name
    return Task(name, "mean_per_class" if name in MEAN_PER_CLASS else "top1", train, test, val, classes)


def class_names(source: Source, folder: Path, split: str) -> list[str]:
    """The classes of a split; numbers where they have no names. UserError where there are no labels."""
    if source.labels is None:
        raise UserError(
            f"The {split} split of {folder} has no labels: it needs a sub-folder per class or a 'label' column."
        )
    if source.labels.min() < 0:
        raise UserError(f"The {split} split of {folder} has pictures without a label (a number below 0).")
    return source.classes or [str(number) for number in range(int(source.labels.max()) + 1)]


def matched(source: Source, classes: list[str], shown: set[str], folder: Path, split: str) -> Source:
    """A split with its labels numbered as training's; UserError for a class of which training shows no picture."""
    own = class_names(source, folder, split)
    assert source.labels is not None
    present = {own[label] for label in np.unique(source.labels)}
    unknown = sorted(present - shown)
    if unknown:
        raise UserError(
            f"The {split} split of {folder} has the class '{unknown[0]}', which the train split lacks."
        )
    if own == classes[: len(own)]:
        return source
    number = np.array([classes.index(name) if name in present else -1 for name in own], np.int64)
    return Relabelled(source, classes, number[source.labels])


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
