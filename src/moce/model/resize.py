"""A trained model for pictures of another size: its positions are resampled, every other weight stays.

The fixed sine-cosine table is resampled like a learned one, bicubic with antialiasing, and not computed anew for the
larger grid: a place then means the same share of the picture as in training, and what we evaluate is what
`timm.create_model("local-dir:DIR", img_size=...)` makes of a customised folder.
"""

import dataclasses

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from moce.model.autoencoder import MaskedAutoencoder, require_whole_patches


@torch.no_grad()
def resize_encoder(vit: VisionTransformer, image_size: tuple[int, int]) -> None:
    """Make a ViT take pictures of (height, width) pixels, in place; UserError where patches do not fill them."""
    require_whole_patches(image_size, vit.patch_embed.patch_size)
    vit.set_input_size(img_size=image_size)


@torch.no_grad()
def resize(model: MaskedAutoencoder, image_size: tuple[int, int]) -> None:
    """Make an autoencoder take pictures of (height, width) pixels, in place; UserError as above."""
    before, after = model.shape, dataclasses.replace(model.shape, image_size=image_size)
    resize_encoder(model.encoder, image_size)
    table = resample_abs_pos_embed(
        model.decoder_pos_embed, new_size=list(after.grid), old_size=list(before.grid), num_prefix_tokens=1
    )
    model.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
    model.shape = after
