"""Attention in windows: blocks of a ViT that see squares of patches instead of the whole map (ViTDet, Li et al. 2022).

What differs from ViTDet: class and register tokens are kept. Every window sees them, as every crop of pre-training did,
and what attention makes of them in each window is averaged. One window as large as the map is then plain attention.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, cat, nn

GLOBAL = 4  # blocks that see the whole map (ViTDet)


def global_blocks(depth: int, count: int = GLOBAL) -> set[int]:
    """The last block of each of `count` even stretches of `depth` blocks: 2, 5, 8, 11 of 12."""
    return {depth * (i + 1) // count - 1 for i in range(count)} if depth > count else set(range(depth))


def cut(
    tokens: Float[Tensor, "images tokens width"], grid: tuple[int, int], side: int, num_prefix: int
) -> Float[Tensor, "windows inside width"]:
    """The tokens of each window of side x side patches, after the first `num_prefix`, which all of them see.

    Where windows do not fill the map it is padded below and on the right with zeros.
    """
    (images, _, width), (rows, columns) = tokens.shape, grid
    down, across = -(-rows // side), -(-columns // side)
    laid = tokens[:, num_prefix:].reshape(images, rows, columns, width)
    laid = F.pad(laid, (0, 0, 0, across * side - columns, 0, down * side - rows))
    apart = laid.view(images, down, side, across, side, width).transpose(2, 3)
    seen_by_all = tokens[:, :num_prefix].repeat_interleave(down * across, dim=0)
    return cat([seen_by_all, apart.reshape(-1, side * side, width)], dim=1)


def joined(
    windows: Float[Tensor, "windows inside width"], grid: tuple[int, int], side: int, num_prefix: int
) -> Float[Tensor, "images tokens width"]:
    """The inverse of `cut`; of the first `num_prefix` tokens the mean over the windows of a picture."""
    width, (rows, columns) = windows.shape[2], grid
    down, across = -(-rows // side), -(-columns // side)
    prefix = windows[:, :num_prefix].reshape(-1, down * across, num_prefix, width).mean(dim=1)
    laid = windows[:, num_prefix:].reshape(-1, down, across, side, side, width).transpose(2, 3)
    laid = laid.reshape(-1, down * side, across * side, width)[:, :rows, :columns]
    return cat([prefix, laid.reshape(-1, rows * columns, width)], dim=1)


@contextmanager
def windowed(vit: VisionTransformer, side: int) -> Iterator[None]:
    """A block of code in which all but four blocks of `vit` attend within windows of side x side patches; 0: none.

    Attention alone is cut, from outside: nothing has to be known of how a pass goes through the rest of the blocks.
    """
    where = (tuple(vit.patch_embed.grid_size), side, vit.num_prefix_tokens)
    whole = global_blocks(len(vit.blocks))
    hooks = []
    for block in (block for layer, block in enumerate(vit.blocks) if side and layer not in whole):
        hooks.append(
            block.attn.register_forward_pre_hook(lambda _, inputs: (cut(inputs[0], *where), *inputs[1:]))
        )
        hooks.append(block.attn.register_forward_hook(lambda _, __, out: joined(out, *where)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def last_map(
    vit: VisionTransformer, side: int, run: Callable[[], Tensor]
) -> Float[Tensor, "images width rows columns"]:
    """The patches after the final norm of `vit` in the pass that `run` makes, where they lie; attention in windows."""
    found: list[Tensor] = []
    hook = vit.norm.register_forward_hook(partial(_keep, found))
    try:
        with windowed(vit, side):
            run()
    finally:
        hook.remove()
    (tokens,) = found
    return as_map(tokens, tuple(vit.patch_embed.grid_size), vit.num_prefix_tokens)


def _keep(found: list[Tensor], _: nn.Module, __: object, out: Tensor) -> None:
    found.append(out)


def as_map(
    tokens: Float[Tensor, "images tokens width"], grid: tuple[int, int], num_prefix: int
) -> Float[Tensor, "images width rows columns"]:
    """The patches as a map, without class and register tokens."""
    return tokens[:, num_prefix:].transpose(1, 2).unflatten(2, grid)
