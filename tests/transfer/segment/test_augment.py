from pathlib import Path

import torch

from moce.images.sampler import Order
from moce.transfer.segment.augment import Crops, crop_of, cut_mask
from moce.transfer.segment.masks import IGNORE
from moce.transfer.segment.maskset import Pool, open_mask_task
from moce.transfer.segment.recipe import RECIPES

SIZE, RECIPE = (32, 24), RECIPES["small"]


def test_a_picture_just_covers_the_crop_at_scale_1() -> None:
    assert crop_of((48, 64), (32, 32), 1.0, 0.0, 0.5) == ((0, 8, 48, 48), (32, 32))
    assert crop_of((48, 64), (32, 32), 2.0, 0.999, 0.0) == ((24, 0, 24, 24), (32, 32))


def test_a_small_picture_leaves_a_part_of_the_crop_empty() -> None:
    assert crop_of((48, 64), (32, 32), 0.5, 0.9, 0.9) == ((0, 0, 48, 64), (16, 21))


def test_a_mask_takes_the_class_at_the_centre_of_a_pixel() -> None:
    mask = torch.arange(24, dtype=torch.int16).view(4, 6)
    assert cut_mask(mask, (0, 0, 4, 6), (4, 6)).tolist() == mask.tolist()
    assert cut_mask(mask, (1, 0, 3, 6), (1, 2)).tolist() == [[13, 16]]  # of rows 1 to 3 the middle one
    assert cut_mask(mask, (0, 2, 2, 2), (4, 4)).tolist() == [[2, 2, 3, 3]] * 2 + [[8, 8, 9, 9]] * 2


def test_picture_and_mask_are_cut_mirrored_and_padded_alike(tiny_ade: Path) -> None:
    task = open_mask_task(str(tiny_ade), None, 3).checked(0, quiet=True)
    crops = Crops(Pool([task.train]), Order(16, 4, 0), SIZE, RECIPE, (0.5, 0.5, 0.5), seed=0)
    padded = mirrored = 0
    for step in range(12):
        images, classes = crops[step]
        assert images.shape == (4, 3, 32, 24) and classes.shape == (4, 32, 24)
        red, blue = (images[:, c].float() for c in (0, 2))
        ball, box, nothing = (classes == c for c in (1, 2, IGNORE))
        assert red[ball].mean() > 150 > red[box].mean() and blue[box].mean() > 150 > blue[ball].mean()
        grey = (images == 128).all(dim=1)
        assert (grey & ~nothing).float().mean() < 0.01  # what was filled up belongs to no class
        padded += int(nothing[:, -1].all(dim=1).sum())
        mirrored += int((nothing[:, :, 0].all(dim=1) & ~nothing[:, :, -1].all(dim=1)).sum())
    assert padded and mirrored


def test_a_batch_is_a_function_of_seed_and_step(tiny_ade: Path) -> None:
    task = open_mask_task(str(tiny_ade), None, 3).checked(0, quiet=True)

    def batch(seed: int, step: int) -> torch.Tensor:
        return Crops(Pool([task.train]), Order(16, 4, seed), SIZE, RECIPE, (0.5,) * 3, seed)[step][0]

    assert torch.equal(batch(0, 5), batch(0, 5))
    assert not torch.equal(batch(0, 5), batch(1, 5)) and not torch.equal(batch(0, 5), batch(0, 9))
