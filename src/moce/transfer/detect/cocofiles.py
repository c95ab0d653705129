"""Where a set in COCO's format lies: the JSON of each split, and its pictures in a folder or a zip.

The JSON is instances_{train,val,test}.json, with a year or without (instances_train2017.json), in the folder or its
annotations/. Both splits are of one year, the latest of which both are there. The pictures lie under their file_name in
the folder, images/, train2017/ or images/train2017/, or in images.zip or train2017.zip under the same.
"""

import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from moce.errors import UserError, did_you_mean
from moce.images.annotated import COCO_FILE, refuse_other_kind
from moce.images.arrays import UnreadableImage
from moce.images.sources import bytes_of

SHOWN = 3  # names in a sentence


def coco_folder(task: str, root: str | None) -> Path:
    """The folder of `--task`, by its path or by its name below `--data-root`; UserError when there is none."""
    folder = Path(task).expanduser()
    if folder.is_dir():
        return folder
    refuse_other_kind(folder, "boxes")
    if root is None:
        beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(
            f"There is no folder '{task}' of a set in COCO's format.{did_you_mean(folder.name, beside)}"
        )
    above = Path(root).expanduser()
    if not above.is_dir():
        raise UserError(f"There is no folder {root} (--data-root).")
    if not (above / task).is_dir():
        there = sorted(p.name for p in above.iterdir() if p.is_dir() and split_files(p))
        listed = f"; there are {', '.join(there)}" if there else ""
        raise UserError(f"There is no set '{task}' in {root}{listed}.{did_you_mean(task, there)}")
    return above / task


def split_files(folder: Path) -> list[Path]:
    """The JSON files of all splits and years, in the folder and its annotations/."""
    places = [place for place in (folder, folder / "annotations") if place.is_dir()]
    return [p for place in places for p in sorted(place.iterdir()) if COCO_FILE.fullmatch(p.name)]


def train_and_test(folder: Path) -> tuple[Path, Path, str]:
    """(JSON to learn from, JSON to test on, the latter's split): test or else val, of the latest year with both.

    Years are never mixed: pictures of val2014 are in train2017. UserError where no year has both, or a file is there
    twice.
    """
    years: dict[str, dict[str, Path]] = {}
    for path in split_files(folder):
        match = COCO_FILE.fullmatch(path.name)
        assert match is not None
        split, year = match[1], match[2] or ""
        if split in years.setdefault(year, {}):
            raise UserError(
                f"The set {folder} has {path.name} twice, in it and in its annotations/: nobody knows which one is "
                "meant; remove one."
            )
        years[year][split] = path
    for _, own in sorted(years.items(), reverse=True):
        tested_on = "test" if "test" in own else "val"
        if {"train", tested_on} <= own.keys():
            return own["train"], own[tested_on], tested_on
    refuse_other_kind(folder, "boxes")
    there = {split for own in years.values() for split in own}
    listed = ", ".join(path.name for own in years.values() for path in own.values()) or "no such file"
    if "train" in there and there > {"train"}:
        raise UserError(
            f"The set {folder} has no year with both a train and a val or test split (there is {listed}): they must "
            "be of one year, since the same pictures are in train of one and val of another."
        )
    lacking, file = ("val or test", "val") if "train" in there else ("train", "train")
    raise UserError(
        f"The set {folder} has no {lacking} split: it needs instances_{file}.json, in it or in its annotations/ "
        f"(there is {listed})."
    )


class Pictures:
    """The pictures of a split by their names: files below a folder, or members of a zip."""

    def __init__(self, place: Path, prefix: str) -> None:
        self.place, self.prefix = place, prefix
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zip": None}

    def _opened(self) -> zipfile.ZipFile:
        # A forked worker must not share the position in the file with its parent.
        if self._zip is None or self._zip[0] != os.getpid():
            try:
                self._zip = (os.getpid(), zipfile.ZipFile(self.place))
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"'{self.place}' is not a zip file or is cut off: {error}.") from None
        return self._zip[1]

    def there(self, names: Sequence[str]) -> int:
        """How many of these pictures are here."""
        if self.place.is_dir():
            return sum((self.place / self.prefix / name).is_file() for name in names)
        members = set(self._opened().namelist())
        return sum(self.prefix + name in members for name in names)

    def lacking(self, names: Sequence[str]) -> list[str]:
        """Those of them that are not."""
        return (
            [name for name in names if not self.there([name])]
            if self.place.is_dir()
            else self._not_members(names)
        )

    def _not_members(self, names: Sequence[str]) -> list[str]:
        members = set(self._opened().namelist())
        return [name for name in names if self.prefix + name not in members]

    def num_bytes(self, name: str) -> int:
        """The size of a picture's file."""
        if self.place.is_dir():
            return (self.place / self.prefix / name).stat().st_size
        return self._opened().getinfo(self.prefix + name).file_size

    def read(self, name: str) -> bytes:
        """The file of a picture. Raises `UnreadableImage` for one that is broken."""
        if self.place.is_dir():
            return bytes_of(self.place / self.prefix / name)
        try:
            return self._opened().read(self.prefix + name)
        except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError, EOFError) as error:
            raise UnreadableImage(f"in {self.place.name}: {error}") from error


def find_pictures(folder: Path, annotations: Path, names: Sequence[str]) -> Pictures:
    """Where the pictures lie that a split's JSON names; UserError where one is missing or its path leads out."""
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(
                f"{annotations} names the picture '{name}', whose path leads out of the set; such a file is "
                "not to be trusted."
            )
    best = max(places(folder, annotations), key=lambda place: place.there(names))
    if lacking := best.lacking(names):
        if len(lacking) == len(names):
            raise UserError(
                f"None of the {len(names)} pictures of {annotations} is in {folder}, its images/ or its zip files "
                f"(such as '{names[0]}'): put them there."
            )
        raise UserError(
            f"{len(lacking)} of the {len(names)} pictures of {annotations} are not in {best.place} (first: "
            f"{', '.join(lacking[:SHOWN])}): unpack the whole set there."
        )
    return best


def places(folder: Path, annotations: Path) -> Iterator[Pictures]:
    """Everywhere that a split's pictures may lie."""
    match = COCO_FILE.fullmatch(annotations.name)
    assert match is not None
    split = match[1] + (match[2] or "")
    for prefix in ("", "images/", f"{split}/", f"images/{split}/"):
        yield Pictures(folder, prefix)
        for archive in (folder / "images.zip", folder / f"{split}.zip"):
            if archive.is_file():
                yield Pictures(archive, prefix)
