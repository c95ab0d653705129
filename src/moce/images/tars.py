"""Tar files of pictures, as webdataset writes them: `wds:shards/train-{000..009}.tar`; a tar is a shard.

Members whose names agree up to the first dot belong together: a picture and, beside it, its class as text in a `.cls`
member or as "label" or "cls" in a `.json` one. Pictures are read where they lie; nothing is unpacked.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from braceexpand import braceexpand
from jaxtyping import UInt8
from torch import Tensor

from moce.errors import UserError
from moce.images.decode import decode
from moce.images.labels import classified
from moce.images.tarindex import index_of


def open_tars(uri: str, channels: int = 3) -> "TarImages":
    """`wds:GLOB`, or the path of a tar file; braces are written out first. UserError for what is not there."""
    pattern = uri.removeprefix("wds:")
    if "://" in pattern or pattern.startswith("pipe:"):
        raise UserError(f"'{uri}': only tar files on a disk of this machine are read; copy them here first.")
    if not pattern:
        raise UserError("'wds:' names no file: write wds:shards/train-{000..009}.tar or wds:shards/*.tar.")
    files: dict[Path, None] = {}
    for written in [pattern] if Path(pattern).exists() else _without_braces(uri, pattern):
        path = Path(written).expanduser()
        found = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            raise UserError(f"No file matches '{written}'" + (f" of '{uri}'." if written != pattern else "."))
        files.update(dict.fromkeys(found))
    for path in files:
        if path.is_dir():
            raise UserError(f"'{path}' is a folder: write wds:{path}/*.tar for the tar files in it.")
    return TarImages(uri, list(files), channels)


def _without_braces(uri: str, pattern: str) -> Iterator[str]:
    try:
        yield from braceexpand(pattern)
    except ValueError as error:
        text = "write {000..009} or {a,b}"
        raise UserError(f"'{uri}' has a brace without its other half: {text}.") from error


class TarImages:
    """Pictures in tar files, in the order of the files and of the members in each."""

    def __init__(self, uri: str, files: list[Path], channels: int = 3) -> None:
        self.uri, self.files, self.channels = uri, files, channels
        self._indexes = [index_of(path) for path in files]
        self._starts = np.cumsum([0] + [len(index.sizes) for index in self._indexes])
        whole = [Path(os.path.abspath(path)) for path in files]
        above = os.path.commonpath([path.parent for path in whole])
        self._shown = [path.relative_to(above).as_posix() for path in whole]
        texts: list[str] = np.concatenate([index.labels for index in self._indexes]).tolist()
        numbers = all(re.fullmatch(r"-?\d{1,18}", text) for text in texts if text)
        found = [None if not text else int(text) if numbers else text for text in texts]
        self.labels, self.classes = classified(uri, found, self.name)
        digest = hashlib.sha256()
        for shown, index in zip(self._shown, self._indexes):
            digest.update(os.fsencode(shown) + b"\0" + b"\0".join(index.names.tolist()) + b"\0\0")
            digest.update(
                index.sizes.astype("<i8").tobytes()
                + "\0".join(index.labels.tolist()).encode(errors="surrogatepass")
            )
        self._fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """(file, place in it)"""
        assert 0 <= index < len(self), index
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])

    def name(self, index: int) -> str:
        """File and member."""
        file, place = self._place(index)
        return f"{self._shown[file]} {os.fsdecode(self._indexes[file].names[place])}"

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        data = self.encoded(index)
        return decode(data, self.channels), None if self.labels is None else int(self.labels[index])

    def encoded(self, index: int) -> bytes:
        """The file of the picture."""
        file, place = self._place(index)
        known = self._indexes[file]
        try:
            # Opened for each picture: quick beside decoding one, and there is nothing to share or to run out of.
            with open(self.files[file], "rb", buffering=0) as opened:
                if os.fstat(opened.fileno()).st_mtime_ns != known.stamp[1]:
                    raise UserError(f"'{self.files[file]}' was changed while it was being read; start again.")
                return os.pread(opened.fileno(), int(known.sizes[place]), int(known.offsets[place]))
        except OSError as error:
            raise UserError(f"'{self.files[file]}' cannot be read ({error.strerror or error}).") from error

    def places(self) -> list[Path]:
        """The tar files."""
        return self.files

    def shards(self) -> list[range]:
        """The tar files."""
        return [range(int(start), int(stop)) for start, stop in pairwise(self._starts)]

    def fingerprint(self) -> str:
        """Names of the files below their common folder, names and sizes of the pictures, and labels."""
        return self._fingerprint
