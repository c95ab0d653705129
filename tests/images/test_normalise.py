"""Mean and deviation of each channel: ImageNet's for colour, else measured, every picture counting the same."""

from pathlib import Path

import numpy as np
import pytest

from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.images.normalise import LEAST_STD, normalisation
from moce.images.reading import forget, survey
from moce.images.sources import open_images


def folder(root: Path, *pictures: np.ndarray) -> Path:
    root.mkdir()
    for number, pixels in enumerate(pictures):
        np.save(root / f"{number}.npy", pixels)
    return root


def test_colour_takes_the_numbers_of_imagenet(tmp_path: Path) -> None:
    source = open_images(str(folder(tmp_path / "a", np.zeros((3, 4, 5), np.uint8))))
    assert normalisation(source, 3) == (IMAGENET_MEAN, IMAGENET_STD)


def test_measured_by_hand_whatever_the_sizes(tmp_path: Path) -> None:
    small, large = np.zeros((2, 1, 4), np.uint8), np.full((2, 6, 7), 51, np.uint8)
    small[0] = [[0, 255, 0, 255]]
    source = open_images(str(folder(tmp_path / "a", small, large)), 2)
    mean, std = normalisation(source, 2, quiet=True)
    # channel 0: pictures with means 0.5 and 0.2, mean squares 0.5 and 0.04; channel 1: 0 and 0.2, 0 and 0.04
    assert mean == pytest.approx([0.35, 0.1], abs=1e-6)
    assert std == pytest.approx([(0.27 - 0.35**2) ** 0.5, (0.02 - 0.01) ** 0.5], abs=1e-6)


def test_the_same_from_memory_and_from_files_and_without_broken_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = folder(tmp_path / "a", *(rng.integers(0, 256, (5, 4, 4), dtype=np.uint8) for _ in range(40)))
    (root / "1.npy").write_bytes(b"broken")
    source = open_images(str(root), 5)
    forget()
    from_files = normalisation(source, 5, [1], quiet=True)
    unreadable = survey(source, quiet=True).unreadable  # keeps all pictures in memory
    assert unreadable == [1] and normalisation(source, 5, unreadable, quiet=True) == from_files
    good = np.stack([np.load(p) for p in root.iterdir() if p.name != "1.npy"]) / 255
    assert from_files.mean == pytest.approx(good.mean((0, 2, 3)), abs=1e-5)
    assert from_files.std == pytest.approx(good.std((0, 2, 3)), abs=1e-5)


def test_a_channel_that_never_changes_does_not_divide_by_zero(tmp_path: Path) -> None:
    source = open_images(str(folder(tmp_path / "a", np.full((3, 3), 7, np.uint8))), 1)
    assert normalisation(source, 1, quiet=True).std == pytest.approx([LEAST_STD], abs=1e-6)
