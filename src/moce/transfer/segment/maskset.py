"""Pictures with masks: the sets of a segmentation task and the two layouts that they come in.

    ADE20K     images/{training,validation}/*.jpg and annotations/{training,validation}/*.png; 0 is not scored, class 1
               is the first; validation is what is tested on. Names: classes.json, else objectInfo150.txt
    parquet    {train,val?,test}.parquet with `image` and `mask`, class 0 is the first; or one file, of which every
               fifth row, by one fixed seed, is tested on. Names: classes.json

classes.json is a list of names. 255, and a class that is named void, is not scored. Without names there are as many
classes as the training masks show.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Int16, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from moce.engine.files import read_json, sha256_of
from moce.engine.progress import track
from moce.engine.randomness import uniform
from moce.errors import UserError, did_you_mean
from moce.images.annotated import MASK_COLUMNS, refuse_other_kind
from moce.images.arrays import UnreadableImage
from moce.images.loader import in_workers
from moce.images.parquet import ParquetImages
from moce.images.sources import FolderImages, Source
from moce.images.tasks import SPLIT_SEED
from moce.transfer.segment.masks import MOST_CLASSES, UNLABELLED, Classes, class_numbers, counted, named

PARTS = {"train": "training", "test": "validation"}  # ADE20K's names of the splits
TESTED = 0.2  # of a file without splits

Files = FolderImages | ParquetImages  # sources that hand out a picture's file


class Rows:
    """Some pictures of a source, without labels, as a source: what chooses a sub-model must not see the others."""

    classes: list[str] | None = None
    labels = None

    def __init__(self, source: Source, rows: list[int]) -> None:
        self.source, self.rows, self.uri = source, rows, source.uri
        self.channels = getattr(source, "channels", 3)

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        return self.source.get(self.rows[index])[0], None

    def shards(self) -> list[range]:
        """One: neighbours may lie anywhere."""
        return [range(len(self))]

    def name(self, index: int) -> str:
        """That of the picture."""
        return self.source.name(self.rows[index])

    def fingerprint(self) -> str:
        """Of the source, and which of its pictures these are."""
        return sha256_of(self.source.fingerprint(), str(self.rows))


class MaskSet(Dataset):
    """One split: pictures, and beside each a mask of its size."""

    def __init__(self, pictures: Source, masks: Files, of: list[int]) -> None:
        """Picture i has mask `of[i]`."""
        self.pictures, self.masks, self.of = pictures, masks, of
        self.classes: Classes | None = None

    def __len__(self) -> int:
        return len(self.of)

    def mask_name(self, index: int) -> str:
        """The mask of a picture, for people."""
        return f"{self.masks.name(self.of[index])} of '{self.masks.uri}'"

    def fingerprint(self) -> str:
        """Of pictures, masks and classes."""
        return sha256_of(self.pictures.fingerprint(), self.masks.fingerprint(), str(self.classes))

    def stored(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], Tensor]:
        """(picture, numbers in its mask). UserError where one of them cannot be read or their sizes differ."""
        what = f"picture {self.pictures.name(index)} of '{self.pictures.uri}'"
        try:
            image = self.pictures.get(index)[0]
            what = f"mask {self.mask_name(index)}"
            data = self.masks.encoded(self.of[index])
            if data is None:
                raise UnreadableImage("no bytes in this row")
        except UnreadableImage as error:
            raise UserError(f"The {what} cannot be read ({error}); put it right.") from None
        where = self.mask_name(index)
        numbers = torch.from_numpy(class_numbers(data, where))
        if numbers.shape != image.shape[1:]:
            sides = [f"{shape[1]} x {shape[0]}" for shape in (numbers.shape, image.shape[1:])]
            lying = numbers.shape == image.shape[:0:-1]
            raise UserError(
                f"The mask {where} has {sides[0]} pixels and its picture {sides[1]}; they must be of one size"
                f"{', that of the picture as it is shown, turned by its orientation tag' if lying else ''}."
            )
        return image, numbers

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], Int16[Tensor, "rows columns"]]:
        """(picture, class of every pixel); IGNORE where it is not scored."""
        assert self.classes is not None, "nobody has looked at the masks yet"
        image, numbers = self.stored(index)
        return image, self.classes.of(numbers.numpy(), self.mask_name(index))

    def __getitem__(self, index: int) -> int:
        """The highest number in a mask, 255 left out; what a look at the whole set asks for."""
        numbers = self.stored(index)[1]
        if self.classes is not None:
            self.classes.of(numbers.numpy(), self.mask_name(index))
        there = numbers[numbers != UNLABELLED]
        return int(there.max()) if len(there) else -1


class Pool:
    """Several sets as one, their indices one after the other."""

    def __init__(self, parts: list[MaskSet]) -> None:
        self.parts, self.starts = parts, [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], Int16[Tensor, "rows columns"]]:
        """See `MaskSet.get`."""
        number = bisect_right(self.starts, index) - 1
        return self.parts[number].get(index - self.starts[number])


@dataclass(frozen=True)
class MaskTask:
    """A segmentation task."""

    name: str
    train: MaskSet
    val: MaskSet | None
    test: MaskSet
    classes: Classes | None  # None: not named, and so not known before the masks are looked at
    first: int  # the number of the first class

    @property
    def splits(self) -> list[MaskSet]:
        """Those that are there."""
        return [part for part in (self.train, self.val, self.test) if part is not None]

    def fingerprint(self) -> str:
        """Of all splits."""
        return sha256_of(*(part.fingerprint() for part in self.splits))

    def checked(self, num_workers: int, quiet: bool) -> "MaskTask":
        """The same task after a look at every picture and mask, with its classes. UserError for what does not fit."""
        classes = self.classes
        with track(sum(map(len, self.splits)), f"looking through {self.name}", "masks", quiet=quiet) as bar:
            for part in self.splits:
                part.classes = classes
                highest = -1
                for found in in_workers(part, range(len(part)), num_workers):
                    highest = max(highest, found)
                    bar.advance()
                if classes is None:
                    if not self.first <= highest <= MOST_CLASSES:
                        raise UserError(
                            f"The masks of '{part.masks.uri}' have class numbers up to {highest}: there must be one "
                            f"from {self.first} to {MOST_CLASSES:,}."
                        )
                    classes = counted(highest, self.first)
                    part.classes = classes
        return replace(self, classes=classes)


# ---------------------------------------------------------------------------------------------------------- layouts


def open_mask_task(task: str, data_root: str | None, channels: int) -> MaskTask:
    """The task of `--task`: a folder, a name below `data_root`, or one parquet file. UserError where it is none."""
    path = Path(task).expanduser()
    if data_root is not None and not path.exists():
        path = Path(data_root).expanduser() / task
    refuse_other_kind(path, "masks")
    if path.is_file():
        return file_task(path, channels)
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"There is no segmentation task '{task}'{f' in {data_root}' if data_root else ''}: give a folder, a "
            f"parquet file, or --data-root and a name there.{did_you_mean(path.name, beside)}"
        )
    if (path / "images").is_dir() or (path / "annotations").is_dir():
        return ade_task(path, channels)
    return parquet_task(path, channels)


def parquet_set(path: Path, channels: int) -> MaskSet:
    """A parquet file with `image` and `mask`."""
    pictures = ParquetImages(str(path), [path], channels)
    masks = ParquetImages(str(path), [path], 1, columns=MASK_COLUMNS)
    return MaskSet(pictures, masks, list(range(len(pictures))))


def parquet_task(folder: Path, channels: int) -> MaskTask:
    """{train,val?,test}.parquet."""
    for split in ("train", "test"):
        if not (folder / f"{split}.parquet").is_file():
            raise UserError(
                f"The segmentation task {folder} has no {split} split: it needs {split}.parquet with image and mask, "
                "or images/ and annotations/ as ADE20K has them."
            )
    found = {
        split: parquet_set(path, channels) if (path := folder / f"{split}.parquet").is_file() else None
        for split in ("train", "val", "test")
    }
    train, test = found["train"], found["test"]
    assert train is not None and test is not None
    return MaskTask(folder.resolve().name, train, found["val"], test, class_names(folder, 0), 0)


def file_task(path: Path, channels: int) -> MaskTask:
    """One parquet file, a fifth of which is tested on."""
    if path.suffix != ".parquet":
        raise UserError(f"'{path}' is no parquet file; give one, or the folder of a segmentation task.")
    whole = parquet_set(path, channels)
    if len(whole) < 2:
        raise UserError(f"'{path}' has one picture, so none can be set aside to test on.")
    order = uniform(SPLIT_SEED, "test split", 0, torch.arange(len(whole)), 1)[:, 0].argsort(stable=True)
    cut = max(round(TESTED * len(whole)), 1)
    test, train = (sorted(rows.tolist()) for rows in (order[:cut], order[cut:]))
    parts = [MaskSet(Rows(whole.pictures, rows), whole.masks, rows) for rows in (train, test)]
    return MaskTask(path.stem, parts[0], None, parts[1], class_names(path.parent, 0), 0)


def ade_task(folder: Path, channels: int) -> MaskTask:
    """The layout of ADE20K."""
    for kind in ("images", "annotations"):
        for part in PARTS.values():
            if not (folder / kind / part).is_dir():
                raise UserError(
                    f"The segmentation task {folder} has no {kind}/{part}: in the layout of ADE20K there are images "
                    "and annotations of both training and validation; unpack all of it."
                )
    train, test = (paired(folder, part, channels) for part in PARTS.values())
    return MaskTask(folder.resolve().name, train, None, test, class_names(folder, 1), 1)


def paired(folder: Path, part: str, channels: int) -> MaskSet:
    """A split of two folders, in which picture and mask have one name. UserError where one is without the other."""
    pictures, masks = (
        FolderImages(str(folder / kind / part), number)
        for kind, number in (("images", channels), ("annotations", 1))
    )
    picture_of, mask_of = stems(pictures), stems(masks)
    refuse_alone(picture_of, mask_of, pictures, masks, "mask")
    refuse_alone(mask_of, picture_of, masks, pictures, "picture")
    return MaskSet(pictures, masks, [mask_of[stem] for stem in picture_of])


def stems(source: FolderImages) -> dict[str, int]:
    """The index of each file by its name without ending, in order. UserError where two have the same."""
    found: dict[str, int] = {}
    for index in range(len(source)):
        stem = str(Path(source.name(index)).with_suffix(""))
        if stem in found:
            raise UserError(
                f"{source.name(found[stem])} and {source.name(index)} of {source.uri} have one name, so nobody knows "
                "which mask belongs to which picture; rename one of them."
            )
        found[stem] = index
    return found


def refuse_alone(
    here: dict[str, int], there: dict[str, int], source: FolderImages, other: FolderImages, kind: str
) -> None:
    """UserError where a file of `source` has no counterpart, a `kind`, in `other`."""
    if alone := sorted(here.keys() - there.keys()):
        others = f", and {len(alone) - 1} others have none either" if len(alone) > 1 else ""
        raise UserError(
            f"{source.name(here[alone[0]])} of {source.uri} has no {kind} in {other.uri}{others}: unpack the set "
            "again, or remove what is left over."
        )


def class_names(folder: Path, first: int) -> Classes | None:
    """What the set says its classes are called; None where it does not."""
    if (path := folder / "classes.json").is_file():
        names = read_json(path)
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise UserError(f"{path} must be a list of names, the classes in the order of their numbers.")
        return named(names, first, path.name)
    if (path := folder / "objectInfo150.txt").is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
        return named(names, first, path.name)
    return None
