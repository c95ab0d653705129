"""An encoder with UperNet on it, and what a training step makes of a batch of crops.

The loss is the mean cross-entropy of the pixels that are scored, at the crop's resolution, plus that of the auxiliary
head with its weight, plus what the encoder itself asks for (TokenMoE's balance).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int16
from torch import Tensor

from moce.config import Training
from moce.engine.devices import moved
from moce.engine.processes import group
from moce.engine.trainer import Objective
from moce.images.augment import finish
from moce.transfer.encoder import Encoder, Trainable
from moce.transfer.finetune import Headed, parameter_groups
from moce.transfer.learning import forward_flops
from moce.transfer.segment.augment import Batch
from moce.transfer.segment.masks import IGNORE
from moce.transfer.segment.recipe import Recipe
from moce.transfer.segment.upernet import AUXILIARY, Auxiliary, Neck, UperNet

Logits = Float[Tensor, "images classes _rows _columns"]  # those of the two heads differ in size


class Segmenter(Headed):
    """The network, from normalised pictures of the recipe's size to the logits of every place."""

    def __init__(self, encoder: Trainable, width: int, num_classes: int, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.blocks = recipe.layers(encoder.num_layers - 1)
        with torch.random.fork_rng(
            []
        ):  # new weights are a function of the seed; nobody else's generator moves
            torch.manual_seed(seed)
            self.neck = Neck(width)
            self.head = UperNet(width, recipe.channels, num_classes)
            self.auxiliary = Auxiliary(width, recipe.auxiliary_channels, num_classes)

    def maps(self, images: Float[Tensor, "images channels h w"]) -> list[Tensor]:
        """The four maps that the heads read."""
        return self.neck(self.encoder.block_maps(images, self.blocks))

    def forward(self, images: Float[Tensor, "images channels h w"]) -> tuple[Logits, Logits]:
        """(logits, logits of the auxiliary head), each at its own resolution."""
        maps = self.maps(images)
        return self.head(maps), self.auxiliary(maps[AUXILIARY])

    def logits(self, images: Float[Tensor, "images channels h w"]) -> Float[Tensor, "images classes h w"]:
        """Of every pixel."""
        return upsampled(self.head(self.maps(images)), images)


def upsampled(logits: Logits, images: Tensor) -> Float[Tensor, "images classes h w"]:
    """Logits at the resolution of the pictures."""
    return F.interpolate(logits.float(), images.shape[-2:], mode="bilinear")


def pixel_loss(logits: Logits, classes: Int16[Tensor, "images h w"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the pixels that are scored, in the batch of all processes; 0 where there is none.

    It is this process's part, so that the mean over processes is that mean.
    """
    summed = F.cross_entropy(upsampled(logits, classes), classes.long(), ignore_index=IGNORE, reduction="sum")
    return summed * group().world / group().sum((classes != IGNORE).sum()).clamp(min=1)


class Segmentation(Objective):
    """The loss of a batch of crops, with its auxiliary head's."""

    trained: Segmenter

    def __init__(
        self,
        segmenter: Segmenter,
        encoder: Encoder,
        recipe: Recipe,
        lr: float,
        layer_decay: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.trained, self.recipe, self.device = segmenter, recipe, device
        self.encoder, self.mean, self.std = encoder, encoder.mean, encoder.std
        self.lr, self.layer_decay = lr, layer_decay
        self.train()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, what to log)."""
        images, classes = (moved(part, self.device) for part in batch)
        logits, auxiliary = self.trained(finish(images, None, self.mean, self.std))
        loss = pixel_loss(logits, classes)
        logs = {"head": loss.detach()}
        loss = loss + self.recipe.auxiliary * pixel_loss(auxiliary, classes)
        own = self.trained.encoder.auxiliary_loss()
        return (loss if own is None else loss + own), logs

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """Those of fine-tuning: smaller learning rates further down, no decay of norms and biases."""
        groups = parameter_groups(self.trained, self.layer_decay, config.weight_decay)
        return [{**group, "peak_lr": self.lr * float(str(group.pop("scale")))} for group in groups]

    def flops_per_image(self) -> int:
        """Of a step: three times those of a forward pass."""
        return 3 * forward_flops(self.trained, self.encoder, self.device)

    def describe(self, logged: dict[str, Any]) -> dict[str, Any]:
        """The loss of the head alone."""
        return {"head_loss": logged["head"]}
