"""The order of images: an endless stream that is a pure function of the step.

Place p of the stream is offset p mod n of the permutation of epoch p div n; step s is places s B to s B + B -
1. Resuming means asking for a later step, and two processes ask for their slices of the same batch. It
differs from torch's samplers in that nothing is consumed and the last batch of an epoch is filled up from the
next one, so every step has B images.

`global` permutes all images. `shards` serves storage that is read front to back: the shards are permuted,
laid one after the other, and images are permuted within windows of that line, so that only a window's shards
are open at a time.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from moce.engine.randomness import uniform

WINDOW = 16_384


class Order:
    """Which images make up which step. `allowed` leaves only these indices; `batch_size` counts all processes."""

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        kind: Literal["global", "shards"] = "global",
        shards: Sequence[range] | None = None,
        allowed: Int64[np.ndarray, "allowed"] | None = None,
        window: int = WINDOW,
    ) -> None:
        assert kind in ("global", "shards") and batch_size > 0 and window > 0
        assert kind == "global" or shards is not None, "the order 'shards' needs the shards"
        keep = np.arange(num_images) if allowed is None else np.unique(allowed)
        assert len(keep) and 0 <= keep[0] and keep[-1] < num_images, (
            "no image is allowed, or one that does not exist"
        )
        self.batch_size, self.seed, self.kind, self.window = batch_size, seed, kind, window
        self.allowed: Int64[Tensor, "allowed"] = torch.from_numpy(keep.astype(np.int64))
        self.shards = list(shards or [])
        self._permutations: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Images in an epoch."""
        return len(self.allowed)

    def steps_for(self, epochs: float) -> int:
        """The smallest number of steps that covers so many epochs."""
        return math.ceil(epochs * len(self) / self.batch_size)

    def batch(
        self, step: int, rank: int = 0, world: int = 1
    ) -> tuple[Int64[Tensor, "batch"], Int64[Tensor, "batch"]]:
        """(image indices, their epochs) of process `rank` of `world` at this step: its slice of the global batch."""
        assert step >= 0 and 0 <= rank < world <= self.batch_size
        first, last = (step * self.batch_size + self.batch_size * r // world for r in (rank, rank + 1))
        places = torch.arange(first, last)
        epochs = places.div(len(self), rounding_mode="floor")
        spans = [
            self.permutation(epoch)[max(first - epoch * len(self), 0) : max(last - epoch * len(self), 0)]
            for epoch in range(first // len(self), (last - 1) // len(self) + 1)
        ]
        indices = torch.cat(spans) if spans else places
        return indices, epochs

    def permutation(self, epoch: int) -> Int64[Tensor, "allowed"]:
        """All allowed indices in this epoch's order. Two epochs are kept, since a batch may straddle them."""
        if epoch not in self._permutations:
            while len(self._permutations) > 1:
                del self._permutations[min(self._permutations)]
            self._permutations[epoch] = (
                self._by_shards(epoch) if self.kind == "shards" else self._globally(epoch)
            )
        return self._permutations[epoch]

    def _globally(self, epoch: int) -> Int64[Tensor, "allowed"]:
        return self.allowed[_keys(self.seed, "order of images", epoch, self.allowed).argsort(stable=True)]

    def _by_shards(self, epoch: int) -> Int64[Tensor, "allowed"]:
        by_key = _keys(self.seed, "order of shards", epoch, torch.arange(len(self.shards))).argsort(
            stable=True
        )
        ranges = [self.shards[i] for i in by_key.tolist()]
        bounds = torch.searchsorted(self.allowed, torch.tensor([[r.start, r.stop] for r in ranges])).tolist()
        line = torch.cat([self.allowed[start:stop] for start, stop in bounds])
        assert len(line) == len(self), "the shards do not cover the images"
        windows = line.split(self.window)
        keys = [_keys(self.seed, "order of images", epoch, window) for window in windows]
        return torch.cat(
            [window[key.argsort(stable=True)] for window, key in zip(windows, keys, strict=True)]
        )


def _keys(seed: int, purpose: str, epoch: int, indices: Int64[Tensor, "images"]) -> Int64[Tensor, "images"]:
    """48 random bits each: so few ties that the stable sort, which settles them, hardly shows."""
    high, low = uniform(seed, purpose, epoch, indices, 2).double().mul_(2.0**24).long().unbind(1)
    return high * 2**24 + low
