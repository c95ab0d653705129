"""Attention in windows: a block of a ViT on squares of patches instead of the whole map (ViTDet, Li et al. 2022).

A block mixes tokens in its attention alone, so running all of it on the tokens of each window is attention in windows.
What differs from ViTDet: class and register tokens are kept. Every window sees them, as every crop of pre-training did,
and what the windows make of them is averaged. One window as large as the map is then the block itself.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, cat

GLOBAL = 4  # blocks that see the whole map (ViTDet)


def global_blocks(depth: int, count: int = GLOBAL) -> set[int]:
    """The last block of each of `count` even stretches of `depth` blocks: 2, 5, 8, 11 of 12."""
    return (
        {depth * (i + 1) // count - 1 for i in range(min(count, depth))}
        if depth > count
        else set(range(depth))
    )


def in_windows(
    block: Callable[[Tensor], Tensor],
    tokens: Float[Tensor, "images tokens width"],
    grid: tuple[int, int],
    side: int,
    num_prefix: int,
) -> Float[Tensor, "images tokens width"]:
    """What `block` makes of the tokens, each window of side x side patches on its own.

    Where windows do not fill the map it is padded below and on the right with zeros, which are cut off again.
    """
    images, _, width = tokens.shape
    prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
    rows, columns = grid
    down, across = -(-rows // side), -(-columns // side)
    laid = F.pad(
        patches.reshape(images, rows, columns, width),
        (0, 0, 0, across * side - columns, 0, down * side - rows),
    )
    cut = laid.view(images, down, side, across, side, width).transpose(2, 3).reshape(-1, side * side, width)
    shared = prefix.repeat_interleave(down * across, dim=0)
    out = block(cat([shared, cut], dim=1))
    prefix = out[:, :num_prefix].reshape(images, down * across, num_prefix, width).mean(dim=1)
    laid = out[:, num_prefix:].reshape(images, down, across, side, side, width).transpose(2, 3)
    laid = laid.reshape(images, down * side, across * side, width)[:, :rows, :columns]
    return cat([prefix, laid.reshape(images, rows * columns, width)], dim=1)


def as_map(
    tokens: Float[Tensor, "images tokens width"], grid: tuple[int, int], num_prefix: int
) -> Float[Tensor, "images width rows columns"]:
    """The patches of a pass as a map, without class and register tokens."""
    return tokens[:, num_prefix:].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
