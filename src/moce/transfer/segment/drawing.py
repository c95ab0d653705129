"""Predictions to look at: a picture, its truth and what was predicted, side by side."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from moce.engine.files import write_whole
from moce.images.shown import to_rgb
from moce.transfer.segment.masks import IGNORE

GAP = 2  # pixels between the views
HIGHEST = 320  # pixels of the longer side of a picture that is drawn


def colours(num_classes: int) -> UInt8[np.ndarray, "colours 3"]:
    """A colour per class by the rule of Pascal VOC: its bits, dealt out to red, green, blue; the last is black."""
    numbers = np.arange(1, num_classes + 1)
    table = np.zeros((num_classes + 1, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:-1, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return table


def side_by_side(
    image: UInt8[Tensor, "channels rows columns"],
    truth: Int[Tensor, "rows columns"],
    predicted: Int[Tensor, "rows columns"],
    num_classes: int,
) -> Image.Image:
    """The three views on white; what is not scored is black in the truth."""
    palette = colours(num_classes)
    views = [to_rgb(image), *(palette[part.long().numpy()] for part in (truth, predicted))]
    assert IGNORE == -1, "the last colour is that of pixels that are not scored"
    rows, columns = truth.shape
    shrink = min(HIGHEST / max(rows, columns), 1.0)
    size = max(round(columns * shrink), 1), max(round(rows * shrink), 1)
    canvas = Image.new("RGB", (3 * (size[0] + GAP) - GAP, size[1]), "white")
    for place, view in enumerate(views):
        kind = Image.Resampling.NEAREST if place else Image.Resampling.LANCZOS
        canvas.paste(
            Image.fromarray(np.ascontiguousarray(view)).resize(size, kind), (place * (size[0] + GAP), 0)
        )
    return canvas


def shown(num_pictures: int, at_most: int = 8) -> list[int]:
    """Which pictures are drawn: evenly chosen ones."""
    return torch.linspace(0, num_pictures - 1, min(num_pictures, at_most)).round().long().unique().tolist()


def write_png(path: Path, image: Image.Image) -> None:
    """A PNG, whole or not at all."""
    with write_whole(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)
