"""Data sets of the Hugging Face hub: `hf://owner/name?split=train&config=...&column=image&label=label`.

The `datasets` library finds, downloads and prepares them; it keeps its own copy below HF_HOME, and what is there
opens without a network. `hf:///path/to/folder` is a folder that is laid out like one of the hub's. The pictures stay
encoded until `decode` takes them.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from jaxtyping import UInt8
from torch import Tensor

from moce.engine.progress import errors_alone
from moce.errors import UserError, did_you_mean
from moce.images.decode import UnreadableImage, decode
from moce.images.labels import classified
from moce.images.sources import bytes_of, even_shards
from moce.images.uris import parts_of, refuse_unknown, switch

OPTIONS = ["split", "config", "column", "label", "streaming"]
ROWS = 10_000  # looked at together when sizes are asked for


class HubImages:
    """The rows of one split. Labels are those of a column of whole numbers, class labels or names."""

    def __init__(self, uri: str, channels: int = 3) -> None:
        self.uri, self.channels = uri, channels
        name, options = parts_of(uri, "hf")
        refuse_unknown(uri, options, OPTIONS)
        if "streaming" in options and switch(uri, "streaming", options["streaming"]):
            raise UserError(
                f"'{uri}': a picture is asked for by its index, which a stream has not; leave streaming out."
            )
        self._folder = _local_folder(name)
        self._folders = _own_folders(uri, self._folder)
        rows = _rows(uri, name, options.get("config"), options.get("split"))
        if not len(rows):
            raise UserError(f"'{uri}' has no rows.")
        self.column = _image_column(uri, rows.features, options.get("column"))
        label = _label_column(uri, rows.features, options.get("label"))
        self.split = str(rows.split)
        names = None if label is None else getattr(rows.features[label], "names", None)
        found = [None] * len(rows) if label is None else rows.with_format(None)[label][:]
        self.labels, self.classes = classified(uri, found, self.name, names)
        self._rows = _undecoded(rows.select_columns([self.column]), self.column)
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Split and row in it."""
        return f"{self.split} row {index}"

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        data = self.encoded(index)
        return decode(data, self.channels), None if self.labels is None else int(self.labels[index])

    def encoded(self, index: int) -> bytes:
        """The file of the picture. Raises `UnreadableImage`."""
        found = self._rows[index][self.column]
        data, path = (found["bytes"], found["path"]) if isinstance(found, dict) else (found, None)
        if data is not None:
            return data
        if path is None:
            raise UnreadableImage("no bytes in this row")
        if not self._owns(path):
            raise UnreadableImage("its path leads out of the data set and the library's folders")
        return bytes_of(Path(path))

    def _owns(self, path: str) -> bool:
        """Whether a row may name this file: a data set that was downloaded is not to be trusted."""
        real = os.path.realpath(path)
        return any(os.path.commonpath([real, folder]) == folder for folder in self._folders)

    def path(self, index: int) -> str | None:
        """The name that is kept beside the picture: below the data set's folder, where it is one of this machine."""
        found = self._rows[index][self.column]
        path = found["path"] if isinstance(found, dict) else None
        if not path or not os.path.isabs(path):
            return path or None
        real, above = os.path.realpath(path), self._folders[0]
        return os.path.relpath(real, above) if real.startswith(above + os.sep) else os.path.basename(path)

    def places(self) -> list[Path]:
        """The data set's folder, where it is one of this machine, and the files that the library made of it."""
        made = [Path(file["filename"]) for file in self._rows.cache_files]
        return made if self._folder is None else [self._folder, *made]

    def shards(self) -> list[range]:
        """Runs of 1024 neighbours."""
        return even_shards(len(self))

    def fingerprint(self) -> str:
        """Files' names without their folders, sizes, number and labels: the library's own differs by machine."""
        if not self._fingerprint:
            digest = hashlib.sha256()
            for batch in self._rows.with_format("arrow").iter(ROWS):
                for name, size in _names_and_sizes(batch.column(0)):
                    digest.update(os.fsencode(name) + b"\0%d\0" % size)
            if self.labels is not None:
                digest.update(self.labels.astype("<i8").tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def _names_and_sizes(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Of each row; -1 where there is nothing. The bytes themselves are not read."""
    import pyarrow.compute as pc

    nested = pa.types.is_struct(column.type)
    data = pc.struct_field(column, "bytes") if nested else column
    paths = pc.struct_field(column, "path").to_pylist() if nested else [None] * len(column)
    for path, size in zip(paths, pc.binary_length(data).to_pylist()):
        if size is None and path is not None:
            try:
                size = os.stat(path).st_size
            except OSError:
                size = -1
        yield os.path.basename(path or ""), -1 if size is None else size


def _rows(uri: str, name: str, config: str | None, split: str | None) -> Any:
    """The split as a `datasets.Dataset`."""
    datasets = _library(uri)
    folder = _local_folder(name)
    path = name if folder is None else str(folder)
    if folder is not None and not folder.is_dir():
        raise UserError(f"'{uri}': there is no folder '{path}'.")
    with errors_alone("huggingface_hub", "datasets"), _bars_for_terminals(datasets):
        try:
            found = _saved(datasets, folder) if folder else None
            if found is None:
                found = datasets.load_dataset(path, config, split=split)
        # The library raises most classes there are, and httpx's besides.
        except Exception as error:
            downloaded = None if folder is not None else _downloaded(name)
            if downloaded is None:
                raise UserError(_refusal(uri, error)) from error
            try:
                found = datasets.load_dataset(downloaded, config, split=split)
            except Exception as again:
                raise UserError(_refusal(uri, again)) from again
    if isinstance(found, dict):
        if split is not None and split not in found:
            raise UserError(f"'{uri}' cannot be opened: it has no split '{split}' but {', '.join(found)}.")
        if split is not None:
            return found[split]
        chosen = "train" if "train" in found or len(found) != 1 else next(iter(found))
        if chosen not in found:
            raise UserError(f"'{uri}': say which split with ?split= and one of {', '.join(found)}.")
        found = found[chosen]
    return found


def _own_folders(uri: str, local: Path | None) -> list[str]:
    """Where a picture's file may lie: the data set's folder on this machine, and the libraries' own."""
    config = _library(uri).config
    from huggingface_hub import constants

    kept = [config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH]
    folders = [constants.HF_HUB_CACHE, *kept] if local is None else [local, constants.HF_HUB_CACHE, *kept]
    return [os.path.realpath(folder) for folder in folders]


def _local_folder(name: str) -> Path | None:
    """The folder of this machine that is meant; None for a name of the hub."""
    path = os.path.expanduser(name)
    return Path(path) if path.startswith((os.sep, ".")) else None


def _library(uri: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"'{uri}' needs the library datasets: pip install moce[hub].") from error
    return datasets


def _saved(datasets: Any, folder: Path) -> Any:
    """What `save_to_disk` left in a folder; None where it left nothing."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return datasets.load_from_disk(str(folder))
    return None


@contextmanager
def _bars_for_terminals(datasets: Any) -> Iterator[None]:
    """The library's bars are shown on a terminal alone."""
    shown = datasets.are_progress_bars_disabled() or sys.stderr.isatty()
    if not shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _downloaded(name: str) -> str | None:
    """The folder of a data set that was downloaded as it is, where there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, repo_type="dataset", local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _refusal(uri: str, error: Exception) -> str:
    """What the library says, as one sentence; for a config or split that is not there, it says which there are."""
    reason: BaseException = error
    while type(error).__name__ == "DatasetGenerationError" and reason.__cause__ is not None:
        reason = reason.__cause__
    text = " ".join((str(reason) or type(reason).__name__).partition("Example of usage")[0].split())
    hint = ""
    if isinstance(error, ConnectionError):
        hint = " It is not in the local cache either; connect this machine, or copy it here and write hf:///FOLDER."
    elif text.startswith("Config name is missing"):
        hint = " Write ?config=NAME."
    return f"'{uri}' cannot be opened: {text.rstrip('.!')}.{hint}"


def _image_column(uri: str, features: dict[str, Any], column: str | None) -> str:
    """'image' where it holds pictures, else the only column that does."""
    holding = [name for name, feature in features.items() if _holds_pictures(feature)]
    if column is None and ("image" in holding or len(holding) == 1):
        return "image" if "image" in holding else holding[0]
    if column in holding:
        return column
    fault = "no image column" if not holding else "several image columns: say which with ?column="
    if column is not None:
        fault = f"no image column '{column}'"
    there = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
    raise UserError(f"'{uri}' has {fault}; its columns are {there}.{did_you_mean(column or '', holding)}")


def _holds_pictures(feature: Any) -> bool:
    return _kind(feature) in ("Image", "binary", "large_binary")


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else type(feature).__name__


def _label_column(uri: str, features: dict[str, Any], label: str | None) -> str | None:
    """The column asked for, or 'label' where it holds classes; None for no labels."""
    fitting = [
        name
        for name, feature in features.items()
        if _kind(feature) in ("ClassLabel", "string", "large_string")
        or _kind(feature).startswith(("int", "uint"))
    ]
    if label is None:
        return "label" if "label" in fitting else None
    if label not in fitting:
        raise UserError(
            f"'{uri}' has no column '{label}' of labels, only {', '.join(fitting) or 'none'}."
            f"{did_you_mean(label, fitting)}"
        )
    return label


def _undecoded(rows: Any, column: str) -> Any:
    """The rows with pictures as {bytes, path}."""
    if _kind(rows.features[column]) != "Image":
        return rows
    import datasets

    return rows.cast_column(column, datasets.Image(decode=False))
