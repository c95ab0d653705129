"""transformers' masked autoencoder with our weights: an independent implementation to compare speed and values with."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moce.model.autoencoder import MaskedAutoencoder, mlp_ratio
from moce.model.vitmae import Origin, as_theirs, origin

LARGEST_DIFFERENCE = 1e-3  # of two losses of the same pictures and mask


@dataclass(frozen=True)
class Peer:
    """One way to run transformers' model."""

    precision: str
    attention: str  # eager or sdpa
    fused: bool = True  # AdamW in one kernel
    compiled: bool = False

    def about(self) -> dict[str, Any]:
        """What a row's setting says of it."""
        optimizer = "fused AdamW" if self.fused else "AdamW"
        return {"attention": self.attention, "optimizer": optimizer, "compiled": self.compiled}


def peers_of(bf16: bool, with_compiled: bool) -> list[Peer]:
    """As it comes, in fp32; and in the precision that we train in with each attention, and compiled."""
    precision = "bf16" if bf16 else "fp32"
    found = [Peer("fp32", "eager", fused=False), Peer(precision, "eager"), Peer(precision, "sdpa")]
    return [*found, Peer(precision, "sdpa", compiled=True)] if with_compiled else found


def there_is_transformers() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("transformers") is not None


def twin(model: MaskedAutoencoder, attention: str = "eager") -> tuple[nn.Module, dict[str, Origin]]:
    """transformers' model with a copy of our weights, and where each of its parameters comes from."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining  # slow to import, and not always there

    shape, encoder = model.shape, model.encoder
    (image, patch), width = (shape.image_size[0], shape.patch_size[0]), encoder.embed_dim
    assert shape.image_size == (image, image) and shape.patch_size == (patch, patch), "squares only"
    config = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].attn.num_heads,
        intermediate_size=int(mlp_ratio(encoder) * width),
        image_size=image,
        patch_size=patch,
        num_channels=shape.channels,
        decoder_num_attention_heads=shape.decoder_heads,
        decoder_hidden_size=shape.decoder_width,
        decoder_num_hidden_layers=shape.decoder_depth,
        decoder_intermediate_size=4 * shape.decoder_width,
        mask_ratio=shape.mask_ratio,
        norm_pix_loss=shape.norm_target,
        layer_norm_eps=1e-6,
        attn_implementation=attention,
    )
    theirs = ViTMAEForPreTraining(config)
    origins = {name: origin(name) for name, _ in theirs.named_parameters()}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(as_theirs(own, origins[name], shape.patch_size))
    return theirs, origins


@torch.no_grad()
def require_same_loss(
    model: MaskedAutoencoder, theirs: nn.Module, images: Float[Tensor, "images channels rows columns"]
) -> None:
    """Speed of two things is comparable when they do the same: the loss of the same pictures and masks is equal."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(images), model.shape.num_patches, generator=generator).to(images.device)
    ours, other = float(model(images, noise).loss), float(theirs(pixel_values=images, noise=noise).loss)
    if abs(ours - other) > LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"transformers' model has loss {other} where ours has {ours}: not the same arithmetic."
        )
