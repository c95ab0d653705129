"""Parquet files of pictures, as on the Hugging Face hub; a picture is found by its row, row groups are the shards."""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.errors import UserError
from moce.images.annotated import holds_bytes
from moce.images.arrays import DTYPES, from_lists, numbers_of
from moce.images.decode import UnreadableImage, decode
from moce.images.labels import class_names, refuse_large

CACHE_BYTES = 512 * 2**20  # of pictures as they are stored, a process


class ParquetImages:
    """Parquet files with an image column: struct{bytes, path} as on the Hugging Face hub, plain binary, or arrays.

    Arrays are lists of lists (of lists) of uint8 or uint16, as `datasets` writes Array2D and Array3D. Row groups are
    the shards. They are read when first needed and kept, as they are stored, up to 512 MiB.
    """

    whole_shards = True

    def __init__(self, uri: str, files: list[Path], channels: int = 3, columns: tuple[str, ...] = ()) -> None:
        """The pictures of the first of `columns` that is there; by default those of the image column."""
        self.uri, self.files, self.channels = uri, files, channels
        about = [_about(path, columns) for path in files]
        self.column = about[0].column
        for path, other in zip(files, about):
            if other.column != self.column:
                raise UserError(
                    f"'{path}' has its pictures in '{other.column}', '{files[0]}' in '{self.column}'."
                )
            if other.classes != about[0].classes:
                raise UserError(
                    f"'{path}' has other classes than '{files[0]}'; give files of one set, or files without labels."
                )
        # Of each row group: which file, which group in it, the index of its first row.
        self._places = [(file, i) for file, other in enumerate(about) for i in range(len(other.rows))]
        self._starts = np.cumsum([0] + [rows for other in about for rows in other.rows])
        self._file_starts = np.cumsum([0] + [sum(other.rows) for other in about])
        if not len(self):
            raise UserError(f"'{uri}' has no rows.")
        self.labels = _joined_labels(uri, about)
        self.classes = None if self.labels is None else class_names(uri, about[0].classes, self.labels)
        parts = (os.fsencode(path.name) + b"\0" + other.footer for path, other in zip(files, about))
        self._fingerprint = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
        self._forget()

    def _forget(self) -> None:
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._kept_bytes = 0  # a running total: adding them up takes longer than decoding a picture
        self._footers: dict[
            int, pq.FileMetaData
        ] = {}  # by file: parsing one takes as long as reading a picture
        self._paths: tuple[int, list[str | None]] | None = None  # of the group that was asked for last
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for cache in ("_groups", "_footers", "_paths", "_lock"):
            del state[cache]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        """File and row in it."""
        file = int(np.searchsorted(self._file_starts, index, side="right")) - 1
        return f"{self.files[file].name} row {index - int(self._file_starts[file])}"

    def _group_of(self, index: int) -> int:
        assert 0 <= index < len(self), index
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        group = self._group_of(index)
        label = None if self.labels is None else int(self.labels[index])
        stored = self._pictures(group)[index - int(self._starts[group])]
        if not stored.is_valid:
            raise UnreadableImage("no bytes in this row")
        if isinstance(stored, pa.ListScalar):  # of every kind of list
            return from_lists(stored.values, self.channels), label
        return decode(stored.as_py(), self.channels), label

    def encoded(self, index: int) -> bytes | None:
        """The file of the picture; None where there is none to be had."""
        group = self._group_of(index)
        stored = self._pictures(group)[index - int(self._starts[group])]
        if isinstance(stored, pa.ListScalar):  # pixels, each of which would become a Python number
            return None
        data = stored.as_py()
        return data if isinstance(data, bytes) else None

    def path(self, index: int) -> str | None:
        """The name that is kept beside the picture; None where there is none."""
        group = self._group_of(index)
        if self._paths is None or self._paths[0] != group:
            file, place = self._places[group]
            with _open_parquet(self.files[file], self._footers.get(file)) as opened:
                # An inner column is named by its way; where it is missing, nothing is read.
                table = opened.read_row_group(place, columns=[f"{self.column}.path"], use_threads=False)
            rows = table.column(0).to_pylist() if table.num_columns else [None] * table.num_rows
            self._paths = group, [row.get("path") if isinstance(row, dict) else None for row in rows]
        found = self._paths[1][index - int(self._starts[group])]
        return found if isinstance(found, str) else None

    def _pictures(self, group: int) -> pa.ChunkedArray:
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
                with _open_parquet(self.files[file], self._footers.get(file)) as opened:
                    self._footers[file] = opened.metadata
                    # No threads: Arrow's do not survive a fork.
                    table = opened.read_row_group(place, columns=[self.column], use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"'{self.files[file]}' is damaged: {_first_line(error)}") from error
            pictures = table.column(0)
            if pa.types.is_struct(pictures.type):
                pictures = pc.struct_field(pictures, "bytes")
            if isinstance(pictures.type, pa.BaseExtensionType):  # where `datasets` is imported
                pictures = pa.chunked_array(
                    [chunk.storage for chunk in pictures.chunks], pictures.type.storage_type
                )
            self._groups[group] = pictures
            self._kept_bytes += pictures.nbytes
            while len(self._groups) > 1 and self._kept_bytes > CACHE_BYTES:
                self._kept_bytes -= self._groups.popitem(last=False)[1].nbytes
            return pictures

    def places(self) -> list[Path]:
        """The files."""
        return self.files

    def shards(self) -> list[range]:
        """The row groups."""
        return [range(int(start), int(stop)) for start, stop in pairwise(self._starts) if stop > start]

    def fingerprint(self) -> str:
        """File names and footers, which hold the number, sizes and extreme values of all columns."""
        return self._fingerprint


class _About(NamedTuple):
    """What a file tells without reading its pictures."""

    column: str
    rows: list[int]
    classes: list[str] | None
    labels: Int64[np.ndarray, "rows"] | None
    footer: bytes


def _about(path: Path, columns: tuple[str, ...] = ()) -> _About:
    with _open_parquet(path) as file:
        column = (
            _column_of(path, file.schema_arrow, columns)
            if columns
            else _image_column(path, file.schema_arrow)
        )
        rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        try:
            labels = _labels(path, file)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"'{path}' is damaged: {_first_line(error)}") from error
        return _About(column, rows, _class_names(file.schema_arrow), labels, _footer(path))


def _open_parquet(path: Path, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, metadata=footer, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{path}' is not a parquet file or is cut off: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def _footer(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)


def _image_column(path: Path, schema: pa.Schema) -> str:
    """'image' where it holds pictures, else the only column that does; encoded ones go before arrays."""
    numbers = {field.name: numbers_of(field.type) for field in schema}
    arrays = [name for name, kind in numbers.items() if str(kind) in DTYPES]
    columns = [field.name for field in schema if holds_bytes(field.type)]
    if "image" in columns + arrays:
        return "image"
    columns = columns or arrays
    if not columns and (other := [name for name, kind in numbers.items() if kind is not None]):
        raise UserError(
            f"'{path}' has arrays of {numbers[other[0]]} in '{other[0]}', whose range nobody knows: store pictures as "
            "uint8 or uint16."
        )
    if len(columns) != 1:
        fault = "no image column" if not columns else "several image columns, none of them called 'image'"
        raise UserError(
            f"'{path}' has {fault}: its columns are {', '.join(f'{f.name} ({f.type})' for f in schema)}."
        )
    return columns[0]


def _column_of(path: Path, schema: pa.Schema, columns: tuple[str, ...]) -> str:
    """The first of these columns that is there and holds encoded pictures."""
    for name in columns:
        index = schema.get_field_index(name)
        if index >= 0 and holds_bytes(schema.field(index).type):
            return name
    raise UserError(
        f"'{path}' has no column '{columns[0]}' of pictures: its columns are "
        f"{', '.join(f'{f.name} ({f.type})' for f in schema)}."
    )


def _labels(path: Path, file: pq.ParquetFile) -> Int64[np.ndarray, "rows"] | None:
    """The column `label` where it holds whole numbers; -1 everywhere, as in hub test sets, means no labels."""
    index = file.schema_arrow.get_field_index("label")
    if index < 0 or not pa.types.is_integer(file.schema_arrow.field(index).type):
        return None
    column = file.read(columns=["label"], use_threads=False).column(0)
    # Through Python's numbers: arrow's own ways to numpy import pandas, where there is one, for two seconds.
    found = [-1 if label is None else label for label in column.to_pylist()]
    if max(found, default=-1) < 0:
        return None
    refuse_large(str(path), max(found))
    labels = np.array(found, np.int64)
    if labels.min() < 0:
        raise UserError(f"'{path}' has labels, but none in row {int((labels < 0).argmax())}.")
    return labels


def _joined_labels(uri: str, about: list[_About]) -> Int64[np.ndarray, "images"] | None:
    known = [other.labels for other in about if other.labels is not None]
    if known and sum(map(len, known)) < sum(sum(other.rows) for other in about):
        raise UserError(f"Some files of '{uri}' have labels and some have none.")
    return np.concatenate(known) if known else None


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The ClassLabel names that the `datasets` library leaves in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None
