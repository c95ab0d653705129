"""Mask R-CNN (He et al. 2017) of torchvision on an encoder and its pyramid.

Region proposals, heads and losses are torchvision's. Which anchors and regions a step learns from is
drawn from a seed that goes with the step, so that a continued run draws the same ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from moce.transfer.detect.pyramid import NAMES, Pyramid, require_fitting
from moce.transfer.detect.recipe import STRIDES, Recipe
from moce.transfer.encoder import Trainable
from moce.transfer.finetune import Headed

RATIOS = (0.5, 1.0, 2.0)  # of anchors: height over width
BOX_SIDE, MASK_SIDE = 7, 14  # places that a region is cut into
MIN_SCORE = 0.05


@contextmanager
def drawn_from(seed: int, device: torch.device) -> Iterator[None]:
    """A block in which torch's generators start from `seed`; afterwards they are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def pooler(side: int, canonical: int) -> MultiScaleRoIAlign:
    """Regions cut from the levels of strides 4 to 32."""
    made = MultiScaleRoIAlign(list(NAMES), side, sampling_ratio=2, canonical_scale=canonical)
    # Else it would guess the strides from the first batch's pictures, and do so without their padding.
    made.scales = [1 / stride for stride in STRIDES]
    made.map_levels = initLevelMapper(2, 5, canonical_scale=canonical)
    return made


class Detector(Headed):
    """An encoder, its pyramid, region proposals and the heads of boxes and masks."""

    def __init__(
        self,
        encoder: Trainable,
        width: int,
        image_size: tuple[int, int],
        num_classes: int,
        recipe: Recipe,
        window: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder, self.window = encoder, window
        with drawn_from(seed, torch.device("cpu")):
            patch = require_fitting(encoder, image_size, recipe.coarsest)
            self.pyramid = Pyramid(width, patch, recipe.channels, recipe.coarsest)
            rcnn = mask_rcnn(self.pyramid, num_classes, recipe)
        self.rpn, self.roi_heads = rcnn.rpn, rcnn.roi_heads

    def forward(
        self,
        images: Float[Tensor, "images channels side side"],
        sizes: Sequence[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """(detections, losses): the first without targets, the second with them.

        `sizes` are heights and widths of the pictures without the padding of the square; targets have boxes [n, 4]
        (left, top, right, bottom), labels [n] from 1 and masks [n, side, side]. Detections have boxes in the square,
        labels, scores and masks [n, 1, 28, 28], each of its box.
        """
        # Anchors take the maps' precision, and bf16 cannot tell neighbouring pixels apart: from here on fp32.
        maps = self.pyramid(self.encoder.feature_map(images, self.window))
        with torch.autocast(images.device.type, enabled=False):
            maps = {name: features.float() for name, features in maps.items()}
            listed = ImageList(images, list(sizes))
            proposals, losses = self.rpn(listed, maps, targets)
            detections, more = self.roi_heads(maps, proposals, list(sizes), targets)
        return detections, {**losses, **more}


def mask_rcnn(pyramid: Pyramid, num_classes: int, recipe: Recipe) -> MaskRCNN:
    """torchvision's model around a pyramid; `num_classes` without the background."""
    strides = (*STRIDES, 2 * STRIDES[-1]) if recipe.coarsest else STRIDES
    channels, norm = recipe.channels, LayerNorm2d if recipe.norm else None
    anchors = AnchorGenerator(
        tuple((recipe.anchor * stride,) for stride in strides), (RATIOS,) * len(strides)
    )
    box_head = FastRCNNConvFCHead(
        (channels, BOX_SIDE, BOX_SIDE), [channels] * recipe.box_convs, [recipe.box_width], norm_layer=norm
    )
    before, after = recipe.proposals
    before_test, after_test = recipe.proposals_test
    return MaskRCNN(
        pyramid,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, len(RATIOS), recipe.rpn_convs),
        rpn_pre_nms_top_n_train=before,
        rpn_post_nms_top_n_train=after,
        rpn_pre_nms_top_n_test=before_test,
        rpn_post_nms_top_n_test=after_test,
        rpn_batch_size_per_image=recipe.rpn_batch,
        box_roi_pool=pooler(BOX_SIDE, recipe.canonical),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(recipe.box_width, num_classes + 1),
        box_batch_size_per_image=recipe.rois,
        box_score_thresh=MIN_SCORE,
        mask_roi_pool=pooler(MASK_SIDE, recipe.canonical),
        mask_head=MaskRCNNHeads(channels, [channels] * recipe.mask_convs, 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
    )
