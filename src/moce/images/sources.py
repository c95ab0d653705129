"""Every way pictures come in, behind one small protocol: an image is its index.

Index = offset of its shard + place in it. Labels and names are known without decoding anything; `get` decodes one picture
at its own size. Sources travel cheaply to worker processes: open files and caches stay behind.
"""

import glob
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.errors import UserError, did_you_mean
from moce.images.decode import UnreadableImage, decode

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FOLDER_SHARD = 1024  # a folder has no shards of its own: so many neighbours count as one
CACHE_BYTES = 512 * 2**20  # of compressed pictures, a process
LATER = ("wds", "hf", "torchvision")


@runtime_checkable
class Source(Protocol):
    """Pictures by index. `labels` are class numbers by index, `classes` their names; None where there are none."""

    uri: str
    classes: list[str] | None
    labels: Int64[np.ndarray, "images"] | None

    def __len__(self) -> int: ...

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels height width"], int | None]:
        """The picture at its own size, and its label. Raises `UnreadableImage`."""
        ...

    def shards(self) -> list[range]:
        """Runs of indices that are stored together; they cover 0 to len - 1 in order."""
        ...

    def name(self, index: int) -> str:
        """What to call this picture when talking to people."""
        ...

    def fingerprint(self) -> str:
        """16 hex digits of names, sizes and count: equal for equal pictures, wherever they lie."""
        ...


def open_images(uri: str, channels: int = 3) -> Source:
    """A folder, a parquet file or glob, or toyworld://KIND?split=train. `UserError` says what is wrong with `uri`."""
    scheme = uri.partition(":")[0] if ":" in uri else ""
    if scheme == "toyworld":
        from moce.images.toyworld import ToyWorld

        return ToyWorld(uri)
    if scheme in LATER:
        raise UserError(f"'{uri}': pictures from {scheme}: are not supported yet; give a folder or a parquet file.")
    if "://" in uri:
        raise UserError(f"'{uri}' is not supported; give a folder, a parquet file or glob, or toyworld://KIND.")
    path = Path(uri).expanduser()
    if path.is_dir():
        return FolderImages(uri, channels)
    if path.is_file():
        return _open_file(uri, path, channels)
    if glob.has_magic(uri):
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise UserError(f"No file matches '{uri}'.")
        return ParquetImages(uri, [Path(p) for p in found], channels)
    hint = ""
    if path.parent.is_dir():
        hint = did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
    raise UserError(f"There is no folder or file '{uri}'.{hint}")


def _open_file(uri: str, path: Path, channels: int) -> Source:
    if path.suffix.lower() in EXTENSIONS:
        raise UserError(f"'{uri}' is one picture; give the folder that it lies in.")
    return ParquetImages(uri, [path], channels)


class FolderImages:
    """All pictures below a folder, in the order of their paths. Labels are the first-level sub-folders, when all
    pictures lie in such; hidden files and folders are passed over, links followed."""

    def __init__(self, uri: str, channels: int = 3) -> None:
        self.uri, self.channels = uri, channels
        self.root = Path(uri).expanduser()
        names = sorted(_pictures_below(self.root))
        if not names:
            raise _no_pictures(uri, self.root)
        # One block of bytes and not a million strings: cheap to send to workers, and never copied by a fork.
        self._names = b"".join(names)
        self._starts = np.cumsum([0] + [len(name) for name in names])
        self.classes: list[str] | None = None
        self.labels: Int64[np.ndarray, "images"] | None = None
        if all(b"/" in name for name in names):
            tops = [name.partition(b"/")[0] for name in names]
            classes = sorted(set(tops))
            number = {top: label for label, top in enumerate(classes)}
            self.classes = [os.fsdecode(top) for top in classes]
            self.labels = np.array([number[top] for top in tops], np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def name(self, index: int) -> str:
        """The path below the folder."""
        return os.fsdecode(self._names[self._starts[index] : self._starts[index + 1]])

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels height width"], int | None]:
        """See `Source`."""
        try:
            data = (self.root / self.name(index)).read_bytes()
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error)) from error
        return decode(data, self.channels), None if self.labels is None else int(self.labels[index])

    def shards(self) -> list[range]:
        """Runs of 1024 neighbours."""
        return [range(i, min(i + FOLDER_SHARD, len(self))) for i in range(0, len(self), FOLDER_SHARD)]

    def fingerprint(self) -> str:
        """Paths below the folder, and the files' sizes."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            name = self.name(index)
            try:
                size = os.stat(self.root / name).st_size
            except OSError:
                size = -1
            digest.update(os.fsencode(name) + b"\0%d\0" % size)
        return digest.hexdigest()[:16]


def _pictures_below(root: Path) -> Iterator[bytes]:
    """Paths relative to `root`, with "/". A link that leads back to a folder above itself is not followed again."""
    open_folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while open_folders:
        below, above = open_folders.pop()
        try:
            status = os.stat(root / below)
            entries = list(os.scandir(root / below))
        except OSError as error:
            raise UserError(f"The folder '{root / below}' cannot be read ({error.strerror}).") from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                open_folders.append((path, (*above, here)))
            elif entry.name.lower().endswith(EXTENSIONS):
                yield os.fsencode(path)


def _no_pictures(uri: str, root: Path) -> UserError:
    entries = [e.name for e in os.scandir(root)]
    if not entries:
        return UserError(f"The folder '{uri}' is empty.")
    parquet = sorted(name for name in entries if name.endswith(".parquet"))
    if parquet:
        return UserError(
            f"The folder '{uri}' holds no pictures but {', '.join(parquet[:3])}; name the file or a glob of files."
        )
    kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
    return UserError(f"No picture is in the folder '{uri}' or below it (looked for {kinds}).")


class ParquetImages:
    """Parquet files with an image column: struct{bytes, path} as on the Hugging Face hub, or plain binary.

    Row groups are the shards. They are read when first needed and kept, compressed pictures only, up to 512 MiB.
    """

    def __init__(self, uri: str, files: list[Path], channels: int = 3) -> None:
        self.uri, self.files, self.channels = uri, files, channels
        self._rows: list[int] = []  # of each row group
        self._places: list[tuple[int, int]] = []  # (file, row group in it) of each row group
        labels: list[Int64[np.ndarray, "rows"] | None] = []
        self.classes: list[str] | None = None
        digest = hashlib.sha256()
        for number, path in enumerate(files):
            with _open_parquet(path) as file:
                column = _image_column(path, file.schema_arrow)
                if number == 0:
                    self.column = column
                elif column != self.column:
                    raise UserError(f"'{path}' has its pictures in '{column}', '{files[0]}' in '{self.column}'.")
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                self._places += [(number, i) for i in range(len(groups))]
                self._rows += [group.num_rows for group in groups]
                names, values = _labels(path, file)
                if number and names != self.classes:
                    raise UserError(f"'{path}' has other classes than '{files[0]}'.")
                self.classes = names
                labels.append(values)
            digest.update(os.fsencode(path.name) + b"\0" + _footer(path))
        self._starts = np.cumsum([0, *self._rows])
        if not len(self):
            raise UserError(f"'{uri}' has no rows.")
        known = [values for values in labels if values is not None]
        if known and len(known) < len(labels):
            raise UserError(f"Some files of '{uri}' have labels and some have none.")
        self.labels = np.concatenate(known) if known else None
        if self.labels is None:
            self.classes = None
        elif self.classes is None:
            self.classes = [str(label) for label in range(int(self.labels.max()) + 1)]
        elif self.labels.max() >= len(self.classes):
            raise UserError(f"'{uri}' has the label {self.labels.max()} but names for {len(self.classes)} classes only.")
        self._fingerprint = digest.hexdigest()[:16]
        self._forget()

    def _forget(self) -> None:
        self._groups: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for cache in ("_groups", "_lock"):
            del state[cache]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        """File and row in it."""
        file, start = self._file_of(index)
        return f"{self.files[file].name} row {index - start}"

    def _file_of(self, index: int) -> tuple[int, int]:
        """(number of the file, index of its first row)"""
        file = self._places[self._group_of(index)][0]
        first_group = next(i for i, place in enumerate(self._places) if place[0] == file)
        return file, int(self._starts[first_group])

    def _group_of(self, index: int) -> int:
        assert 0 <= index < len(self), index
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels height width"], int | None]:
        """See `Source`."""
        group = self._group_of(index)
        data = self._pictures(group)[index - int(self._starts[group])].as_py()
        if data is None:
            raise UnreadableImage("no bytes in this row")
        return decode(data, self.channels), None if self.labels is None else int(self.labels[index])

    def _pictures(self, group: int) -> pa.Array:
        """The compressed pictures of a row group."""
        if self._process != os.getpid():
            # A fork may have taken the lock in its locked state; what was read before is still good.
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
            file, place = self._places[group]
            try:
                with _open_parquet(self.files[file]) as opened:
                    # No threads: Arrow's do not survive a fork.
                    table = opened.read_row_group(place, columns=[self.column], use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"'{self.files[file]}' is damaged: {_first_line(error)}") from error
            pictures = table.column(0).combine_chunks()
            if isinstance(pictures, pa.ChunkedArray):
                pictures = pa.concat_arrays(pictures.chunks)
            if pa.types.is_struct(pictures.type):
                pictures = pictures.field("bytes")
            self._groups[group] = pictures
            while len(self._groups) > 1 and sum(a.nbytes for a in self._groups.values()) > CACHE_BYTES:
                self._groups.popitem(last=False)
            return pictures

    def shards(self) -> list[range]:
        """The row groups."""
        return [range(int(start), int(stop)) for start, stop in pairwise(self._starts) if stop > start]

    def fingerprint(self) -> str:
        """File names and footers, which hold the number, sizes and extreme values of all columns."""
        return self._fingerprint


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{path}' is not a parquet file or is cut off: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _footer(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(path: Path, schema: pa.Schema) -> str:
    """'image' where it holds pictures, else the only column that does."""
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    if "image" in columns:
        return "image"
    if len(columns) != 1:
        fault = "no image column" if not columns else "several image columns, none of them called 'image'"
        raise UserError(f"'{path}' has {fault}: its columns are {', '.join(f'{f.name} ({f.type})' for f in schema)}.")
    return columns[0]


def _labels(path: Path, file: pq.ParquetFile) -> tuple[list[str] | None, Int64[np.ndarray, "rows"] | None]:
    """(class names where the metadata has them, labels) of one file; -1 everywhere, as in hub test sets, means none."""
    schema = file.schema_arrow
    index = schema.get_field_index("label")
    if index < 0 or not pa.types.is_integer(schema.field(index).type):
        return None, None
    names = _class_names(schema)
    column = file.read(columns=["label"], use_threads=False).column(0)
    labels = column.cast(pa.int64()).fill_null(-1).to_numpy().copy()
    if not len(labels) or labels.max() < 0:
        return names, None
    if labels.min() < 0:
        raise UserError(f"'{path}' has labels, but none in row {int((labels < 0).argmax())}.")
    return names, labels


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The ClassLabel names that the `datasets` library leaves in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
