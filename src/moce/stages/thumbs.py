"""Small pictures of every cluster: the eight nearest to its centroid and eight of its others, drawn by the seed."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from moce.engine.files import write_whole
from moce.engine.randomness import uniform
from moce.images.loader import centred_batches
from moce.images.sources import Source
from moce.model.weights import write_tensors

NEAREST, OTHERS = 8, 8
LARGEST_SIDE = 96  # pixels
ACROSS, GAP = 4, 2  # pictures per row of a sheet, pixels between them


def choose_members(
    labels: Int64[Tensor, "images"], cosines: Float[Tensor, "images"], num_clusters: int, seed: int
) -> Int64[Tensor, "clusters places"]:
    """Per cluster 16 pictures by their place in `labels`, -1 where it has fewer.

    Places 0 to 7 are the nearest to the centroid, places 8 to 15 a draw from the others; both nearest first.
    """
    chosen = torch.full((num_clusters, NEAREST + OTHERS), -1, dtype=torch.int64)
    draws = uniform(seed, "thumbs", 0, torch.arange(len(labels)), 1)[:, 0]
    by_cluster = labels.argsort(stable=True)
    for cluster, members in enumerate(by_cluster.split(labels.bincount(minlength=num_clusters).tolist())):
        members = members[cosines[members].argsort(descending=True, stable=True)]
        others = members[NEAREST:]
        others = others[draws[others].argsort(stable=True)[:OTHERS].sort().values]
        chosen[cluster, : len(members[:NEAREST])] = members[:NEAREST]
        chosen[cluster, NEAREST : NEAREST + len(others)] = others
    return chosen


def write_thumbs(
    folder: Path,
    source: Source,
    chosen: Int64[Tensor, "clusters places"],
    indices: Int64[Tensor, "images"],
    embedded: Float[Tensor, "clusters places width"],
    image_size: tuple[int, int],
    num_workers: int = 0,
) -> None:
    """Write `thumbs.safetensors` (images, indices, features) and one sheet per cluster into `folder`.

    `chosen` are places in `indices` (the pictures' numbers in the source), `embedded` their features (centred, of
    length 1), which the file keeps in float16. Pictures are central crops of `image_size`, at most 96 pixels a side.
    """
    shrink = min(1, LARGEST_SIDE / max(image_size))
    size = (max(round(image_size[0] * shrink), 1), max(round(image_size[1] * shrink), 1))
    there = chosen >= 0
    numbers = torch.where(there, indices[chosen.clamp_min(0)], -1)
    features = torch.where(there[:, :, None], embedded.half(), 0)
    images = small_pictures(source, numbers, size, num_workers)
    content = {"images": images, "indices": numbers, "features": features}
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "thumbs.safetensors", content, {"kind": "thumbs", "nearest": NEAREST})
    for cluster, pictures in enumerate(images):
        with write_whole(folder / f"cluster-{cluster:04d}.png") as path:
            sheet(pictures).save(path, format="PNG")


def small_pictures(
    source: Source, numbers: Int64[Tensor, "clusters places"], size: tuple[int, int], num_workers: int
) -> UInt8[Tensor, "clusters places channels rows columns"]:
    """The pictures with these numbers; black where there is none."""
    flat = numbers.flatten()
    wanted = flat[flat >= 0].unique()
    images: Tensor | None = None
    for found, pictures in centred_batches(source, size, 64, num_workers, quiet=True, indices=wanted):
        if images is None:
            images = torch.zeros(len(flat), *pictures.shape[1:], dtype=torch.uint8)
        places = torch.isin(flat, found).nonzero()[:, 0]
        images[places] = pictures[torch.searchsorted(found, flat[places])]
    assert images is not None, "no cluster has a picture"
    return images.reshape(*numbers.shape, *images.shape[1:])


def sheet(
    pictures: UInt8[Tensor, "places channels rows columns"], across: int = ACROSS, gap: int = GAP
) -> Image.Image:
    """Pictures in rows of `across`, on white; of more than three channels the first three, of two the first."""
    pictures = pictures[:, : 3 if pictures.shape[1] >= 3 else 1]
    num, channels, height, width = pictures.shape
    down = -(-num // across)
    canvas = np.full(
        (down * (height + gap) - gap, across * (width + gap) - gap, channels), 255, dtype=np.uint8
    )
    for place, picture in enumerate(pictures.numpy()):
        top, left = (place // across) * (height + gap), (place % across) * (width + gap)
        canvas[top : top + height, left : left + width] = picture.transpose(1, 2, 0)
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)
