"""Batches of uint8 crops, for training and for looking at every picture once.

Crop where it is cheap: pictures of one size that fit in memory are decoded once, into one array that this
process keeps by the source's fingerprint, and cropped a batch at a time (on the device, if that is asked
for). Pictures of various sizes are decoded and cropped from the original in worker processes. Which crop
comes out is a function of (seed, epoch, index) either way, so neither the number of workers nor an
interruption changes a batch.
"""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from moce.engine.devices import moved
from moce.errors import UserError
from moce.images.augment import centre_crop, crop_and_resize, crop_boxes, resize_crops
from moce.images.decode import UnreadableImage
from moce.images.reading import Survey, read_all, survey
from moce.images.sampler import Order
from moce.images.sources import Source
from moce.options import Size, pair

__all__ = [
    "Batch",
    "Survey",
    "centred_batches",
    "read_all",
    "readable_substitute",
    "survey",
    "training_batches",
]


class Batch(NamedTuple):
    """`indices` say which pictures these are: an unreadable one is replaced by the next, and so is its index."""

    images: UInt8[Tensor, "images channels h w"]
    indices: Int64[Tensor, "images"]
    epochs: Int64[Tensor, "images"]


def readable_substitute(
    unreadable: Iterable[int], num_images: int, allowed: Int64[Tensor, "allowed"] | None = None
) -> Int64[Tensor, "images"]:
    """For each index itself or, where it cannot be read (or is not allowed), the next one that can, around the end."""
    good = (
        torch.ones(num_images, dtype=torch.bool)
        if allowed is None
        else torch.zeros(num_images, dtype=torch.bool)
    )
    if allowed is not None:
        good[allowed] = True
    good[list(unreadable)] = False
    readable = good.nonzero()[:, 0]
    assert len(readable), "no picture is readable"
    return readable[torch.searchsorted(readable, torch.arange(num_images)) % len(readable)]


def training_batches(
    source: Source,
    order: Order,
    image_size: Size,
    min_scale: float,
    seed: int,
    start_step: int,
    num_steps: int,
    num_workers: int = 0,
    cache_gib: float = 4.0,
    quiet: bool = False,
    unreadable: Sequence[int] = (),
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Random crops of the pictures of steps `start_step` to `num_steps` - 1 (`num_steps` counts from the run's start).

    `unreadable` comes from `survey`. With `device`, pictures of one size are kept and cropped there; other batches come
    from the CPU whatever it says.
    """
    size = pair(image_size)
    decoded = read_all(source, quiet, cache_gib)
    if decoded is None:
        substitute = readable_substitute(unreadable, len(source), order.allowed)
        crops = _Crops(source, order, size, min_scale, seed, substitute, rank, world)
        return (Batch(*batch) for batch in in_workers(crops, range(start_step, num_steps), num_workers))
    substitute = readable_substitute({*unreadable, *decoded.unreadable}, len(source), order.allowed)
    images = decoded.images if device is None else decoded.images.to(device)
    return _crops_of_array(
        images, order, size, min_scale, seed, range(start_step, num_steps), substitute, rank, world
    )


def _crops_of_array(
    images: UInt8[Tensor, "all channels rows columns"],
    order: Order,
    size: tuple[int, int],
    min_scale: float,
    seed: int,
    steps: range,
    substitute: Int64[Tensor, "all"],
    rank: int,
    world: int,
) -> Iterator[Batch]:
    for step in steps:
        indices, epochs = order.batch(step, rank, world)
        indices = substitute[indices]
        height, width = (torch.full_like(indices, side) for side in images.shape[-2:])
        boxes = crop_boxes(seed, epochs, indices, height, width, min_scale)
        crops = resize_crops(images[moved(indices, images.device)], boxes, size)
        yield Batch(crops, indices, epochs)


class _Crops(Dataset):
    """Item s is the batch of step s, decoded and cropped here."""

    def __init__(
        self,
        source: Source,
        order: Order,
        size: tuple[int, int],
        min_scale: float,
        seed: int,
        substitute: Int64[Tensor, "all"],
        rank: int,
        world: int,
    ) -> None:
        self.source, self.order, self.size, self.min_scale, self.seed = source, order, size, min_scale, seed
        self.substitute, self.rank, self.world = substitute, rank, world

    def __getitem__(self, step: int) -> Any:
        indices, epochs = self.order.batch(step, self.rank, self.world)
        found = [self._readable(index) for index in self.substitute[indices].tolist()]
        indices = torch.tensor([index for index, _ in found], dtype=torch.int64)
        sides = torch.tensor([image.shape[-2:] for _, image in found], dtype=torch.int64).view(-1, 2)
        boxes = crop_boxes(self.seed, epochs, indices, sides[:, 0], sides[:, 1], self.min_scale).tolist()
        crops = [crop_and_resize(image, box, self.size) for (_, image), box in zip(found, boxes)]
        return default_collate(crops), indices, epochs  # in a worker, straight into shared memory

    def _readable(self, index: int) -> tuple[int, Tensor]:
        """The picture, or the next allowed one that can be read: `survey` looks at a sample only of large sets."""
        allowed = self.order.allowed
        place = int(torch.searchsorted(allowed, index))
        for offset in range(len(allowed)):
            index = int(allowed[(place + offset) % len(allowed)])
            try:
                return index, self.source.get(index)[0]
            except UnreadableImage:
                continue
        raise UserError(f"No picture of '{self.source.uri}' can be read.")


def centred_batches(
    source: Source,
    image_size: Size,
    batch_size: int,
    num_workers: int = 0,
    crop_pct: float = 1.0,
    quiet: bool = False,
    indices: Int64[np.ndarray, "chosen"] | Int64[Tensor, "chosen"] | None = None,
    interpolation: str = "bicubic",
) -> Iterator[tuple[Int64[Tensor, "images"], UInt8[Tensor, "images channels h w"]]]:
    """(indices, central crops) of the chosen pictures in their order, by default of all.

    Unreadable ones are left out, so a batch may be shorter, and one without any readable picture does not come at all.
    Pictures that this process has decoded already are not decoded again.
    """
    size = pair(image_size)
    chosen = torch.arange(len(source)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
    batches = chosen.split(batch_size)
    decoded = read_all(source, quiet, only_if_cheap=True)
    if decoded is None:
        centres = _Centres(source, batches, size, crop_pct, interpolation)
        found = in_workers(centres, range(len(batches)), num_workers)
        return (batch for batch in found if len(batch[0]))
    bad = torch.zeros(len(source), dtype=torch.bool)
    bad[decoded.unreadable] = True
    kept = (batch[~bad[batch]] for batch in batches)
    return (
        (batch, centre_crop(decoded.images[batch], size, crop_pct, interpolation))
        for batch in kept
        if len(batch)
    )


class _Centres(Dataset):
    """Item b is batch b: its readable pictures' indices and central crops."""

    def __init__(
        self,
        source: Source,
        batches: Sequence[Tensor],
        size: tuple[int, int],
        crop_pct: float,
        interpolation: str,
    ) -> None:
        self.source, self.batches = source, batches
        self.size, self.crop_pct, self.interpolation = size, crop_pct, interpolation

    def __getitem__(self, number: int) -> Any:
        indices, crops = [], []
        for index in self.batches[number].tolist():
            try:
                image = self.source.get(index)[0]
            except UnreadableImage:
                continue
            indices.append(index)
            crops.append(centre_crop(image, self.size, self.crop_pct, self.interpolation))
        return torch.tensor(indices, dtype=torch.int64), default_collate(crops) if crops else torch.empty(0)


def in_workers(dataset: Dataset, items: range, num_workers: int) -> Iterator[Any]:
    """dataset[i] for each item, in order, made by worker processes that live as long as the iteration."""
    workers = min(num_workers, len(items))
    loader = DataLoader(
        _Excused(dataset),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else it would draw from torch's global one
        # Forked workers start at once and see the source's memory. They must not use torch's threads, which do not
        # survive a fork: a worker of torch sets their number to 1 before anything else.
        multiprocessing_context="fork" if workers and sys.platform.startswith("linux") else None,
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def _start_worker(worker: int) -> None:
    """Ctrl-C and SIGTERM reach every process of a group; they are the main one's to answer, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Excused(Dataset):
    """Hands a UserError over as an item: raised in a worker, it would arrive with that worker's traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: int) -> Any:
        try:
            return self.dataset[item]
        except UserError as error:
            return error
