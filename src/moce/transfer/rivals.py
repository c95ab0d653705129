"""Encoders that other people trained: timm:NAME and hf:NAME.

A ViT gives the mean of its patch tokens after the final norm, as our own models do. Any other architecture gives what
timm pools before its classifier, and learns layer by layer in the groups that timm makes of its parameters. The
normalisation, size and crop of the pictures are those it was trained with; the crops of fine-tuning are always bicubic.
"""

import functools
from typing import Any

import torch
from jaxtyping import Float
from timm.models import VisionTransformer, group_parameters
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from moce.model.autoencoder import NORM_EPS
from moce.model.foreign import resolved
from moce.model.resize import resize_encoder
from moce.model.timm_models import open_timm, pooled
from moce.model.vitmae import ViTMAE, open_vitmae
from moce.model.weights import fingerprint, load_strictly
from moce.transfer.encoder import CROP_PCT, Encoder, Frozen, PlainViT, Trainable


class Pooled(Trainable):
    """Any model of timm, as it pools itself."""

    all_used = False  # who knows

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self._layers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        self.num_layers = 1 + max(self._layers.values())

    def forward(self, images: Float[Tensor, "images channels h w"]) -> Float[Tensor, "images width"]:
        return pooled(self.network, images).float()

    def layer_of(self, name: str) -> int:
        return self._layers[name.removeprefix("network.")]


def gives_patches(network: Any) -> bool:
    """Whether a network is a ViT of ordinary blocks whose last norm every patch passes through."""
    return (
        isinstance(network, VisionTransformer)
        and not isinstance(network.norm, nn.Identity)
        and all(type(block) is Block and type(block.attn) is Attention for block in network.blocks)
    )


def foreign_encoder(
    uri: str, device: torch.device, quiet: bool = False, image_size: tuple[int, int] | None = None
) -> Encoder:
    """The encoder that timm:NAME or hf:NAME is, for pictures of `image_size`, by default of its own size.

    UserError where it cannot be had, does not fit, or does not take pictures of this size.
    """
    name = resolved(uri)
    if name.startswith("hf:"):
        return vitmae_encoder(uri, open_vitmae(name), device, image_size)
    found = open_timm(name, image_size, quiet)
    plain = gives_patches(found.network)
    return Frozen(
        PlainViT(found.network) if plain else Pooled(found.network),
        name=uri,
        method=found.name,
        fingerprint=fingerprint(found.network),
        width=found.network.embed_dim if plain else found.width,
        image_size=found.image_size,
        mean=found.mean,
        std=found.std,
        crop_pct=found.crop_pct,
        interpolation=found.interpolation,
        device=device,
        about={"weights": found.weights},
    )


def vitmae_encoder(
    uri: str, found: ViTMAE, device: torch.device, image_size: tuple[int, int] | None
) -> Encoder:
    """transformers' ViTMAE as timm's ViT, without its decoder and with nothing masked."""
    config = found.config
    vit = VisionTransformer(
        img_size=found.image_size,
        patch_size=found.patch_size,
        in_chans=config.num_channels,
        num_classes=0,
        global_pool="avg",
        fc_norm=False,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,  # timm cuts the product off
        norm_layer=functools.partial(nn.LayerNorm, eps=NORM_EPS),
    )
    encoder = {n.removeprefix("encoder."): t for n, t in found.tensors.items() if n.startswith("encoder.")}
    load_strictly(vit, encoder, uri)
    size = image_size or found.image_size
    resize_encoder(vit, size)
    return Frozen(
        PlainViT(vit),
        name=uri,
        method="ViTMAE",
        fingerprint=fingerprint(vit),
        width=vit.embed_dim,
        image_size=size,
        mean=found.pixels.mean,
        std=found.pixels.std,
        crop_pct=CROP_PCT,
        device=device,
        about={"weights": "pretrained"},
    )
