"""The eleven tasks of Ericsson et al. (CVPR 2021, How Well Do Self-Supervised Models Transfer?) and ImageNet by name.

Which pictures train and which test, the metric and the number of classes are theirs. Files lie below the data root as
torchvision's classes expect and download them:

    aircraft    fgvc-aircraft-2013b/     its train, val and test; variants are the classes
    caltech101  caltech101/              30 of each class train, drawn once for all by the names of their files; the
                                         background is a class unless the task is written caltech101?classes=101
    cars        stanford_cars/           its train and test
    cifar10     cifar-10-batches-py/     its train and test; cifar100 in cifar-100-python/
    dtd         dtd/dtd/                 the first of its ten splits into train, val and test
    flowers102  flowers-102/             its train, val and test
    food101     food-101/                its train and test
    pets        oxford-iiit-pet/         its trainval and test
    sun397      SUN397/                  the first of its ten partitions: 50 of each class train, 50 test
    voc2007     VOCdevkit/VOC2007/       its train, val and test; several classes a picture
    imagenet1k  imagenet1k/              train/WNID and val/WNID, which is the test split

Where there is no val, 20 % of train are it (tasks.py). Caltech-101 and ImageNet are read as folders: torchvision drops
the background class of the one, and wants the development kit of the other.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Int64

from moce.engine.files import sha256_of
from moce.errors import UserError
from moce.images.part import Part
from moce.images.sources import FolderImages, Source
from moce.images.torchvision_sets import TorchvisionImages
from moce.images.voc import VOCImages

CALTECH_TRAIN = 30  # pictures of each class
CALTECH_SEED = 0
BACKGROUND = "BACKGROUND_Google"


@dataclass(frozen=True)
class Canonical:
    """One data set: `splits` are torchvision's class and options, `needs` the files without which it cannot be read."""

    metric: str
    num_classes: int
    needs: tuple[str, ...]
    splits: dict[str, str]
    by_hand: tuple[str, ...] = ()  # of `needs`, what torchvision cannot download


def _below(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


def _own_splits(kind: str, *names: str) -> dict[str, str]:
    return {name: f"{kind}?split={name}" for name in names}


_CARS = _below(
    "stanford_cars",
    "devkit/cars_meta.mat",
    "devkit/cars_train_annos.mat",
    "cars_test_annos_withlabels.mat",
    "cars_train",
    "cars_test",
)
_PARTITIONS = _below("SUN397/Partitions", "Training_01.txt", "Testing_01.txt")
_IMAGENET = _below("imagenet1k", "train", "val")
_CIFAR = {"train": "train=true", "test": "train=false"}

SETS: dict[str, Canonical] = {
    "aircraft": Canonical(
        "mean_per_class",
        100,
        _below("fgvc-aircraft-2013b/data", "variants.txt")
        + tuple(f"fgvc-aircraft-2013b/data/images_variant_{split}.txt" for split in ("train", "val", "test")),
        _own_splits("FGVCAircraft", "train", "val", "test"),
    ),
    "caltech101": Canonical(
        "mean_per_class", 102, _below("caltech101", "101_ObjectCategories"), {"all": "Caltech101"}
    ),
    "cars": Canonical("top1", 196, _CARS, _own_splits("StanfordCars", "train", "test"), by_hand=_CARS),
    "cifar10": Canonical(
        "top1",
        10,
        _below("cifar-10-batches-py", "batches.meta", "test_batch")
        + tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        {split: f"CIFAR10?{option}" for split, option in _CIFAR.items()},
    ),
    "cifar100": Canonical(
        "top1",
        100,
        _below("cifar-100-python", "meta", "train", "test"),
        {split: f"CIFAR100?{option}" for split, option in _CIFAR.items()},
    ),
    "dtd": Canonical(
        "top1",
        47,
        _below("dtd/dtd/labels", "train1.txt", "val1.txt", "test1.txt"),
        _own_splits("DTD", "train", "val", "test"),
    ),
    "flowers102": Canonical(
        "mean_per_class",
        102,
        _below("flowers-102", "imagelabels.mat", "setid.mat", "jpg"),
        _own_splits("Flowers102", "train", "val", "test"),
    ),
    "food101": Canonical(
        "top1",
        101,
        _below("food-101", "meta/train.json", "meta/test.json", "images"),
        _own_splits("Food101", "train", "test"),
    ),
    "pets": Canonical(
        "mean_per_class",
        37,
        _below("oxford-iiit-pet", "annotations/trainval.txt", "annotations/test.txt", "images"),
        {"train": "OxfordIIITPet?split=trainval", "test": "OxfordIIITPet?split=test"},
    ),
    "sun397": Canonical(
        "top1",
        397,
        ("SUN397/ClassName.txt", *_PARTITIONS),
        {"all": "SUN397"},
        by_hand=_PARTITIONS,
    ),
    "voc2007": Canonical(
        "mAP11",
        20,
        _below("VOCdevkit/VOC2007", "JPEGImages", "Annotations")
        + tuple(f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt" for split in ("train", "test", "val")),
        # train and val come from one archive, test from another.
        {split: f"VOCDetection?year=2007&image_set={split}" for split in ("train", "test", "val")},
    ),
    "imagenet1k": Canonical("top1", 1000, _IMAGENET, {}, by_hand=_IMAGENET),
}


def is_there(name: str, root: Path) -> bool:
    """Whether any of the data set lies below the root: a part of it is reported when it is opened."""
    return any((root / path).exists() for path in SETS[name].needs)


def open_canonical(
    name: str, option: str, root: Path, channels: int = 3, download: bool = False
) -> tuple[dict[str, Source], int]:
    """({train, test and perhaps val}, number of classes). With `download` torchvision gets what is not there.

    UserError for an option that the set has not, and for files that are missing.
    """
    chosen = SETS[name]
    options = {"": chosen.num_classes} | (
        {"classes=101": 101, "classes=102": 102} if name == "caltech101" else {}
    )
    if option not in options:
        raise UserError(
            f"There is no task '{name}?{option}'; only caltech101?classes=101 has such an option."
        )
    if missing_files(chosen, root) and download:
        _download(chosen, root)
    if missing := missing_files(chosen, root):
        how = "torchvision cannot download it, so it has to be put there by hand"
        if missing[0] not in chosen.by_hand:
            how = "unpack the data set there" if download else "unpack the data set there, or add --download"
        raise UserError(
            f"The task {name} needs {missing[0]} in {root} (--data-root), which is not there: {how}."
        )
    if name == "caltech101":
        return _caltech(root, channels, options[option]), options[option]
    if name == "imagenet1k":
        folders = {"train": "train", "test": "val"}
        found: dict[str, Source] = {
            split: FolderImages(str(root / "imagenet1k" / folder), channels)
            for split, folder in folders.items()
        }
        return found, chosen.num_classes
    if name == "sun397":
        return _sun(root, channels), chosen.num_classes
    kind = VOCImages if name == "voc2007" else TorchvisionImages
    opened = {split: kind(_uri(what, root), channels) for split, what in chosen.splits.items()}
    for source in opened.values():
        if absent := source.absent():
            raise UserError(incomplete(name, root, len(absent), len(source), absent[0]))
    return dict(opened), chosen.num_classes


def incomplete(name: str, root: Path, num_missing: int, num_images: int, first: str) -> str:
    """The sentence for a data set that lists pictures which are not there."""
    return (
        f"The task {name} is not unpacked completely: {num_missing:,} of the {num_images:,} pictures of a split are "
        f"not in {root} (first: {first}); unpack its archive again."
    )


def missing_files(chosen: Canonical, root: Path) -> list[str]:
    """What of its files is not there."""
    return [path for path in chosen.needs if not (root / path).exists()]


def _uri(what: str, root: Path, options: str = "") -> str:
    kind, _, own = what.partition("?")
    return f"torchvision://{kind}?" + "&".join(filter(None, [f"root={quote(str(root))}", own, options]))


def _download(chosen: Canonical, root: Path) -> None:
    """Have torchvision download and unpack it, archive by archive, as long as something is missing."""
    for what in chosen.splits.values():
        if set(missing_files(chosen, root)) - set(chosen.by_hand):
            TorchvisionImages(_uri(what, root, "download=true"))


def _caltech(root: Path, channels: int, num_classes: int) -> dict[str, Source]:
    """The 30 pictures of each class whose names have the smallest hashes, and the others.

    So the split of a class does not depend on the other classes, and a picture more or less moves at most one other.
    """
    whole = FolderImages(str(root / "caltech101" / "101_ObjectCategories"), channels)
    if whole.labels is None or whole.classes is None:
        raise UserError(
            f"Some pictures in {whole.uri} lie in no folder of a class: unpack Caltech-101 there again."
        )
    names = [n for n in whole.classes if num_classes == 102 or n != BACKGROUND]
    draw = [
        sha256_of(f"Caltech-101 split {CALTECH_SEED}", os.fsencode(whole.name(i))) for i in range(len(whole))
    ]
    order = np.argsort(draw, kind="stable")
    rows: dict[str, list[Int64[np.ndarray, " rows"]]] = {"train": [], "test": []}
    for name in names:
        own = order[whole.labels[order] == whole.classes.index(name)]
        if len(own) <= CALTECH_TRAIN:
            raise UserError(
                f"The task caltech101 is not unpacked completely: the class {name} in {whole.uri} has {len(own)} "
                f"pictures, and {CALTECH_TRAIN} are to train and at least one to test; unpack its archive again."
            )
        rows["train"].append(np.sort(own[:CALTECH_TRAIN]))
        rows["test"].append(np.sort(own[CALTECH_TRAIN:]))
    found: dict[str, Source] = {}
    for split, parts in rows.items():
        labels = np.concatenate([np.full(len(part), label) for label, part in enumerate(parts)])
        found[split] = Part(whole, names, labels, np.concatenate(parts))
    return found


def _sun(root: Path, channels: int) -> dict[str, Source]:
    """The pictures that the first partition lists, in its order: torchvision's is that of the disk."""
    whole = TorchvisionImages(_uri("SUN397", root), channels)
    assert whole.labels is not None
    place = {whole.name(index): index for index in range(len(whole))}
    found: dict[str, Source] = {}
    for split, path in zip(("train", "test"), _PARTITIONS):
        lines = (root / path).read_text(errors="replace").splitlines()
        listed = [f"SUN397{line.strip()}" for line in lines if line.strip()]
        absent = [name for name in listed if name not in place]
        if absent or not listed:
            raise UserError(incomplete("sun397", root, len(absent), len(listed), (absent or [path])[0]))
        rows = np.array([place[name] for name in listed], np.int64)
        found[split] = Part(whole, whole.classes, whole.labels[rows], rows)
    return found
