"""Pictures with their boxes and masks as a detector takes them: large-scale jitter (Ghiasi et al. 2021) and mirroring.

A picture is scaled so that its longer side is a random share of the square's, cut to the square at a random place where
it is larger, and laid in the upper left corner of a grey one where it is smaller. Everything random is a function of
(seed, epoch, picture). For testing the longer side is the square's. Boxes are those of the
masks after all this.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes

from moce.engine.randomness import uniform
from moce.errors import UserError
from moce.images.augment import crop_and_resize, flips
from moce.images.decode import UnreadableImage
from moce.images.sampler import Order
from moce.transfer.detect.cocoset import CocoSet


class Framed(NamedTuple):
    """A picture in its square; `size` is the (height, width) of what is no padding."""

    image: UInt8[Tensor, "channels side side"]
    size: tuple[int, int]
    labels: Int64[Tensor, "instances"]
    masks: UInt8[Tensor, "instances side side"]


class Batch(NamedTuple):
    """Pictures of a step."""

    step: int
    images: UInt8[Tensor, "images channels side side"]
    sizes: Int64[Tensor, "images 2"]
    targets: list[dict[str, Tensor]]


def scaled_size(height: int, width: int, side: int, scale: float = 1.0) -> tuple[int, int]:
    """(height, width) whose longer one is scale x side."""
    longer = scale * side / max(height, width)
    return max(round(height * longer), 1), max(round(width * longer), 1)


def frame(
    image: UInt8[Tensor, "channels rows columns"],
    masks: UInt8[Tensor, "instances rows columns"],
    labels: Int64[Tensor, "instances"],
    side: int,
    mean: tuple[float, ...],
    scale: float = 1.0,
    place: tuple[float, float] = (0.0, 0.0),
    mirror: bool = False,
) -> Framed:
    """The picture, scaled, cut and laid in the square; objects of which nothing is left are gone.

    `place` in [0, 1) says where it is cut: 0 is the top and the left.
    """
    height, width = scaled_size(image.shape[1], image.shape[2], side, scale)
    image = crop_and_resize(image, (0, 0, *image.shape[1:]), (height, width))
    if len(masks):
        masks = F.interpolate(masks[:, None], (height, width), mode="nearest-exact")[:, 0]
    else:
        masks = masks.new_zeros(0, height, width)
    top, left = (int(share * (max(length - side, 0) + 1)) for share, length in zip(place, (height, width)))
    image, masks = (t[:, top : top + side, left : left + side] for t in (image, masks))
    if mirror:
        image, masks = image.flip(-1), masks.flip(-1)
    kept = masks.bool().flatten(1).any(1)
    masks, labels = masks[kept], labels[kept]
    high, wide = image.shape[1:]
    square = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8)[:, None, None].repeat(
        1, side, side
    )
    square[:, :high, :wide] = image
    return Framed(square, (high, wide), labels, F.pad(masks, (0, side - wide, 0, side - high)))


def boxes_of(masks: UInt8[Tensor, "instances rows columns"]) -> Float32[Tensor, "instances 4"]:
    """Left, top, right and bottom edges of masks of which none is empty."""
    return masks_to_boxes(masks).float() + torch.tensor([0.0, 0.0, 1.0, 1.0], device=masks.device)


class JitteredBatches(Dataset):
    """Item s is the part of process `rank` of `world` of the batch of step s."""

    def __init__(
        self,
        source: CocoSet,
        order: Order,
        side: int,
        scales: tuple[float, float],
        mean: tuple[float, ...],
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source, self.order, self.side, self.scales = source, order, side, scales
        self.mean, self.seed, self.rank, self.world = mean, seed, rank, world

    def __getitem__(self, step: int) -> Any:
        indices, epochs = self.order.batch(step, self.rank, self.world)
        draws = uniform(self.seed, "jitter", epochs, indices, 3).double().tolist()
        mirrored = flips(self.seed, epochs, indices).tolist()
        low, high = self.scales
        framed = []
        for index, (chance, top, left), mirror in zip(indices.tolist(), draws, mirrored, strict=True):
            try:
                image = self.source.get(index)[0]
            except UnreadableImage as error:
                raise UserError(
                    f"'{self.source.name(index)}' of {self.source.uri} cannot be read ({error}): repair it, or take "
                    "it out of the file."
                ) from error
            scale = low + (high - low) * chance
            masks, labels = self.source.instances(index)
            framed.append(frame(image, masks, labels, self.side, self.mean, scale, (top, left), mirror))
        targets = [{"labels": f.labels, "masks": f.masks} for f in framed]
        return Batch(
            step, torch.stack([f.image for f in framed]), torch.tensor([f.size for f in framed]), targets
        )


class FramedPictures(Dataset):
    """Item i is picture i of the test split in its square: (index, picture, size), or (index, None, None)."""

    def __init__(self, source: CocoSet, side: int, mean: tuple[float, ...]) -> None:
        self.source, self.side, self.mean = source, side, mean

    def __getitem__(self, index: int) -> Any:
        try:
            image = self.source.get(index)[0]
        except UnreadableImage:
            return index, None, None
        nothing = torch.zeros(0, *image.shape[1:], dtype=torch.uint8)
        framed = frame(image, nothing, torch.zeros(0, dtype=torch.int64), self.side, self.mean)
        return index, framed.image, framed.size
