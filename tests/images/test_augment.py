"""Crops follow RandomResizedCrop's law, and every way of cutting gives the same pixels within 2 grey levels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from moce.images.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre_crop,
    crop_and_resize,
    crop_boxes,
    finish,
    flips,
    resize_crops,
    resize_crops_by_products,
)


def noise(num: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Black-and-white noise: the worst case, since the cubic overshoots at every edge."""
    generator = torch.Generator().manual_seed(num + height + width)
    return torch.randint(0, 2, (num, channels, height, width), generator=generator, dtype=torch.uint8) * 255


def boxes_for(num: int, height: int, width: int, min_scale: float = 0.2, epoch: int = 0) -> torch.Tensor:
    indices = torch.arange(num)
    sides = torch.full((num,), height), torch.full((num,), width)
    return crop_boxes(0, torch.full((num,), epoch), indices, *sides, min_scale)


def furthest(a: torch.Tensor, b: torch.Tensor) -> int:
    assert a.shape == b.shape and a.dtype == b.dtype == torch.uint8
    return int((a.int() - b.int()).abs().max())


SIZES = [
    (64, 64, (64, 64)),
    (64, 64, (32, 32)),  # boxes larger and smaller than the output
    (32, 32, (64, 64)),  # all boxes smaller
    (96, 70, (24, 24)),  # all boxes larger
    (48, 80, (64, 40)),
    (300, 200, (17, 31)),
    (7, 5, (12, 12)),
]


@pytest.mark.parametrize("height, width, size", SIZES)
def test_the_batched_ways_agree_with_the_workers_way(height: int, width: int, size: tuple[int, int]) -> None:
    images = noise(40, height, width)
    boxes = boxes_for(40, height, width, 0.05)
    workers = torch.stack([crop_and_resize(i, b, size) for i, b in zip(images, boxes.tolist(), strict=True)])
    assert furthest(resize_crops(images, boxes, size), workers) <= 2
    assert furthest(resize_crops_by_products(images, boxes, size), workers) <= 2


@pytest.mark.parametrize("height, width, size", SIZES)
def test_torchvision_cuts_the_same(height: int, width: int, size: tuple[int, int]) -> None:
    images = noise(10, height, width)
    boxes = boxes_for(10, height, width, 0.05)
    ours = resize_crops(images, boxes, size)
    for image, box, crop in zip(images, boxes.tolist(), ours, strict=True):
        theirs = tv.resized_crop(image, *box, list(size), InterpolationMode.BICUBIC, antialias=True)
        assert furthest(crop, theirs) <= 2


@pytest.mark.parametrize("height, width, size", SIZES)
def test_pillow_cuts_the_same_where_nothing_overshoots(
    height: int, width: int, size: tuple[int, int]
) -> None:
    """Where the cubic leaves 0..255 the order of the two directions matters, and Pillow chooses it by the sizes."""
    images = noise(10, height, width) // 4 + 96
    boxes = boxes_for(10, height, width, 0.05)
    for image, box, crop in zip(images, boxes.tolist(), resize_crops(images, boxes, size), strict=True):
        top, left, high, wide = box
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + wide, top + high))
        pillow = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
        assert furthest(crop, torch.from_numpy(pillow.copy()).permute(2, 0, 1)) <= 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_how_the_channels_lie_in_memory_changes_nothing(channels: int) -> None:
    image = torch.randint(0, 256, (61, 83, channels), dtype=torch.uint8).permute(2, 0, 1)
    for size in ((32, 32), (40, 96)):
        for box in ((3, 5, 50, 70), (10, 20, 7, 9)):
            found, expected = (crop_and_resize(one, box, size) for one in (image, image.contiguous()))
            assert torch.equal(found, expected)
        assert torch.equal(centre_crop(image, size), centre_crop(image.contiguous(), size))


def test_a_box_of_the_outputs_size_is_a_plain_cut() -> None:
    images = noise(2, 20, 20)
    boxes = torch.tensor([[3, 5, 8, 10], [0, 0, 8, 10]])
    expected = torch.stack([images[0, :, 3:11, 5:15], images[1, :, :8, :10]])
    for cut in (resize_crops, resize_crops_by_products):
        assert torch.equal(cut(images, boxes, (8, 10)), expected)


def test_nothing_from_outside_the_box_leaks_in() -> None:
    image = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    image[:, :, 10:20, 15:30] = 200
    boxes = torch.tensor([[10, 15, 10, 15]])
    for cut in (resize_crops, resize_crops_by_products):
        assert (cut(image, boxes, (32, 32)) == 200).all()
        assert (cut(image, boxes, (4, 4)) == 200).all()


def test_one_channel_works() -> None:
    images = noise(6, 30, 30, channels=1)
    boxes = boxes_for(6, 30, 30)
    assert (
        furthest(resize_crops(images, boxes, (16, 16)), resize_crops_by_products(images, boxes, (16, 16)))
        <= 2
    )


@pytest.mark.gpu
def test_the_gpu_cuts_the_same() -> None:
    images, boxes = noise(64, 64, 64), boxes_for(64, 64, 64)
    assert (
        furthest(resize_crops(images.cuda(), boxes, (64, 64)).cpu(), resize_crops(images, boxes, (64, 64)))
        <= 2
    )


# The law of the boxes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(64, 64), (40, 90), (200, 50), (1, 1), (1, 9), (500, 3)])
def test_boxes_lie_inside(height: int, width: int) -> None:
    top, left, high, wide = boxes_for(2000, height, width).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (high > 0).all() and (wide > 0).all()
    assert (top + high <= height).all() and (left + wide <= width).all()


@pytest.mark.parametrize("height, width, min_scale", [(64, 64, 0.2), (40, 90, 0.2), (120, 50, 0.7)])
def test_boxes_follow_torchvisions_law(height: int, width: int, min_scale: float) -> None:
    """Two samples of 4000, compared by Kolmogorov and Smirnov in area, ratio and both places."""
    ours = boxes_for(4000, height, width, min_scale).double()
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    params = [RandomResizedCrop.get_params(picture, [min_scale, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = torch.tensor(params).double()

    def measures(boxes: torch.Tensor) -> dict[str, torch.Tensor]:
        top, left, high, wide = boxes.unbind(1)
        return {
            "area": high * wide,
            "ratio": wide / high,
            "top": top,
            "left": left,
            "middle": left + wide / 2,
        }

    for name, sample in measures(ours).items():
        other = measures(theirs)[name]
        at = torch.cat([sample, other]).sort().values
        below = [torch.searchsorted(s.sort().values, at, right=True) / 4000 for s in (sample, other)]
        assert (below[0] - below[1]).abs().max() < 1.95 * math.sqrt(2 / 4000), name  # p about 0.001


def test_pictures_too_long_for_any_ratio_get_the_central_box() -> None:
    """500 x 3: no box of ratio 3/4 or more with a fifth of the area fits; torchvision's fallback is 4 x 3."""
    assert boxes_for(3, 500, 3).tolist() == [[248, 0, 4, 3]] * 3
    assert boxes_for(3, 3, 500).tolist() == [[0, 248, 3, 4]] * 3


def test_whole_scale_gives_the_whole_square_only_at_ratio_one() -> None:
    boxes = boxes_for(500, 64, 64, min_scale=1.0)
    assert (boxes[:, 2] * boxes[:, 3] > 0.9 * 64 * 64).all()


def test_boxes_depend_on_seed_epoch_and_index_alone() -> None:
    indices = torch.arange(50)
    sides = torch.full((50,), 64)
    whole = crop_boxes(1, indices % 3, indices, sides, sides, 0.2)
    order = torch.arange(49, -1, -1)
    assert torch.equal(crop_boxes(1, (indices % 3)[order], order, sides, sides, 0.2), whole[order])
    assert not torch.equal(crop_boxes(2, indices % 3, indices, sides, sides, 0.2), whole)
    assert not torch.equal(crop_boxes(1, indices % 3 + 1, indices, sides, sides, 0.2), whole)


def test_boxes_are_frozen() -> None:
    assert boxes_for(3, 64, 64).tolist() == [[13, 4, 50, 52], [1, 6, 63, 51], [11, 10, 53, 47]]


def test_half_of_the_pictures_are_mirrored_each_time_anew() -> None:
    indices = torch.arange(4000)
    first, second = (flips(0, torch.full_like(indices, epoch), indices) for epoch in (0, 1))
    assert abs(first.float().mean() - 0.5) < 0.03 and abs((first == second).float().mean() - 0.5) < 0.03


# Central crops and the last step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(64, 64), (70, 90), (91, 50), (20, 33)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_centre_crop_is_torchvisions_resize_and_center_crop(height: int, width: int, crop_pct: float) -> None:
    image = noise(1, height, width)[0]
    shorter = math.floor(32 / crop_pct)
    resized = tv.resize(image, [shorter], InterpolationMode.BICUBIC, antialias=True)
    expected = tv.center_crop(resized, [32, 32])
    assert torch.equal(centre_crop(image, (32, 32), crop_pct), expected)


def test_centre_crop_leaves_the_right_size_alone_and_takes_batches() -> None:
    images = noise(3, 40, 56)
    assert torch.equal(centre_crop(images, (40, 56)), images)
    one_by_one = torch.stack([centre_crop(image, (24, 24), 0.9) for image in images])
    assert torch.equal(centre_crop(images, (24, 24), 0.9), one_by_one)
    assert centre_crop(images, (24, 50)).shape == (3, 3, 24, 50)


def test_finish_mirrors_and_normalises() -> None:
    images = noise(4, 5, 6)
    flip = torch.tensor([True, False, True, False])
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    plain = (images.float() / 255 - mean) / std
    torch.testing.assert_close(finish(images), plain)
    done = finish(images, flip)
    torch.testing.assert_close(done[0], plain[0].flip(-1))
    torch.testing.assert_close(done[1], plain[1])
    grey = finish(images[:, :1], None, [0.5], [0.25])
    assert sorted(grey.unique().tolist()) == pytest.approx([-2.0, 2.0])
