"""The one protocol that every evaluation takes, whoever trained the model, and the loaders of our own models.

An encoder turns uint8 pictures of its own size into one vector each: the mean of the patch tokens after the final norm,
nothing masked, float32, the same to the digit each time. `trainable()` is a fresh copy of the network for fine-tuning.

    MAE        a pretrain run: the dense model
    MAE*       a train-experts run with gate none: the dense model trained on
    TokenMoE   a train-experts run with gate token: transferred whole, without noise, fine-tuned with its balance loss
    MoCE       a train-experts run with gate cluster, sliced in memory by the vote of the task's training pictures; or a
               customised folder, sliced earlier
"""

import copy
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, UInt8
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from moce.images.augment import finish


class Trainable(nn.Module):
    """A network from normalised pictures to features, with what layer-wise learning rates need to know."""

    num_layers: int  # layer 0 is all before the first block, block i is layer i + 1, the final norm is layer num_layers

    def layer_of(self, name: str) -> int:
        """The layer of a parameter, by its name in this module."""
        raise NotImplementedError

    def auxiliary_loss(self) -> Float[Tensor, ""] | None:
        """What the last forward pass adds to the loss, already weighted; None where there is no such loss."""
        return None


@runtime_checkable
class Encoder(Protocol):
    """What an evaluation has to know of a model."""

    name: str
    method: str
    fingerprint: str
    width: int
    image_size: tuple[int, int]  # height and width in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    about: dict[str, Any]  # further facts for the JSON of a result, such as the cluster that a task was given

    def features(
        self, images: UInt8[Tensor, "images channels height width"]
    ) -> Float32[Tensor, "images width"]:
        """One vector per picture, on the CPU."""

    def trainable(self) -> Trainable:
        """A fresh copy of the network, every parameter trainable."""


class Frozen:
    """The encoder that a network is."""

    def __init__(
        self,
        network: Trainable,
        *,
        name: str,
        method: str,
        fingerprint: str,
        width: int,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop_pct: float,
        device: torch.device,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.name, self.method, self.fingerprint, self.width = name, method, fingerprint, width
        self.image_size, self.mean, self.std, self.crop_pct = image_size, mean, std, crop_pct
        self.device, self.about = device, about or {}

    @torch.no_grad()
    def features(
        self, images: UInt8[Tensor, "images channels height width"]
    ) -> Float32[Tensor, "images width"]:
        """One vector per picture, on the CPU."""
        assert images.shape[-2:] == self.image_size, (
            f"{self.name} sees {self.image_size}, got {tuple(images.shape)}"
        )
        # TF32, which convolutions use by default, has 10 bits: two encoders that are equal would not look so.
        with torch.backends.cudnn.flags(allow_tf32=False):
            return self.network(finish(images.to(self.device), None, self.mean, self.std)).float().cpu()

    def trainable(self) -> Trainable:
        """A fresh copy of the network, every parameter trainable."""
        return copy.deepcopy(self.network).requires_grad_(True).train()


class PlainViT(Trainable):
    """A plain ViT of timm."""

    vit: VisionTransformer

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.num_layers = len(vit.blocks) + 1

    def forward(self, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images width"]:
        for block in self.vit.blocks:
            block.attn.fused_attn = (
                images.device.type != "cpu"
            )  # written out it is faster there at these lengths
        return self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :].float().mean(dim=1)

    def layer_of(self, name: str) -> int:
        return vit_layer(name.removeprefix("vit."), self.num_layers)


def vit_layer(name: str, num_layers: int) -> int:
    """The layer of a parameter of timm's ViT: embeddings 0, block i is i + 1, what comes after them the last."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return (
        0
        if name.split(".")[0] in ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")
        else num_layers
    )
