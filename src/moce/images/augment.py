"""Crops and flips: the law of RandomResizedCrop, drawn as a function of (seed, epoch, image), and two ways to cut.

`crop_and_resize` cuts one picture of any size with torch's integer kernel; `resize_crops` cuts a batch of
equal-sized ones: on the CPU by the same kernel, picture by picture (faster there than products), on other
devices as two batched matrix products, rows_BhH @ (images_BCHW @ columns_BWw). All crop first and resize then:
the cubic of Keys (1981) with a = -0.5, widened when shrinking (antialias), its weights cut off at the box and
scaled to sum 1. The products differ from `interpolate` on floats in that the intermediate result is rounded to
0..255 like the integer kernel's, which keeps the two ways within 2 grey levels where the cubic overshoots.
"""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from moce.engine.randomness import uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RATIO = (3 / 4, 4 / 3)
TRIES = 10


def crop_boxes(
    seed: int,
    epochs: Int64[Tensor, "images"],
    indices: Int64[Tensor, "images"],
    heights: Int64[Tensor, "images"],
    widths: Int64[Tensor, "images"],
    min_scale: float,
    max_scale: float = 1.0,
) -> Int64[Tensor, "images 4"]:
    """(top, left, height, width) of RandomResizedCrop.

    A share of the area uniform between the scales, a log-uniform ratio of 3/4 to 4/3, ten tries to fit, else the
    largest central box whose ratio is allowed.
    """
    draws = uniform(seed, "crop", epochs, indices, TRIES * 4).double().view(-1, TRIES, 4)
    high, wide = heights[:, None].double(), widths[:, None].double()
    area = high * wide * (min_scale + (max_scale - min_scale) * draws[..., 0])
    low_log, high_log = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low_log + (high_log - low_log) * draws[..., 1])
    width = (area * ratio).sqrt_().round_()
    height = (area / ratio).sqrt_().round_()
    fits = (0 < width) & (width <= wide) & (0 < height) & (height <= high)
    top = (draws[..., 2] * (high - height + 1)).floor_()
    left = (draws[..., 3] * (wide - width + 1)).floor_()
    tried = torch.stack([top, left, height, width], -1)
    first = fits.to(torch.uint8).argmax(1)
    chosen = tried.gather(1, first[:, None, None].expand(-1, 1, 4))[:, 0]
    central_width = torch.minimum(wide, (high * RATIO[1]).round_())
    central_height = torch.minimum(high, (wide / RATIO[0]).round_())
    central = torch.cat(
        [
            (high - central_height).div_(2).floor_(),
            (wide - central_width).div_(2).floor_(),
            central_height,
            central_width,
        ],
        1,
    )
    return torch.where(fits.any(1, keepdim=True), chosen, central).long()


def flips(
    seed: int, epochs: Int64[Tensor, "images"], indices: Int64[Tensor, "images"]
) -> Bool[Tensor, "images"]:
    """Which pictures are mirrored: every second, at random."""
    return uniform(seed, "flip", epochs, indices, 1)[:, 0] < 0.5


def crop_and_resize(
    image: UInt8[Tensor, "channels rows columns"], box: Sequence[int], size: tuple[int, int]
) -> UInt8[Tensor, "channels h w"]:
    """One box (top, left, height, width) of one picture at `size` (height, width); on the CPU."""
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width]
    return functional.interpolate(crop, size, mode="bicubic", antialias=True)[0]


def resize_crops(
    images: UInt8[Tensor, "images channels rows columns"],
    boxes: Int64[Tensor, "images 4"],
    size: tuple[int, int],
) -> UInt8[Tensor, "images channels h w"]:
    """Each picture's own box at `size`, on the device of `images`; nothing waits for the device."""
    if images.device.type != "cpu":
        return resize_crops_by_products(images, boxes.to(images.device), size)
    crops = images.new_empty(*images.shape[:2], *size)
    for image, box, crop in zip(images, boxes.tolist(), crops, strict=True):
        crop.copy_(crop_and_resize(image, box, size))
    return crops


def resize_crops_by_products(
    images: UInt8[Tensor, "images channels rows columns"],
    boxes: Int64[Tensor, "images 4"],
    size: tuple[int, int],
) -> UInt8[Tensor, "images channels h w"]:
    """`resize_crops` for devices that are fast at products; the number of operations does not depend on the boxes."""
    num_images, channels, height, width = images.shape
    columns = _weights(boxes[:, 1], boxes[:, 3], width, size[1])
    rows = _weights(boxes[:, 0], boxes[:, 2], height, size[0])
    lines = images.float().reshape(num_images, channels * height, width)
    lines = _to_grey_levels(torch.bmm(lines, columns.mT)).view(num_images, channels, height, size[1])
    return _to_grey_levels(torch.matmul(rows[:, None], lines)).to(torch.uint8)


def centre_crop(
    image: UInt8[Tensor, "*images channels rows columns"],
    size: tuple[int, int],
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
) -> UInt8[Tensor, "*images channels h w"]:
    """Resized to cover size / crop_pct, then the middle; a picture that has this size already comes back unchanged."""
    height, width = image.shape[-2:]
    high, wide = (math.floor(side / crop_pct + 1e-9) for side in size)
    # In whole numbers, since torchvision's Resize cuts off the longer side's fraction.
    if high * width >= wide * height:
        resized = [high, high * width // height]
    else:
        resized = [wide * height // width, wide]
    if resized != [height, width]:
        batch = image.reshape(-1, *image.shape[-3:])
        batch = functional.interpolate(batch, resized, mode=interpolation, antialias=True)
        image = batch.reshape(*image.shape[:-2], *resized)
    top, left = (round((have - want) / 2) for have, want in zip(resized, size, strict=True))
    return image[..., top : top + size[0], left : left + size[1]].contiguous()


def finish(
    images: UInt8[Tensor, "images channels h w"],
    flip: Bool[Tensor, "images"] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float32[Tensor, "images channels h w"]:
    """Mirror and normalise, on the device of `images`: the last step before a model."""
    scale, offset = _affine(tuple(mean), tuple(std), images.device)
    if (
        images.device.type == "cpu"
    ):  # a picture at a time stays in the cache: a third of the time at 224 pixels (M)
        out = torch.empty(images.shape)
        mirrored = [False] * len(images) if flip is None else flip.tolist()
        for image, mirror, row in zip(images, mirrored, out, strict=True):
            torch.addcmul(offset[0], (image.flip(-1) if mirror else image).float(), scale[0], out=row)
        return out
    if flip is not None:
        images = torch.where(flip.to(images.device)[:, None, None, None], images.flip(-1), images)
    return torch.addcmul(offset, images.float(), scale)


@functools.lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """x / 255 / std - mean / std as a factor and an offset, kept on the device: copying them would wait for it."""
    scale = [[[1 / (255 * s)]] for s in std]
    offset = [[[-m / s]] for m, s in zip(mean, std, strict=True)]
    return torch.tensor([scale], device=device), torch.tensor([offset], device=device)


def _weights(
    starts: Int64[Tensor, "images"], lengths: Int64[Tensor, "images"], num_inputs: int, num_outputs: int
) -> Float32[Tensor, "images num_outputs num_inputs"]:
    """Row o holds how much each input counts for output o of the box [start, start + length).

    Computed for the few inputs that can count (the number is known from the shapes alone), then put in their places.
    """
    starts, lengths = starts[:, None, None], lengths[:, None, None]
    step = lengths.float() / num_outputs
    widening = step.clamp(min=1)
    taps = math.ceil(4 * max(num_inputs / num_outputs, 1)) + 1
    centres = (torch.arange(num_outputs, device=starts.device)[:, None] + 0.5) * step
    first = (centres - 2 * widening + 0.5).floor_()
    inputs = first + torch.arange(taps, device=starts.device)
    weights = _cubic((inputs + 0.5 - centres) / widening)
    weights *= (inputs >= 0) & (inputs < lengths)
    weights /= weights.sum(-1, keepdim=True)
    places = (inputs.long() + starts).clamp_(0, num_inputs - 1)
    dense = weights.new_zeros(len(starts), num_outputs, num_inputs)
    return dense.scatter_add_(2, places, weights)


def _cubic(x: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Keys' cubic with a = -0.5: 1 at 0, 0 at the other integers and beyond 2."""
    x = x.abs()
    near = ((1.5 * x - 2.5) * x).mul_(x).add_(1)
    far = ((-0.5 * x + 2.5) * x - 4).mul_(x).add_(2)
    return torch.where(x < 1, near, far).mul_(x < 2)


def _to_grey_levels(x: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    return x.round_().clamp_(0, 255)
