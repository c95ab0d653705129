"""Looking through a whole source: which pictures are broken, have all the same size, and all of them in one array."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from moce.engine.launch import usable_cores
from moce.engine.progress import track
from moce.errors import UserError
from moce.images.decode import UnreadableImage
from moce.images.sources import Source

LOOK_AT_ALL = 20_000
SAMPLE = 2_000
TOLERATED = 0.05
CHUNK = 64
CACHE_GIB = 4.0


class Survey(NamedTuple):
    """`size` is (height, width) when all `checked` have the same; `unreadable` are the broken ones' indices."""

    size: tuple[int, int] | None
    unreadable: list[int]
    checked: int


class Decoded(NamedTuple):
    """Every picture of a source; what stands at the `unreadable` indices is black."""

    images: UInt8[Tensor, "all channels rows columns"]
    unreadable: list[int]


# Kept by `_key` as long as the process lives: the stages of a pipeline do not decode the same pictures again.
_surveys: dict[str, Survey] = {}
_decoded: OrderedDict[str, Decoded] = OrderedDict()


def survey(source: Source, quiet: bool = False, cache_gib: float = CACHE_GIB) -> Survey:
    """Decode all pictures, or 2000 evenly spread ones of more than 20,000. UserError when more than 5 % are broken."""
    key = _key(source)
    if key not in _surveys:
        if hasattr(source, "array"):  # it makes its pictures itself
            image = source.get(0)[0]
            _surveys[key] = Survey((image.shape[1], image.shape[2]), [], len(source))
        elif len(source) <= LOOK_AT_ALL:
            _look(source, range(len(source)), cache_gib, quiet)
        else:
            _look(source, np.linspace(0, len(source) - 1, SAMPLE).round().astype(int).tolist(), 0, quiet)
    return _surveys[key]


def read_all(
    source: Source, quiet: bool = False, cache_gib: float = CACHE_GIB, only_if_cheap: bool = False
) -> Decoded | None:
    """All pictures as one array, when they have one size and fit in `cache_gib`; else None.

    With `only_if_cheap` nothing is decoded for it: the array comes if it is there already or the source makes it.
    """
    key = _key(source)
    if key not in _decoded and hasattr(source, "array"):
        if _gib((len(source), *source.get(0)[0].shape)) > cache_gib:
            return None
        _keep(key, Decoded(source.array(), []), cache_gib)
    if key not in _decoded and not only_if_cheap:
        found = survey(source, quiet, cache_gib)
        if found.size is not None and key not in _decoded:
            _look(source, range(len(source)), cache_gib, quiet, only_to_keep=True)
    kept = _decoded.get(key)
    # What lies there anyway is cheap; whoever asks for no more than so much decodes anew.
    return kept if kept is None or only_if_cheap or _gib(kept.images.shape) <= cache_gib else None


def forget(source: Source | None = None) -> None:
    """Drop the decoded pictures and the survey of a source, or of all."""
    if source is None:
        _surveys.clear()
        _decoded.clear()
    else:
        _surveys.pop(_key(source), None)
        _decoded.pop(_key(source), None)


def _look(
    source: Source, indices: Sequence[int], cache_gib: float, quiet: bool, only_to_keep: bool = False
) -> None:
    """Decode these pictures in threads; note the survey, and keep the pictures when they have one size and fit."""
    shape = _first_shape(source, indices)
    images: Tensor | None = None
    if len(indices) == len(source) and _gib((len(source), *shape)) <= cache_gib:
        images = torch.zeros(len(source), *shape, dtype=torch.uint8)
    if only_to_keep and images is None:
        return
    shapes: set[tuple[int, ...]] = set()
    broken: list[tuple[int, str]] = []

    def decode(start: int) -> int:
        chunk = indices[start : start + CHUNK]
        for index in chunk:
            try:
                image = source.get(index)[0]
            except UnreadableImage as error:
                broken.append((index, str(error)))
                continue
            shapes.add(tuple(image.shape))
            if images is not None and tuple(image.shape) == shape:
                images[index] = image
        return len(chunk)

    with (
        track(len(indices), "reading pictures", quiet=quiet) as progress,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        for count in pool.map(decode, range(0, len(indices), CHUNK)):
            progress.advance(count)
    refuse_if_many(source, sorted(broken), len(indices))
    unreadable = sorted(index for index, _ in broken)
    key = _key(source)
    size = (shape[1], shape[2]) if shapes == {shape} else None
    _surveys[key] = Survey(size, unreadable, len(indices))
    if images is not None and size is not None:
        _keep(key, Decoded(images, unreadable), cache_gib)


def _first_shape(source: Source, indices: Sequence[int]) -> tuple[int, ...]:
    reasons: list[tuple[int, str]] = []
    for index in indices:
        try:
            return tuple(source.get(index)[0].shape)
        except UnreadableImage as error:
            reasons.append((index, str(error)))
    refuse_if_many(source, reasons, len(indices))
    raise AssertionError("there are pictures, none of them can be read, and that was not too many")


def refuse_if_many(
    source: Source, broken: list[tuple[int, str]], checked: int, looked_at: int | None = None
) -> None:
    """UserError when more than 5 % of the `checked` pictures are `broken` (index, reason).

    `looked_at` is how many of these were read so far, where not all were.
    """
    if len(broken) > TOLERATED * checked:
        first, reason = broken[0]
        count = f"{len(broken)} of {checked}" if len(broken) < checked else f"All {checked}"
        if looked_at is not None and looked_at < checked:
            count = f"Already {len(broken)} of the first {looked_at} of {checked}"
        raise UserError(
            f"{count} pictures in '{source.uri}' cannot be read (first: {source.name(first)}: {reason}); "
            f"at most {TOLERATED:.0%} may be broken, so remove or replace them."
        )


def _keep(key: str, decoded: Decoded, cache_gib: float) -> None:
    """The oldest arrays make room."""
    while (
        _decoded
        and sum(_gib(d.images.shape) for d in _decoded.values()) + _gib(decoded.images.shape) > cache_gib
    ):
        _decoded.popitem(last=False)
    _decoded[key] = decoded


def _key(source: Source) -> str:
    """Which pictures these are. Names and sizes alone may agree by chance, of BMP files for one."""
    return f"{source.fingerprint()} {getattr(source, 'channels', 3)} {source.uri}"


def _gib(shape: Sequence[Any]) -> float:
    return float(np.prod(shape, dtype=np.float64)) / 2**30
