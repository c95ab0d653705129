"""Some classes of other pictures as a source of its own: `classes:FILE:IMAGES`, FILE a class on each line.

Pictures keep their order and names; indices and class numbers count the chosen ones alone.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.errors import UserError, did_you_mean
from moce.images.sources import Source, open_images

SCHEME = "classes:"


class Subset:
    """The pictures of a source at some indices, in ascending order."""

    def __init__(
        self, uri: str, source: Source, rows: Int64[np.ndarray, " images"], files: Sequence[Path] = ()
    ) -> None:
        assert len(rows) and (np.diff(rows) > 0).all(), "indices have to ascend"
        self.uri, self.source, self.rows, self.files = uri, source, rows, list(files)
        self.channels = getattr(source, "channels", 3)
        self.whole_shards = bool(getattr(source, "whole_shards", False))
        self.classes: list[str] | None = None
        self.labels: Int64[np.ndarray, "images"] | None = None
        if source.labels is not None:
            numbers, labels = np.unique(source.labels[rows], return_inverse=True)
            self.labels = labels.astype(np.int64)
            self.classes = [str(n) if source.classes is None else source.classes[n] for n in numbers]

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        image = self.source.get(self._row(index))[0]
        return image, None if self.labels is None else int(self.labels[index])

    def name(self, index: int) -> str:
        """As in the whole source."""
        return self.source.name(self._row(index))

    def encoded(self, index: int) -> bytes | None:
        """The file of the picture; None where there is none to be had."""
        encoded = getattr(self.source, "encoded", None)
        return None if encoded is None else encoded(self._row(index))

    def path(self, index: int) -> str | None:
        """The name that is kept beside the picture; None where there is none."""
        path = getattr(self.source, "path", None)
        return None if path is None else path(self._row(index))

    def places(self) -> list[Path]:
        """What the whole source reads, and the file that names the classes."""
        places = getattr(self.source, "places", None)
        return [*(places() if places else []), *self.files]

    def shards(self) -> list[range]:
        """What is left of the whole source's shards."""
        ends = np.searchsorted(self.rows, [shard.stop for shard in self.source.shards()]).tolist()
        return [range(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True) if b > a]

    def fingerprint(self) -> str:
        """Of the whole source and the indices."""
        return hashlib.sha256(self.source.fingerprint().encode() + self.rows.tobytes()).hexdigest()[:16]

    def _row(self, index: int) -> int:
        assert 0 <= index < len(self), index
        return int(self.rows[index])


class ArraySubset(Subset):
    """The same of a source that makes its pictures itself."""

    def array(self) -> UInt8[Tensor, "images channels rows columns"]:
        """All pictures."""
        return self.source.array()[torch.from_numpy(self.rows)]  # type: ignore[attr-defined]


def of_classes(uri: str, source: Source, names: Sequence[str], files: Sequence[Path] = ()) -> Subset:
    """The pictures of the named classes, which have to be there."""
    assert source.labels is not None and source.classes is not None
    numbers = [source.classes.index(name) for name in names]
    rows = np.flatnonzero(np.isin(source.labels, numbers))
    kind = ArraySubset if hasattr(source, "array") else Subset
    return kind(uri, source, rows, files)


def open_classes(uri: str, channels: int = 3) -> Subset:
    """`classes:FILE:IMAGES`; UserError for a file that cannot be read or a class without pictures."""
    file, _, inner = uri.removeprefix(SCHEME).partition(":")
    if not file or not inner:
        raise UserError(
            f"'{uri}': write classes:FILE:IMAGES, a file with a class on each line and the pictures."
        )
    names = numbered_lines(file)
    if not names:
        raise UserError(f"The file of classes '{file}' names no class.")
    source = open_images(inner, channels)
    if source.labels is None or source.classes is None:
        raise UserError(f"The pictures of '{inner}' have no labels, so none can be chosen by class.")
    present = [source.classes[number] for number in np.unique(source.labels)]
    for number, name in names:
        require_class(name, present, f"{file}, line {number}")
    return of_classes(uri, source, [name for _, name in names], [Path(file).expanduser()])


def classes_uri(file: str | Path, images: str) -> str:
    """What to write for the classes in `file` of `images`."""
    return f"{SCHEME}{file}:{images}"


def numbered_lines(path: str | Path) -> list[tuple[int, str]]:
    """(number, text) of a file's lines that are neither empty nor comments (#). UserError for no such file."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise UserError(f"The file of classes '{path}' cannot be read ({reason}).") from None
    stripped = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]


def require_class(name: str, classes: Sequence[str], where: str) -> None:
    """UserError where there is no class of that name."""
    if name not in classes:
        raise UserError(f"{where}: there is no class '{name}'.{did_you_mean(name, classes)}")
