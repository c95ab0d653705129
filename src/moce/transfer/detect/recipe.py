"""What the presets of `--protocol detect` fix beyond the options: sizes of the heads, regions, jitter.

`coco` is ViTDet's Mask R-CNN (Li et al. 2022, appendix; detectron2's configuration, R), with a half-cosine in place of
the steps and without drop path. `small` is the same for pictures of 224 pixels on a few cores.
"""

from dataclasses import dataclass

STRIDES = (4, 8, 16, 32)  # pixels of the picture per place of the pyramid's levels


@dataclass(frozen=True)
class Recipe:
    """Sizes in pixels refer to the picture as the encoder sees it."""

    channels: int  # of the pyramid
    coarsest: bool  # a further level of stride 64, for regions alone
    anchor: int  # side of an anchor, in strides of its level
    rpn_convs: int
    rpn_batch: int  # anchors per picture that the region proposals learn from
    proposals: tuple[int, int]  # per picture and level before, per picture after suppression, in training
    proposals_test: tuple[int, int]
    rois: int  # regions per picture that the heads learn from
    canonical: int  # side of a region that is cut from the level of stride 16
    box_convs: int
    box_width: int
    mask_convs: int
    norm: bool  # LayerNorm after the convolutions of the heads
    scales: tuple[float, float]  # large-scale jitter: longer side of the picture over that of the square
    weight_decay: float
    warmup: float  # share of the steps


RECIPES = {
    "small": Recipe(
        channels=64,
        coarsest=False,
        anchor=4,
        rpn_convs=1,
        rpn_batch=128,
        proposals=(400, 200),
        proposals_test=(200, 100),
        rois=64,
        canonical=112,
        box_convs=0,
        box_width=256,
        mask_convs=2,
        norm=False,
        scales=(0.6, 1.5),
        weight_decay=0.05,
        warmup=0.1,
    ),
    "coco": Recipe(
        channels=256,
        coarsest=True,
        anchor=8,
        rpn_convs=2,
        rpn_batch=256,
        proposals=(2000, 1000),
        proposals_test=(1000, 1000),
        rois=512,
        canonical=224,
        box_convs=4,
        box_width=1024,
        mask_convs=4,
        norm=True,
        scales=(0.1, 2.0),
        weight_decay=0.1,
        warmup=250 / 184_375,
    ),
}
