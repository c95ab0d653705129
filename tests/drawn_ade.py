"""A miniature of ADE20K, drawn and written here."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"meadow": (90, 150, 60), "ball": (200, 50, 40), "box": (40, 60, 200)}


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """(picture, mask): a red ball and a blue box on green; 1, 2 and 3 are the classes, a frame of 0 belongs to none."""
    rng = np.random.default_rng(number)
    height, width = (int(side) for side in rng.integers(36, 52, 2))
    y, x = np.mgrid[:height, :width]
    mask = np.full((height, width), 1, np.uint8)
    top, left = rng.integers(2, height - 18), rng.integers(2, width - 18)
    mask[top : top + 14, left : left + 14] = 3
    mask[np.hypot(y - rng.integers(10, height - 10), x - rng.integers(10, width - 10)) < 8] = 2
    picture = np.array(list(COLOURS.values()))[mask - 1] + rng.normal(0, 12, (height, width, 3))
    mask[0] = mask[-1] = 0
    return picture.clip(0, 255).astype(np.uint8), mask


def write_ade(folder: Path, num_train: int = 16, num_test: int = 6) -> Path:
    """The layout of ADE20K: JPEGs, and PNGs of class numbers."""
    for split, first, count in (("training", 0, num_train), ("validation", 1000, num_test)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(first, first + count):
            picture, mask = scene(i)
            Image.fromarray(picture).save(folder / "images" / split / f"ADE_{i:08d}.jpg", quality=95)
            Image.fromarray(mask).save(folder / "annotations" / split / f"ADE_{i:08d}.png")
    lines = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        *(f"{i}\t0.1\t1\t1\t0\t{n}, thing" for i, n in enumerate(COLOURS, 1)),
    ]
    (folder / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    return folder
