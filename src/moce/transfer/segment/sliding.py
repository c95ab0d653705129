"""A picture of any size through a network of one size: windows that overlap, whose logits are averaged."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from moce.images.augment import crop_and_resize
from moce.transfer.segment.augment import covering

CHUNK = 16  # classes that are brought to the picture's size at a time

Predict = Callable[[Float[Tensor, "windows channels h w"]], Float[Tensor, "windows classes h w"]]


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side of `length` pixels: evenly, the last one at the end."""
    stride = max(math.floor(window * (1 - overlap) + 1e-9), 1)
    return [min(i * stride, length - window) for i in range(math.ceil((length - window) / stride) + 1)]


def covered(
    image: UInt8[Tensor, "channels rows columns"], window: tuple[int, int]
) -> UInt8[Tensor, "channels high wide"]:
    """A picture resized so that it just covers a window; its ratio stays."""
    sides = (image.shape[1], image.shape[2])
    factor = covering(sides, window)
    size = tuple(
        max(math.floor(side * factor + 0.5), least) for side, least in zip(sides, window, strict=True)
    )
    return image if size == sides else crop_and_resize(image, (0, 0, *sides), (size[0], size[1]))


def slid(
    predict: Predict,
    image: Float[Tensor, "channels rows columns"],
    window: tuple[int, int],
    overlap: float,
    batch_size: int,
) -> Float[Tensor, "classes rows columns"]:
    """The logits of every pixel, the mean over the windows that it lies in."""
    (rows, columns), (high, wide) = image.shape[1:], window
    places = [(top, left) for top in starts(rows, high, overlap) for left in starts(columns, wide, overlap)]
    total: Tensor | None = None
    count = image.new_zeros(rows, columns)
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        found = predict(torch.stack([image[:, t : t + high, l : l + wide] for t, l in some]))
        if total is None:
            total = found.new_zeros(found.shape[1], rows, columns)
        for (top, left), logits in zip(some, found, strict=True):
            total[:, top : top + high, left : left + wide] += logits
            count[top : top + high, left : left + wide] += 1
    assert total is not None
    return total / count


def most_likely(
    logits: Float[Tensor, "classes rows columns"], size: tuple[int, int]
) -> Int64[Tensor, "high wide"]:
    """The class of every pixel at another size; some classes at a time, since all of them at once may be gigabytes."""
    best = classes = None
    for first in range(0, len(logits), CHUNK):
        some = F.interpolate(logits[None, first : first + CHUNK], size, mode="bilinear")[0]
        value, place = some.max(dim=0)
        if best is None or classes is None:
            best, classes = value, place
        else:
            classes = torch.where(value > best, place + first, classes)
            best = torch.maximum(value, best)
    assert classes is not None
    return classes
