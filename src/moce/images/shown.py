"""Pictures as people see them: any number of channels in red, green and blue, and a colour for each of many things."""

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

# The page's colours of the experts as they are in the light (report.css); pictures cannot follow the reader's theme.
PALETTE = ("#3b76b8", "#dd7d2d", "#3d9a63", "#b8477c", "#8062b5", "#b59227", "#2b9fab", "#7b828d")


def tint(expert: int) -> tuple[int, int, int]:
    """Red, green and blue of an expert; paler from the ninth on."""
    paint = PALETTE[expert % len(PALETTE)]
    pale = min(expert // len(PALETTE), 2) * 0.4
    red, green, blue = (round(v + (255 - v) * pale) for v in bytes.fromhex(paint[1:]))
    return red, green, blue


def to_rgb(
    images: UInt8[Tensor, "*batch channels height width"],
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """What can be shown of pictures with any number of channels: the first three, or grey."""
    shown = (
        images[..., :3, :, :]
        if images.shape[-3] >= 3
        else images[..., :1, :, :].expand(*images.shape[:-3], 3, -1, -1)
    )
    return shown.movedim(-3, -1).numpy()
