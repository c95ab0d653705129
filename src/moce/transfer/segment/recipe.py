"""What of a preset of `segment` is no option: the head, the crops, the windows, the schedule's shape.

`ade20k` is the recipe by which masked autoencoders are compared (C: mae-base_upernet_8xb2-amp-160k_ade20k-512x512 of
mmsegmentation): crops of 512 pixels, 16 pictures a step, AdamW with a learning rate that shrinks by 0.65 from block to
block, linear warm-up and a linear way down, windows of 512 every 256 pixels. Left out are drop path and dropout, so
that nothing is random but the crops; the distortion of colours; the rule that no class fills more than 75 % of a crop;
and what it adds to the network itself, a relative position bias in every attention (0 at the start) and layer scale (1
at the start): the encoder stays the one that was pre-trained.
"""

import math
from dataclasses import dataclass

from moce.engine.trainer import Plan


@dataclass(frozen=True)
class Recipe:
    """One way to build the head and to cut pictures."""

    channels: int  # of every map of the head
    auxiliary_channels: int
    warmup: float  # share of the steps
    blocks: tuple[float, float, float, float]  # whose maps the head reads, as shares of the depth
    weight_decay: float = 0.05
    auxiliary: float = 0.4  # weight of the auxiliary head's loss
    min_scale: float = 0.5  # of a crop: the picture's size over the one at which it just covers the crop
    max_scale: float = 2.0
    flip: bool = True
    overlap: float = 1 / 2  # of neighbouring windows

    def layers(self, depth: int) -> list[int]:
        """The four blocks that are read, counted from 0."""
        return [max(math.ceil(share * depth - 1e-9), 1) - 1 for share in self.blocks]


# The blocks of `ade20k` are 3, 5, 7 and 11 of ViT-B, 7, 11, 15 and 23 of ViT-L.
RECIPES = {
    "small": Recipe(
        channels=64, auxiliary_channels=64, warmup=0.1, blocks=(1 / 4, 1 / 2, 3 / 4, 1), overlap=1 / 3
    ),
    "ade20k": Recipe(
        channels=768, auxiliary_channels=256, warmup=1500 / 160_000, blocks=(1 / 3, 1 / 2, 2 / 3, 1)
    ),
}


@dataclass(frozen=True)
class PolyPlan(Plan):
    """A linear warm-up, then a straight line down to zero (the "poly" schedule with power 1)."""

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate."""
        rising = max(round(self.warmup * self.num_steps), 1)
        if step < rising:
            return (step + 1) / rising
        return 1 - (step - rising) / max(self.num_steps - rising, 1)
