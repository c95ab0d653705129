"""`toyworld://KIND?split=train&size=32&num=N&seed=0` as a source of pictures.

Index i shows class i % C (C classes, kind after kind), picture number i // C of it; so any `num` is balanced, and the
first n pictures are the same for every `num`.
"""

import hashlib
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from moce.engine.launch import usable_cores
from moce.errors import UserError, did_you_mean
from moce.images.toyworld.kinds import CLASSES_PER_KIND, KINDS, MADE, NATURAL, VERSION, picture
from moce.images.uris import parts_of, refuse_unknown

SCHEME = "toyworld://"
GROUPS: dict[str, list[str]] = {"all": list(KINDS), "natural": NATURAL, "made": MADE}
PER_CLASS = {"train": 250, "test": 50}  # pictures of a class when `num` is not given
SIZES = (16, 256)
OPTIONS = ["split", "size", "num", "seed"]
_SHARD = 1000
_CHUNK = 250
_SERIAL = 1500  # fewer pictures than this are drawn sooner than processes start


class ToyWorld:
    """Built-in pictures of one kind, of a half, or of all kinds; with one channel in grey.

    classes: "cat", ... within one kind, "creatures/cat", ... in a group of kinds. labels int64 [n]. kinds int64 [n]:
    which of `kind_names` a picture is of, to compare clusters with.
    """

    def __init__(self, uri: str, channels: int = 3) -> None:
        self.kind, options = _parsed(uri)
        if channels not in (1, 3):
            raise UserError(
                f"'{uri}' has pictures in colour or grey, of 3 channels or 1, not of {channels} (--channels)."
            )
        self.channels = channels
        self.split = options.get("split", "train")
        if self.split not in PER_CLASS:
            raise UserError(
                f"The toy world has no split '{self.split}' (in '{uri}'): choose train or test."
                f"{did_you_mean(self.split, PER_CLASS)}"
            )
        self.kind_names = GROUPS.get(self.kind, [self.kind])
        self._pairs = [(kind, name) for kind in self.kind_names for name in KINDS[kind]]
        self.size = _whole(uri, options, "size", 32, *SIZES)
        self.num = _whole(uri, options, "num", PER_CLASS[self.split] * len(self._pairs), 1, 10_000_000)
        self.seed = _whole(uri, options, "seed", 0, 0, 2**63 - 1)
        self.uri = f"{SCHEME}{self.kind}?split={self.split}&size={self.size}&num={self.num}&seed={self.seed}"
        single = self.kind in KINDS
        self.classes: list[str] = [name if single else f"{kind}/{name}" for kind, name in self._pairs]
        self.labels = np.arange(self.num, dtype=np.int64) % len(self._pairs)
        self.kinds = self.labels // CLASSES_PER_KIND
        self._array: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # a worker process draws again what it needs

    def __len__(self) -> int:
        return self.num

    def __repr__(self) -> str:
        return f"ToyWorld('{self.uri}')"

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int]:
        """One picture, uint8 [channels, size, size], and its label."""
        index = range(self.num)[index]
        if self._array is not None:
            return self._array[index], int(self.labels[index])
        return torch.from_numpy(self._draw(index)), int(self.labels[index])

    def array(self, num_workers: int | None = None) -> UInt8[Tensor, "images channels rows columns"]:
        """The whole split, uint8 [n, channels, size, size]; drawn once, by as many processes as there are cores.

        The pictures do not depend on the number of processes.
        """
        if self._array is None:
            drawn = np.empty((self.num, self.channels, self.size, self.size), dtype=np.uint8)
            for start, part in self._parts(min(usable_cores(), 32) if num_workers is None else num_workers):
                drawn[start : start + len(part)] = part
            self._array = torch.from_numpy(drawn)
        return self._array

    def shards(self) -> list[range]:
        """Indices in runs of a thousand."""
        return [range(start, min(start + _SHARD, self.num)) for start in range(0, self.num, _SHARD)]

    def name(self, index: int) -> str:
        """'creatures/cat/train-000012': the same picture has the same name in a kind and in a group of kinds."""
        kind, name = self._pairs[int(self.labels[index])]
        return f"{kind}/{name}/{self.split}-{range(self.num)[index] // len(self._pairs):06d}"

    def fingerprint(self) -> str:
        """16 hex digits of the version of the pictures and of every option."""
        return hashlib.sha256(f"{VERSION} {self.uri}".encode()).hexdigest()[:16]

    def _draw(self, index: int) -> np.ndarray:
        kind, name = self._pairs[int(self.labels[index])]
        hwc = picture(kind, name, self.split, index // len(self._pairs), self.size, self.seed)
        if self.channels == 1:
            return np.array(Image.fromarray(hwc).convert("L"))[None]
        return np.ascontiguousarray(hwc.transpose(2, 0, 1))

    def _draw_part(self, start: int) -> np.ndarray:
        return np.stack([self._draw(index) for index in range(start, min(start + _CHUNK, self.num))])

    def _parts(self, num_workers: int) -> Iterator[tuple[int, np.ndarray]]:
        starts = range(0, self.num, _CHUNK)
        # Where processes cannot be forked, or this one may have no children (a worker of a loader), draw here.
        alone = num_workers < 2 or self.num < _SERIAL or not sys.platform.startswith("linux")
        if alone or multiprocessing.current_process().daemon:
            yield from ((start, self._draw_part(start)) for start in starts)
            return
        # SIGTERM ends them, also one that has not begun when the last picture arrives: it is held back until a handler
        # of this process, inherited, is gone, which might run where what it raises is ignored (a hook of the fork).
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            with warnings.catch_warnings():
                # Python warns of forking beside torch's threads; the children only draw and never enter torch.
                warnings.simplefilter("ignore", DeprecationWarning)
                fork = multiprocessing.get_context("fork")
                pool = fork.Pool(min(num_workers, len(starts)), initializer=_end_at_sigterm)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        with pool:
            yield from zip(starts, pool.imap(self._draw_part, starts))


def _end_at_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _parsed(uri: str) -> tuple[str, dict[str, str]]:
    kind, options = parts_of(uri, "toyworld")
    kind = kind.strip("/")
    known = [*GROUPS, *KINDS]
    if kind not in known:
        raise UserError(
            f"The toy world has no kind '{kind}' (in '{uri}'): choose one of {', '.join(known)}."
            f"{did_you_mean(kind, known)}"
        )
    refuse_unknown(uri, options, OPTIONS)
    return kind, options


def _whole(uri: str, options: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    text = options.get(key)
    if text is None:
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"'{key}={text}' (in '{uri}') must be a whole number from {low} to {high}.")
    return int(text)
