"""Prepared folders (`moce prepare`): the file that says what they hold, and opening them.

`prepared.json` is written after every file of pictures, so it always tells how far the work is: what it does not name
is not there yet. A finished folder is a source like any other; the index of a picture is that of the original
without the unreadable ones.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.engine.files import read_json, write_json
from moce.errors import UserError
from moce.images.parquet import ParquetImages
from moce.images.sources import Source, even_shards
from moce.images.tars import TarImages

MARKER = "prepared.json"
PIXELS, LABELS, NAMES = "images.npy", "labels.npy", "names.txt"  # of the format `array`
KIND = "moce prepared pictures"


@dataclasses.dataclass
class Prepared:
    """The content of prepared.json, a function of the pictures and the options alone."""

    format: str
    short_side: int
    quality: int
    channels: int
    source: str
    num_source: int  # pictures that there are to prepare
    classes: list[str] | None
    seen: int = 0  # pictures of the source that are done with
    num_images: int = 0
    copied: int = 0  # JPEGs that were kept byte for byte
    bytes_before: int | None = 0
    bytes_after: int = 0
    digest: str = ""  # of all pictures and labels in their order
    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # {file, num_images, bytes}
    unreadable: list[tuple[int, str]] = dataclasses.field(
        default_factory=list
    )  # (index in the source, reason)
    finished: bool = False

    def add_file(self, path: Path, num_images: int) -> None:
        """One more file is whole."""
        size = path.stat().st_size
        self.shards.append({"file": path.name, "num_images": num_images, "bytes": size})
        self.bytes_after += size

    def write(self, folder: Path) -> None:
        """Say in `folder` what it holds now."""
        write_json(folder / MARKER, {"kind": KIND, "schema": 1, **dataclasses.asdict(self)})


def is_prepared(folder: Path) -> bool:
    """Whether `moce prepare` made this folder, finished or not."""
    if not (folder / MARKER).is_file():
        return False
    content = read_json(folder / MARKER)
    return isinstance(content, dict) and content.get("kind") == KIND


def read_prepared(folder: Path) -> Prepared:
    """What a prepared folder says of itself."""
    content = {
        name: value for name, value in read_json(folder / MARKER).items() if name not in ("kind", "schema")
    }
    try:
        content["unreadable"] = [(index, reason) for index, reason in content["unreadable"]]
        return Prepared(**content)
    except (TypeError, KeyError):
        raise UserError(
            f"{folder / MARKER} is of another version of moce; prepare the pictures again."
        ) from None


def open_prepared(uri: str, folder: Path, channels: int = 3) -> Source:
    """The source of a prepared folder; UserError when it is not finished or a file of it is missing."""
    about = read_prepared(folder)
    if not about.finished:
        raise UserError(
            f"'{uri}' is not finished ({about.seen:,} of {about.num_source:,} pictures are prepared); "
            "run its `moce prepare` command again first."
        )
    files = [folder / shard["file"] for shard in about.shards]
    for path in files:
        if not path.is_file():
            raise UserError(f"'{uri}' lacks its file {path.name}; prepare the pictures again.")
    if about.format == "array":
        return ArrayImages(uri, folder, about, channels)
    if about.format == "parquet":
        return PreparedParquet(uri, files, about, channels)
    return PreparedTars(uri, files, about, channels)


class PreparedParquet(ParquetImages):
    """Parquet files whose pictures are called as they were in the source."""

    def __init__(self, uri: str, files: list[Path], about: Prepared, channels: int = 3) -> None:
        super().__init__(uri, files, channels)
        self._fingerprint = about.digest

    def name(self, index: int) -> str:
        """The original's name, and the row that it is in now."""
        return f"{self.path(index)} ({super().name(index)})"


class PreparedTars(TarImages):
    """Tar files whose class numbers have names again, which tar files do not hold."""

    def __init__(self, uri: str, files: list[Path], about: Prepared, channels: int = 3) -> None:
        super().__init__(uri, files, channels)
        self.classes, self._fingerprint = about.classes, about.digest


class ArrayImages:
    """Pictures of one size in a memory map: nothing is decoded, and nothing read that is not asked for."""

    def __init__(self, uri: str, folder: Path, about: Prepared, channels: int = 3) -> None:
        if about.channels != channels:
            raise UserError(
                f"'{uri}' holds pictures of {about.channels} channels and {channels} are needed; "
                f"prepare them with --channels {channels}."
            )
        self.uri, self.folder, self.classes = uri, folder, about.classes
        self.labels: Int64[np.ndarray, "images"] | None = None
        if about.classes is not None:
            self.labels = _opened(folder / LABELS)
        self._digest = about.digest
        self._map()
        if len(self) != about.num_images or (self.labels is not None and len(self.labels) != len(self)):
            raise UserError(
                f"'{folder / PIXELS}' holds {len(self):,} pictures, {MARKER} says {about.num_images:,}."
            )
        # One block of bytes and where its lines end, as a folder keeps its names.
        self._names = _names(folder / NAMES, len(self))
        self._ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == ord("\n"))

    def _map(self) -> None:
        # Private to the process and so writable, which torch wants of an array; nothing of it reaches the file.
        self._images: Tensor = torch.from_numpy(_opened(self.folder / PIXELS, "c"))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        return len(self._images)

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        return self._images[index], None if self.labels is None else int(self.labels[index])

    def array(self) -> UInt8[Tensor, "images channels rows columns"]:
        """All pictures, in the file: a part of it is read when it is used."""
        return self._images

    def places(self) -> list[Path]:
        """The folder."""
        return [self.folder]

    def shards(self) -> list[range]:
        """Runs of 1024 neighbours."""
        return even_shards(len(self))

    def name(self, index: int) -> str:
        """The original's name."""
        assert 0 <= index < len(self), index
        start = int(self._ends[index - 1]) + 1 if index else 0
        return self._names[start : int(self._ends[index])].decode()

    def fingerprint(self) -> str:
        """Of all pixels and labels, computed when they were written."""
        return self._digest


def _names(path: Path, num_images: int) -> bytes:
    try:
        names = path.read_bytes()
        names.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"'{path}' is damaged ({reason}); prepare the pictures again.") from None
    found = names.count(b"\n")
    if found != num_images:
        raise UserError(
            f"'{path}' is damaged ({found:,} names of {num_images:,} pictures); prepare the pictures again."
        )
    return names


def _opened(path: Path, mmap_mode: Any = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode)
    except (OSError, ValueError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"'{path}' is damaged ({reason}); prepare the pictures again.") from None
