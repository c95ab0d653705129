"""UperNet (Xiao et al. 2018): a pyramid pooling module on the coarsest of four maps, a feature pyramid on all four.

A plain ViT has maps of one size, so those of four blocks are first brought to four times, twice, once and half the
resolution of its patches, by what BEiT and MAE put there: transposed convolutions and pooling. For patches of 16 pixels
these are the strides 4, 8, 16, 32.

It differs from the textbook in having no dropout before the classifier. Logits come at the finest map's resolution.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moce.transfer.norm import BatchNorm

BINS = (1, 2, 3, 6)  # sides of the grids that the coarsest map is pooled to
AUXILIARY = 2  # the map that the auxiliary head reads

Map = Float[Tensor, "images _channels _rows _columns"]  # of any size: those of one call differ


class ConvNorm(nn.Module):
    """A convolution that keeps the size, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, side: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, side, padding=side // 2, bias=False)
        self.norm = BatchNorm(channels)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, images: Map) -> Map:
        return F.relu(self.norm(self.conv(images)))


def resized(images: Map, like: Tensor) -> Map:
    """A map at the resolution of another."""
    size = like.shape[-2:]
    return images if images.shape[-2:] == size else F.interpolate(images, size, mode="bilinear")


class Neck(nn.Module):
    """Four maps of a ViT at four resolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.finest = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            BatchNorm(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.fine = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, maps: list[Map]) -> list[Map]:
        coarse = F.max_pool2d(maps[3], 2, ceil_mode=True)  # a grid of one row has a coarse map as well
        return [self.finest(maps[0]), self.fine(maps[1]), maps[2], coarse]


class UperNet(nn.Module):
    """Logits from four maps of `width` channels, the finest first."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(ConvNorm(width, channels, 1) for _ in BINS)
        self.bottleneck = ConvNorm(width + len(BINS) * channels, channels)
        self.lateral = nn.ModuleList(ConvNorm(width, channels, 1) for _ in range(3))
        self.smooth = nn.ModuleList(ConvNorm(channels, channels) for _ in range(3))
        self.fusion = ConvNorm(4 * channels, channels)
        self.classifier = classifier(channels, num_classes)

    def coarsest(self, images: Map) -> Map:
        """The pyramid pooling module: what the whole picture shows, seen from every place of it."""
        seen = [
            resized(conv(F.adaptive_avg_pool2d(images, bins)), images)
            for bins, conv in zip(BINS, self.pooled, strict=True)
        ]
        return self.bottleneck(torch.cat([images, *seen], dim=1))

    def forward(self, maps: list[Map]) -> Map:
        levels = [lateral(one) for lateral, one in zip(self.lateral, maps, strict=False)]
        levels.append(self.coarsest(maps[3]))
        for i in (2, 1, 0):
            levels[i] = levels[i] + resized(levels[i + 1], levels[i])
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=False)] + levels[3:]
        return self.classifier(self.fusion(torch.cat([resized(one, levels[0]) for one in smoothed], dim=1)))


class Auxiliary(nn.Module):
    """The head of a fully convolutional network on one map; only training sees it."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width, channels)
        self.classifier = classifier(channels, num_classes)

    def forward(self, images: Map) -> Map:
        return self.classifier(self.conv(images))


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A linear classifier of every place."""
    made = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(made.weight, std=0.01)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made
