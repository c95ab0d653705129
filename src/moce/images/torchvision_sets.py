"""Data sets of torchvision: `torchvision://CIFAR10?root=data&train=true`; options are those of the class.

Nothing is downloaded unless `download=true` is among them. A picture is what the class gives without a transform, made
uint8 like any other; labels are taken where the class holds them beside the pictures, so that none has to be opened.
"""

import hashlib
import inspect
import os
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from moce.errors import UserError, did_you_mean
from moce.images.decode import UnreadableImage, pixels_of
from moce.images.labels import classified
from moce.images.sources import even_shards
from moce.images.uris import parts_of, refuse_unknown, switch

# Where the classes keep what they know of their pictures, and where they look for them.
LABELS = ("targets", "labels", "_labels", "y")
FILES = ("samples", "_samples", "imgs", "_image_files", "_images", "images")
CLASSES = ("classes", "categories")
FOLDERS = ("raw_folder", "_base_folder", "base_folder", "_data_dir", "_data_path")


class TorchvisionImages:
    """The pictures of one torchvision data set; labels None where the class does not list whole numbers."""

    def __init__(self, uri: str, channels: int = 3) -> None:
        self.uri, self.channels = uri, channels
        self.kind, given = parts_of(uri, "torchvision")
        make = _class(uri, self.kind)
        accepted = _accepted(make)
        refuse_unknown(uri, given, list(accepted))
        for option, (_, required) in accepted.items():
            if required and option not in given:
                raise UserError(f"'{uri}' needs the option {option}: add ?{option}=...")
        self.options = {
            option: _converted(uri, option, text, accepted[option][0]) for option, text in given.items()
        }
        self._set = _opened(uri, make, self.options, "download" in accepted)
        if not len(self._set):
            raise UserError(f"'{uri}' has no pictures.")
        try:
            image, target = self._pair(0)
        except UnreadableImage:
            image, target = None, None
        if image is not None and not isinstance(image, Image.Image):
            raise UserError(f"'{uri}': an item of {self.kind} is no single picture; choose another data set.")
        self._files = _files(self._set)
        self._fingerprint = ""
        labels = _labels(self._set, target)
        names = _class_names(self._set)
        if labels is not None and names is not None and labels.max() >= len(names):
            names = None
        found = [None] * len(self._set) if labels is None else labels.tolist()
        self.labels, self.classes = classified(uri, found, self.name, names)

    def __len__(self) -> int:
        return len(self._set)

    def _pair(self, index: int) -> tuple[Any, Any]:
        """(picture, target) as the class gives them. Raises `UnreadableImage`."""
        try:
            item = self._set[index]
        except Exception as error:  # Pillow's readers raise nearly every class there is
            raise UnreadableImage(str(error) or type(error).__name__) from error
        return (item[0], item[1]) if isinstance(item, tuple) and len(item) > 1 else (item, None)

    def name(self, index: int) -> str:
        """The file below the root where there is one, else class and number."""
        if self._files is None:
            return f"{self.kind} {index}"
        return os.path.relpath(self._files[index], self.options.get("root", "."))

    def absent(self) -> list[str]:
        """Names of listed pictures whose files are not there."""
        files = self._files or []
        return [self.name(index) for index, file in enumerate(files) if not os.path.exists(file)]

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        image = self._pair(index)[0]
        try:
            pixels = pixels_of(image, self.channels)
        except Exception as error:
            raise UnreadableImage(str(error) or type(error).__name__) from error
        return pixels, None if self.labels is None else int(self.labels[index])

    def places(self) -> list[Path]:
        """Where its files are; nothing where it needs no root."""
        return [Path(_where(self._set, self.options))] if "root" in self.options else []

    def shards(self) -> list[range]:
        """Runs of 1024 neighbours."""
        return even_shards(len(self))

    def fingerprint(self) -> str:
        """Class, options, number and labels; of pictures in files also names and sizes.

        The sets that are no files are those of one release, which torchvision knows by its checksums.
        """
        if not self._fingerprint:
            options = {k: str(v) for k, v in sorted(self.options.items()) if k not in ("root", "download")}
            digest = hashlib.sha256(f"{self.kind} {options} {len(self)}".encode())
            if self.labels is not None:
                digest.update(self.labels.astype("<i8").tobytes())
            for index, file in enumerate(self._files or []):
                try:
                    size = os.stat(file).st_size
                except OSError:
                    size = -1
                digest.update(os.fsencode(self.name(index)) + b"\0%d\0" % size)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def _class(uri: str, name: str) -> Any:
    from torchvision import datasets

    known = [
        one
        for one in datasets.__all__
        if inspect.isclass(found := getattr(datasets, one))
        and issubclass(found, datasets.VisionDataset)
        and found is not datasets.VisionDataset
    ]
    if name not in known:
        raise UserError(
            f"'{uri}': torchvision has no data set '{name}'; see torchvision.datasets.{did_you_mean(name, known)}"
        )
    return getattr(datasets, name)


def _accepted(make: type) -> dict[str, tuple[Any, bool]]:
    """{option: (its type, must it be given?)}; of the classes above too, where a class hands options on to them."""
    found: dict[str, tuple[Any, bool]] = {}
    for owner in make.__mro__:
        if "__init__" not in vars(owner):
            continue
        init = vars(owner)["__init__"]
        parameters = list(inspect.signature(init).parameters.values())[1:]
        hints = typing.get_type_hints(init)
        for parameter in parameters:
            untyped = str if parameter.default in (None, parameter.empty) else type(parameter.default)
            kinds = _kinds(hints.get(parameter.name, untyped))
            named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if named and kinds and parameter.name not in found:
                found[parameter.name] = (kinds, parameter.default is parameter.empty)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _kinds(hint: Any) -> set[type]:
    """Those of bool, int, float, str and tuple (of whole numbers) that a type annotation allows."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(hint)))
    if origin is tuple:
        return {tuple} if set(typing.get_args(hint)) <= {int, ...} else set()
    if origin is typing.Literal:
        return {str}
    if hint is Path:
        return {str}
    return {hint} if hint in (bool, int, float, str) else set()


def _converted(uri: str, option: str, text: str, kinds: set[type]) -> Any:
    if bool in kinds:
        return switch(uri, option, text)
    if str in kinds:
        return os.path.abspath(os.path.expanduser(text)) if option == "root" else text
    kind = next(iter(kinds))
    try:
        return tuple(int(part) for part in text.split(",")) if kind is tuple else kind(text)
    except ValueError:
        noun = {int: "a whole number", float: "a number", tuple: "whole numbers with commas"}[kind]
        raise UserError(f"'{uri}': {option} must be {noun}, not '{text}'.") from None


def _opened(uri: str, make: Any, options: dict[str, Any], downloads: bool) -> Any:
    opened = make.__new__(make)
    try:
        opened.__init__(**options)
    except Exception as error:  # RuntimeError, OSError, ValueError, pickle's and many more
        text = " ".join(str(error).split()).partition("You can use download")[0].strip().rstrip(".")
        text = text or type(error).__name__
        if isinstance(error, ValueError | TypeError | ImportError):  # the options, or a library that it needs
            raise UserError(f"'{uri}' cannot be opened: {text}.") from error
        where = _where(opened, options)
        hint = ", or add download=true" if downloads and not options.get("download") else ""
        raise UserError(
            f"'{uri}' is not on disk: torchvision looks in '{where}' and says '{text}'; put it there{hint}."
        ) from error
    return opened


def _where(opened: Any, options: dict[str, Any]) -> str:
    """The folder that it looks in; where it could not be opened, what was set before it failed says so."""
    below = next((f for f in (getattr(opened, name, None) for name in FOLDERS) if f is not None), "")
    return os.path.join(options.get("root", "."), below)


def _labels(opened: Any, target: Any) -> Int64[np.ndarray, "images"] | None:
    """The class numbers that the data set lists, where the first agrees with its first item; -1 anywhere means none."""
    lists = [getattr(opened, name) for name in LABELS if hasattr(opened, name)]
    lists += [[sample[1] for sample in getattr(opened, name)] for name in FILES if _pairs(opened, name)]
    for found in lists:
        try:
            labels = np.asarray(found)
        except ValueError:  # lists of various lengths
            continue
        if labels.shape != (len(opened),) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            continue
        if isinstance(target, int | np.integer) and int(target) != int(labels[0]):
            continue
        return labels.astype(np.int64)
    return None


def _pairs(opened: Any, name: str) -> bool:
    found = getattr(opened, name, None)
    return (
        isinstance(found, list)
        and len(found) == len(opened)
        and all(isinstance(sample, tuple) and len(sample) == 2 for sample in found)
    )


def _files(opened: Any) -> list[str] | None:
    """The pictures' files by index, where the data set lists them."""
    for name in FILES:
        found = getattr(opened, name, None)
        if isinstance(found, list) and len(found) == len(opened):
            files = [sample[0] if isinstance(sample, tuple) else sample for sample in found]
            if all(isinstance(file, str | Path) for file in files):
                return [str(file) for file in files]
    return None


def _class_names(opened: Any) -> list[str] | None:
    for name in CLASSES:
        found = getattr(opened, name, None)
        if isinstance(found, list | tuple) and found:
            return [", ".join(one) if isinstance(one, tuple) else str(one) for one in found]
    return None
