"""Features of every picture of a source: one pass of a frozen model over central crops, nothing masked.

Several processes take a contiguous part of the pictures each, and its features stay with them.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from moce.config import ClusterConfig
from moce.engine.devices import num_workers_of
from moce.engine.files import require_space
from moce.engine.processes import ALONE, Group, group
from moce.engine.progress import track
from moce.images.loader import centred_batches
from moce.images.sources import Source
from moce.model.assigner import embed, encoder_features
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.whitening import scaling_of

CROP_PCT = 1.0
RAW_SIDE = 8  # pixels
ON_DISK_FROM = 2**30  # bytes


class Features(NamedTuple):
    """The readable pictures in the order of their indices: `indices` of all, features of this process's part."""

    indices: Int64[Tensor, "all"]
    features: Float[Tensor, "images width"]
    raw: (
        Float[Tensor, "images pixels"] | None
    )  # 8 x 8 pixels, where the pictures have classes to compare with


def room_for(rows: int, width: int, folder: Path) -> Float[Tensor, "rows width"]:
    """A float32 array: in memory, or from 1 GiB on in a nameless file in `folder` that goes with the process."""
    size = rows * width * 4
    if size < ON_DISK_FROM:
        return torch.empty(rows, width)
    require_space(folder, size)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, width)))


def raw_pixels(images: UInt8[Tensor, "images channels rows columns"]) -> Float[Tensor, "images pixels"]:
    """Pictures shrunk to 8 x 8 by averaging."""
    return F.adaptive_avg_pool2d(images.float(), RAW_SIDE).flatten(1)


def look_at_all(
    source: Source,
    model: MaskedAutoencoder,
    pixel_mean: tuple[float, ...],
    pixel_std: tuple[float, ...],
    config: ClusterConfig,
    folder: Path,
) -> Features:
    """One pass over the source; pictures that cannot be read are left out. Large arrays lie in `folder`."""
    shape, workers, processes = model.shape, num_workers_of(config.num_workers), group()
    own = processes.share(len(source))
    features = room_for(len(own), model.encoder.embed_dim, folder)
    raw = None if source.labels is None else room_for(len(own), shape.channels * RAW_SIDE**2, folder)
    batches = centred_batches(
        source, shape.image_size, config.batch_size, workers, CROP_PCT, config.quiet, torch.tensor(own)
    )
    indices = [torch.empty(0, dtype=torch.int64)]
    done = 0
    with track(len(source), "features", quiet=config.quiet) as progress:
        for numbers, images in batches:
            here = slice(done, done + len(numbers))
            features[here] = encoder_features(model, images, pixel_mean, pixel_std)
            if raw is not None:
                raw[here] = raw_pixels(images)
            indices.append(numbers)
            done += len(numbers)
            progress.advance(len(numbers) * processes.world)  # the others are as far, more or less
    indices_of_all = processes.gather(torch.cat(indices))
    return Features(indices_of_all, features[:done], None if raw is None else raw[:done])


class Embedding(NamedTuple):
    """What `assigner.embed` takes beside the features."""

    mean: Float[Tensor, "width"]
    scaling: Float[Tensor, "width width"] | None


def embed_in_place(
    features: Float[Tensor, "images width"], rows: int = 8192, processes: Group = ALONE, whiten: float = 0.0
) -> Embedding:
    """Subtract the mean of all pictures, of all processes, scale principal axes, and each picture to length 1.

    An axis is scaled by its deviation, relative to the longest one's, to the power of -`whiten`: not at all for 0, all
    to the deviation of the longest for 1 (model/whitening.py).
    Returns what it was done with.
    """
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for chunk in features.split(rows):
        total += chunk.sum(dim=0, dtype=torch.float64)
    images = processes.span(len(features))[1]
    mean = (processes.sum(total) / images).float()
    scaling = None
    if whiten:
        products = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
        for chunk in features.split(rows):
            centred = chunk.double() - mean.double()
            products += centred.T @ centred
        scaling = scaling_of(processes.sum(products) / images, whiten).float()
    for chunk in features.split(rows):
        chunk.copy_(embed(chunk, mean, scaling))
    return Embedding(mean, scaling)
