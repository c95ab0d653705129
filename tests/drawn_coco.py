"""A miniature set in COCO's format, drawn here: real JPEG files, masks in all three ways of writing them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]


def draw_set(folder: Path, num_train: int = 8, num_val: int = 4, side: int = 64, same: bool = False) -> Path:
    """instances_{train,val}.json and images/; with `same` both splits have the training pictures."""
    (folder / "images").mkdir(parents=True)
    for split, number, seed in (
        ("train", num_train, 0),
        ("val", num_train if same else num_val, 0 if same else 1),
    ):
        content = {"images": [], "annotations": [], "categories": CATEGORIES}
        for index in range(number):
            draw_picture(folder, content, split, index, side, np.random.default_rng([seed, index]))
        write(folder, split, content)
    return folder


def write(folder: Path, split: str, content: dict[str, Any]) -> None:
    (folder / f"instances_{split}.json").write_text(json.dumps(content))


def read(folder: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((folder / f"instances_{split}.json").read_text())


def draw_picture(
    folder: Path, content: dict[str, Any], split: str, index: int, side: int, rng: np.random.Generator
) -> None:
    """Two shapes, one in each half of a picture that is a little wider than high."""
    height, width = side - 8, side
    picture = Image.new("RGB", (width, height), tuple(rng.integers(0, 80, 3).tolist()))
    name = f"{split}/{index:03d}.jpg"
    content["images"].append({"id": 10 + index, "file_name": name, "height": height, "width": width})
    for half in range(2):
        size = int(rng.integers(14, 24))
        left = half * width // 2 + int(rng.integers(0, width // 2 - size))
        top = int(rng.integers(0, height - size))
        mask = Image.new("L", (width, height))
        corners = (left, top, left + size - 1, top + size - 1)
        square = bool((index + half) % 2)
        for canvas, paint in ((mask, 1), (picture, tuple(rng.integers(150, 256, 3).tolist()))):
            pen = ImageDraw.Draw(canvas)
            (pen.rectangle if square else pen.ellipse)(corners, fill=paint)
        pixels = np.asarray(mask)
        polygon = [[left, top, left + size, top, left + size, top + size, left, top + size]]
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": 10 + index,
                "category_id": 3 if square else 7,
                "bbox": [left, top, size, size],
                "area": int(pixels.sum()),
                "iscrowd": 0,
                "segmentation": polygon if square else runs(pixels),
            }
        )
    (folder / "images" / split).mkdir(exist_ok=True)
    picture.save(folder / "images" / name, quality=95)


def runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths: columns one after the other, starting with what is 0."""
    flat = np.concatenate([[0], mask.flatten(order="F").astype(int), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts if counts[-1] else counts[:-1]}
