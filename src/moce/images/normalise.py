"""Mean and standard deviation of every channel, which pictures are normalised with before a model sees them.

For three channels they are ImageNet's, which every recipe expects. For other counts there is no such custom, and bands
may differ by orders of magnitude, so they are measured on the pictures of the run, each of which counts the same
whatever its size. They are kept in the header of the model, and every later stage takes them from there.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from moce.engine.progress import track
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.images.decode import UnreadableImage
from moce.images.reading import read_all
from moce.images.sources import Source

MEASURED_ON = 2000  # pictures at most, evenly chosen
LEAST_STD = 1 / 255  # of a channel that is the same everywhere


class Normalisation(NamedTuple):
    """Per channel, of values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalisation(IMAGENET_MEAN, IMAGENET_STD)


def normalisation(
    source: Source, channels: int, unreadable: Iterable[int] = (), quiet: bool = False
) -> Normalisation:
    """ImageNet's for three channels, else measured on up to 2000 readable pictures; the same for the same pictures."""
    if channels == 3:
        return IMAGENET
    readable = np.setdiff1d(np.arange(len(source)), np.fromiter(unreadable, np.int64))
    chosen = readable[np.linspace(0, len(readable) - 1, min(MEASURED_ON, len(readable))).round().astype(int)]
    decoded = read_all(source, quiet, only_if_cheap=True)
    means, squares = [], []
    with track(len(chosen), "mean of each channel", quiet=quiet) as bar:
        for index in chosen.tolist():
            bar.advance(1)
            try:
                image = source.get(index)[0] if decoded is None else decoded.images[index]
            except UnreadableImage:  # a survey looks at a part of many pictures
                continue
            values = image.numpy().reshape(channels, -1) / 255
            means.append(values.mean(axis=1))
            squares.append((values**2).mean(axis=1))
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, LEAST_STD**2))
    return Normalisation(tuple(mean.round(6).tolist()), tuple(std.round(6).tolist()))
