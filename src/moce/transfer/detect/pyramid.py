"""The simple feature pyramid (ViTDet, Li et al. 2022): maps of strides 4 to 32 from the last map of a plain ViT.

Each level is the one map, enlarged by transposed convolutions or shrunk by pooling, then a 1x1 and a 3x3 convolution
with a LayerNorm after each. What differs: the map is taken after the encoder's final norm, as everywhere here, and
patches may be of 4, 8, 16 or 32 pixels.
"""

import math
from collections import OrderedDict

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from moce.errors import UserError
from moce.options import spelled_size
from moce.transfer.detect.recipe import STRIDES
from moce.transfer.encoder import Trainable

NAMES = tuple(str(level) for level in range(len(STRIDES)))
COARSEST = "pool"


def require_fitting(network: Trainable, image_size: tuple[int, int], coarsest: bool) -> int:
    """The side of a patch; UserError where such patches or pictures give no pyramid of strides 4 to 32 (or 64).

    torchvision takes the side of the picture over that of a map, rounded down, as the distance of its anchors: they are
    in their places only where every stride divides the side.
    """
    assert network.patch_size is not None, "an encoder without patches has no map"
    side = network.patch_size[0]
    if network.patch_size[1] != side or side not in STRIDES:
        raise UserError(
            f"--protocol detect takes models whose patches are squares of {', '.join(map(str, STRIDES))} pixels; this "
            f"one has patches of {spelled_size(*network.patch_size)}."
        )
    stride = (1 + coarsest) * STRIDES[-1]
    if image_size[0] != image_size[1] or image_size[0] % stride:
        nearest = max(round(max(image_size) / stride), 1) * stride
        raise UserError(
            f"--image-size {spelled_size(*image_size)}: --protocol detect{' --preset coco' if coarsest else ''} sees "
            f"squares whose side is a multiple of {stride}; give {nearest}."
        )
    return side


class Pyramid(nn.Module):
    """One map of stride `patch` to maps of `channels` at strides 4, 8, 16 and 32, and 64 if `coarsest`."""

    def __init__(self, width: int, patch: int, channels: int, coarsest: bool) -> None:
        super().__init__()
        self.out_channels, self.coarsest = channels, coarsest  # torchvision asks for the first
        self.levels = nn.ModuleList(level(width, patch, stride, channels) for stride in STRIDES)

    def forward(
        self, features: Float[Tensor, "images width rows columns"]
    ) -> "OrderedDict[str, Float[Tensor, 'images channels _ _']]":
        maps = OrderedDict((name, made(features)) for name, made in zip(NAMES, self.levels, strict=True))
        if self.coarsest:
            maps[COARSEST] = F.max_pool2d(maps[NAMES[-1]], kernel_size=1, stride=2)
        return maps


def level(width: int, patch: int, stride: int, channels: int) -> nn.Sequential:
    """The way from stride `patch` to `stride`."""
    layers: list[nn.Module] = []
    for step in range(round(math.log2(patch / stride))):
        if step:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width //= 2
    if stride > patch:
        layers.append(nn.MaxPool2d(stride // patch))
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)
