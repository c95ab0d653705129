"""How a segmentation model is trained and looked at: named recipes, each with its cost.

`ade20k` is the recipe by which masked autoencoders are compared (C: upernet_mae-base of mmsegmentation, after BEiT):
crops of 512 pixels, 16 pictures a step, AdamW with a learning rate that shrinks by 0.65 from block to block, linear
warm-up and a linear way down, windows of 512 every 341 pixels. Left out are drop path and dropout, so that nothing is
random but the crops; the distortion of colours; and the rule that no class fills more than 75 % of a crop.
"""

import dataclasses
import math
from dataclasses import dataclass

from moce.engine.trainer import Plan
from moce.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """One way to train; learning rates are absolute peaks of the last layer and the head."""

    image_size: tuple[int, int]  # of a crop and of a window, in pixels; a picture is resized to just cover it
    channels: int  # of every map of the head
    auxiliary_channels: int
    batch_size: int
    steps: int
    lr: float
    layer_decay: float
    warmup: float  # share of the steps
    blocks: tuple[float, float, float, float]  # whose maps the head reads, as shares of the depth
    weight_decay: float = 0.05
    auxiliary: float = 0.4  # weight of the auxiliary head's loss
    min_scale: float = 0.5  # of a crop: the picture's size over the one at which it just covers the crop
    max_scale: float = 2.0
    flip: bool = True
    overlap: float = 1 / 3  # of neighbouring windows

    def layers(self, depth: int) -> list[int]:
        """The four blocks that are read, counted from 0."""
        return [max(math.ceil(share * depth - 1e-9), 1) - 1 for share in self.blocks]


# The blocks of `ade20k` are 3, 5, 7 and 11 of ViT-B, 7, 11, 15 and 23 of ViT-L.
RECIPES = {
    "small": Recipe(
        image_size=(128, 128),
        channels=64,
        auxiliary_channels=64,
        batch_size=8,
        steps=400,
        lr=1e-3,
        layer_decay=0.75,
        warmup=0.1,
        blocks=(1 / 4, 1 / 2, 3 / 4, 1),
    ),
    "ade20k": Recipe(
        image_size=(512, 512),
        channels=768,
        auxiliary_channels=256,
        batch_size=16,
        steps=160_000,
        lr=1e-4,
        layer_decay=0.65,
        warmup=1500 / 160_000,
        blocks=(1 / 3, 1 / 2, 2 / 3, 1),
    ),
}


def recipe_of(
    preset: str | None, image_size: tuple[int, int] | None, steps: int | None, lr: float | None
) -> Recipe:
    """A recipe by its name, with what was said otherwise; UserError for a name that is not there."""
    name = preset or "small"
    if name not in RECIPES:
        raise UserError(
            f"There is no preset '{name}' of --protocol segment: choose one of {', '.join(RECIPES)}."
            f"{did_you_mean(name, RECIPES)}"
        )
    given = {"image_size": image_size, "steps": steps, "lr": lr}
    return dataclasses.replace(RECIPES[name], **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class PolyPlan(Plan):
    """A linear warm-up, then a straight line down to zero (the "poly" schedule with power 1)."""

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate."""
        rising = max(round(self.warmup * self.num_steps), 1)
        if step < rising:
            return (step + 1) / rising
        return 1 - (step - rising) / max(self.num_steps - rising, 1)
