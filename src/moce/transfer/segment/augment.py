"""Crops for training: random scale and place, every second one mirrored, as a function of (seed, epoch, picture).

At scale 1 a picture just covers the crop. Where it is smaller than the crop, the rest of the crop is of the mean colour
and its class is IGNORE. The picture is cut first and resized then (bicubic, antialiased); a mask takes the class of the
pixel that lies at the centre of the new one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int16, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from moce.engine.randomness import uniform
from moce.images.augment import crop_and_resize
from moce.images.sampler import Order
from moce.transfer.segment.masks import IGNORE
from moce.transfer.segment.maskset import Pool
from moce.transfer.segment.recipe import Recipe

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels of the picture."""


def covering(sides: tuple[int, int], crop: tuple[int, int]) -> float:
    """The factor at which a picture of (height, width) just covers a crop."""
    return max(crop[0] / sides[0], crop[1] / sides[1])


def crop_of(
    sides: tuple[int, int], crop: tuple[int, int], scale: float, top: float, left: float
) -> tuple[Box, tuple[int, int]]:
    """(box to cut, size to bring it to) at `scale` times the size that just covers; `top` and `left` lie in [0, 1)."""
    factor = scale * covering(sides, crop)
    box, size = [0, 0, 0, 0], [0, 0]
    for i, place in enumerate((top, left)):
        whole = max(math.floor(sides[i] * factor + 0.5), 1)
        size[i] = min(whole, crop[i])
        inside = max(math.floor(crop[i] / factor + 0.5), 1)
        box[2 + i] = sides[i] if whole <= crop[i] else min(inside, sides[i])
        box[i] = math.floor(place * (sides[i] - box[2 + i] + 1))
    return (box[0], box[1], box[2], box[3]), (size[0], size[1])


def cut_mask(mask: Int16[Tensor, "rows columns"], box: Box, size: tuple[int, int]) -> Int16[Tensor, "h w"]:
    """A box of a mask at another size: every pixel takes the class at its centre."""
    (top, left), (height, width) = box[:2], box[2:]
    rows = top + nearest(height, size[0])
    return mask[rows][:, left + nearest(width, size[1])]


def nearest(before: int, after: int) -> Int64[Tensor, "after"]:
    """Of a side of `before` pixels brought to `after`: in which old pixel the centre of each new one lies."""
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * (before / after)
    return centres.long().clamp_(max=before - 1)


class Batch(NamedTuple):
    """Crops and the classes of their pixels."""

    images: UInt8[Tensor, "images channels h w"]
    classes: Int16[Tensor, "images h w"]


class Crops(Dataset):
    """Item s is the part of process `rank` of `world` of the batch of step s."""

    def __init__(
        self,
        pool: Pool,
        order: Order,
        size: tuple[int, int],
        recipe: Recipe,
        mean: Sequence[float],
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rank, self.world = rank, world
        self.pool, self.order, self.size, self.recipe, self.seed = pool, order, size, recipe, seed
        self.filling = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)[:, None, None]

    def __getitem__(self, step: int) -> Batch:
        indices, epochs = self.order.batch(step, self.rank, self.world)
        draws = uniform(self.seed, "segmentation crop", epochs, indices, 4).tolist()
        found = [self.crop(i, *draw) for i, draw in zip(indices.tolist(), draws, strict=True)]
        return Batch(*(torch.stack(parts) for parts in zip(*found, strict=True)))

    def crop(
        self, index: int, scale: float, top: float, left: float, mirror: float
    ) -> tuple[UInt8[Tensor, "channels h w"], Int16[Tensor, "h w"]]:
        """One crop, from four draws in [0, 1)."""
        recipe, (image, mask) = self.recipe, self.pool.get(index)
        scale = recipe.min_scale + (recipe.max_scale - recipe.min_scale) * scale
        box, size = crop_of((mask.shape[0], mask.shape[1]), self.size, scale, top, left)
        crop = self.filling.expand(-1, *self.size).clone()
        classes = mask.new_full(self.size, IGNORE)
        crop[:, : size[0], : size[1]] = crop_and_resize(image, box, size)
        classes[: size[0], : size[1]] = cut_mask(mask, box, size)
        if recipe.flip and mirror < 0.5:
            crop, classes = crop.flip(-1), classes.flip(-1)
        return crop, classes
