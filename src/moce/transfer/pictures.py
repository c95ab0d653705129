"""A task's pictures as one encoder takes them: its size, its normalisation, by row.

Train and val make up one pool, whose rows say which is which, so that the features of a picture are computed once and
refitting on train + val is a matter of rows.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from moce.engine.devices import num_workers_of
from moce.engine.launch import local_world_size
from moce.engine.processes import group
from moce.engine.progress import clock, say, track
from moce.errors import UserError
from moce.images.augment import finish, flips
from moce.images.loader import Batch, centred_batches, survey, training_batches
from moce.images.sampler import Order
from moce.images.sources import Source
from moce.transfer.encoder import Encoder
from moce.transfer.finetune import LONG, Recipe
from moce.transfer.probe import Labelled

BATCH = 128  # pictures per pass of a frozen encoder
SAMPLE = 32  # pictures that say how long all of them will take
CACHE_GIB = 4.0  # pictures of one size are kept decoded up to this, by all processes of a machine
KEPT = 64  # sets of features that a process keeps


def several_of(parts: list[Source]) -> Int64[np.ndarray, "images classes"] | None:
    """1, 0 or -1 for each class, of sources whose pictures show several; None of others."""
    targets = [part.targets for part in parts if getattr(part, "targets", None) is not None]  # type: ignore[attr-defined]
    return np.concatenate(targets) if targets and len(targets) == len(parts) else None


class Joined:
    """Several sources as one, their indices one after the other."""

    def __init__(self, parts: list[Source]) -> None:
        self.parts = parts
        self.uri = " + ".join(part.uri for part in parts)
        self.classes = parts[0].classes
        self.channels = getattr(parts[0], "channels", 3)
        labels = [part.labels for part in parts if part.labels is not None]
        self.labels = np.concatenate(labels) if len(labels) == len(parts) else None
        self.targets = several_of(parts)
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[number], index - self._starts[number]

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels h w"], int | None]:
        """See `Source`."""
        part, inner = self._place(index)
        return part.get(inner)

    def shards(self) -> list[range]:
        """Those of the parts."""
        return [
            range(start + shard.start, start + shard.stop)
            for start, part in zip(self._starts, self.parts)
            for shard in part.shards()
        ]

    def name(self, index: int) -> str:
        """That of the part's picture."""
        part, inner = self._place(index)
        return part.name(inner)

    def fingerprint(self) -> str:
        """Those of the parts."""
        return "+".join(part.fingerprint() for part in self.parts)


class Pictures:
    """Labelled pictures for one encoder; what fine-tuning calls a feed."""

    def __init__(
        self,
        source: Source,
        encoder: Encoder,
        device: torch.device,
        num_workers: int = 0,
        quiet: bool = False,
    ) -> None:
        labels = several_of([source]) if source.labels is None else source.labels
        if labels is None:
            raise UserError(
                f"'{source.uri}' has no labels, and an evaluation needs them; put the pictures of each class into a "
                "folder of their own, or give a parquet file with a column 'label' of whole numbers from 0."
            )
        self.source, self.encoder, self.device = source, encoder, device
        self.num_workers, self.quiet = num_workers_of(num_workers), quiet
        self.labels: Int64[Tensor, "images *classes"] = torch.from_numpy(labels)
        self.was_read = torch.zeros(len(source), dtype=torch.bool)  # by index, by any pass over central crops

    def _normalised(self, images: UInt8[Tensor, "batch channels h w"], flip: Tensor | None = None) -> Tensor:
        return finish(images.to(self.device), flip, self.encoder.mean, self.encoder.std)

    def training(
        self, rows: Int64[Tensor, "rows"], recipe: Recipe, steps: range, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This process's part of the batches of `steps`, random crops of these rows."""
        order = Order(len(self.source), recipe.batch_size, recipe.seed, allowed=rows.numpy())
        return training_batches(
            self.source,
            order,
            self.encoder.image_size,
            recipe.min_crop,
            recipe.seed,
            steps.start,
            steps.stop,
            num_workers=self.num_workers,
            cache_gib=CACHE_GIB / local_world_size(),
            quiet=self.quiet,
            unreadable=survey(self.source, self.quiet).unreadable,
            rank=rank,
            world=world,
        )

    def prepared(
        self, batch: Batch, recipe: Recipe
    ) -> tuple[Float[Tensor, "batch channels h w"], Int64[Tensor, "batch *classes"]]:
        """Pictures of a batch of training, half of them mirrored, and their classes, on the device."""
        flip = flips(recipe.seed, batch.epochs, batch.indices) if recipe.flip else None
        return self._normalised(batch.images, flip), self.labels[batch.indices].to(self.device)

    def were_read(self, rows: Int64[Tensor, "rows"]) -> None:
        """Note rows that some process has read."""
        self.was_read[rows] = True

    def centred(
        self, rows: Int64[Tensor, "rows"]
    ) -> Iterator[tuple[Float[Tensor, "batch channels h w"], Int64[Tensor, "batch"]]]:
        """Central crops of these rows: (pictures, rows), without those that cannot be read."""
        for indices, images in self._crops(rows):
            yield self._normalised(images), indices

    def _crops(self, rows: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        for indices, images in centred_batches(
            self.source,
            self.encoder.image_size,
            BATCH,
            num_workers=self.num_workers,
            crop_pct=self.encoder.crop_pct,
            quiet=self.quiet,
            indices=rows,
            interpolation=self.encoder.interpolation,
        ):
            self.was_read[indices] = True
            yield indices, images

    def _say_cost(self) -> None:
        """How long the pass over all pictures will take, by a few of them; said where it is long."""
        sample = torch.linspace(0, len(self.source) - 1, SAMPLE).long().unique()
        if len(self.source) < 20 * SAMPLE:
            return
        took = []
        for _ in range(2):  # the first time is slower
            start = time.monotonic()
            for _, images in self._crops(sample):
                self.encoder.features(images)
            took.append(time.monotonic() - start)
        seconds = took[-1] / len(sample) * len(self.source)
        if seconds >= LONG:
            say(f"{self.source.uri}: {len(self.source):,} pictures once, at most about {clock(seconds)}")

    def features(self) -> "Features":
        """Features of all pictures that can be read; computed once per encoder and set of pictures in a process."""
        seen = self.encoder  # a network without positions has the same weights for every size
        how = (seen.image_size, seen.crop_pct, seen.interpolation, seen.mean, seen.std)
        key = (seen.fingerprint, self.source.uri, self.source.fingerprint(), *how)
        if key not in _kept:
            _kept[key] = self._looked_at()
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
        self.was_read[_kept[key].rows] = True
        return _kept[key]

    def _looked_at(self) -> "Features":
        """Features of all pictures; each process looks at its part, in the batches that one process would have."""
        processes = group()
        own = torch.tensor(processes.batches(len(self.source), BATCH), dtype=torch.int64)
        vectors, rows = [torch.empty(0, self.encoder.width)], [own[:0]]
        if not self.quiet:
            self._say_cost()
        with track(len(self.source), f"features of {self.source.uri}", quiet=self.quiet) as bar:
            for indices, images in self._crops(own):
                vectors.append(self.encoder.features(images))
                rows.append(indices)
                bar.advance(len(indices) * processes.world)  # the others are as far, more or less
        found = Features(processes.gather(torch.cat(vectors)), processes.gather(torch.cat(rows)))
        if not len(found.rows):
            raise UserError(f"No picture of '{self.source.uri}' can be read.")
        return found


class Features(NamedTuple):
    """Features of the readable rows of a source."""

    vectors: Float32[Tensor, "readable width"]
    rows: Int64[Tensor, "readable"]


_kept: OrderedDict[tuple, Features] = OrderedDict()


def forget_features() -> None:
    """Drop the features that this process keeps."""
    _kept.clear()


def labelled(pictures: Pictures, rows: torch.Tensor | None = None) -> Labelled:
    """Features and labels of the readable ones among `rows`, or of all pictures."""
    vectors, readable = pictures.features()
    if rows is not None:
        wanted = torch.isin(readable, rows)
        vectors, readable = vectors[wanted], readable[wanted]
    return Labelled(vectors, pictures.labels[readable])
