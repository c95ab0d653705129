"""Rows of loading: training batches alone, beside the recipe that most tutorials have.

    ours    training_batches, then mirrored and normalised as a step does it
    plain   PIL open and convert, torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor, in a DataLoader

Both read the same files with as many workers. Pictures that ours keeps decoded are in memory when the time starts, as
they are from a run's second epoch on.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moce.config import PretrainConfig
from moce.images.loader import survey, training_batches
from moce.images.normalise import IMAGENET
from moce.images.sampler import Order
from moce.images.sources import open_images
from moce.stages.feed import prepared
from moce.study.bench.settings import Setting
from moce.study.bench.timing import Variant, wait_for


@dataclass
class Loading:
    """Batches in steady state: the first ones, which start workers and fill their queue, are not timed."""

    batches: Callable[[int], Iterator[Any]]  # of so many, each where training wants it
    setting: Setting
    flops_per_image: float = 0.0

    def seconds(self) -> float:
        """Of a batch."""
        untimed = 2 * self.setting.num_workers + 1
        wanted = self.setting.amounts.load_batches
        started = 0.0
        for number, _ in enumerate(self.batches(untimed + wanted), start=1):
            if number == untimed:
                wait_for(self.setting.device)
                started = time.perf_counter()
        wait_for(self.setting.device)
        return (time.perf_counter() - started) / wanted


def our_batches(setting: Setting, num: int) -> Iterator[Tensor]:
    """As the feed of a run gives them and as a step prepares them."""
    config = setting.dense
    source = open_images(str(setting.files))
    order = Order(len(source), setting.amounts.batch_size, config.seed)
    found = training_batches(
        source,
        order,
        config.image_size,
        config.min_crop,
        config.seed,
        0,
        num,
        setting.num_workers,
        quiet=True,
        unreadable=survey(source, quiet=True).unreadable,
    )
    return (prepared(batch, config, setting.device, IMAGENET) for batch in found)


class PlainPictures(Dataset):
    """The usual data set of a training script."""

    def __init__(self, folder: Path, config: PretrainConfig) -> None:
        from torchvision import transforms

        self.paths = sorted(folder.iterdir())
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    config.image_size,
                    scale=(config.min_crop, 1.0),
                    interpolation=transforms.InterpolationMode.BICUBIC,
                ),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def plain_batches(setting: Setting, num: int) -> Iterator[Tensor]:
    """The same pictures by the plain recipe; as many epochs as it takes, without starting workers anew."""
    pictures = PlainPictures(setting.files, setting.dense)
    wanted = num * setting.amounts.batch_size
    generator = torch.Generator().manual_seed(setting.options.seed)
    count = len(pictures.paths)
    epochs = [torch.randperm(count, generator=generator) for _ in range(-(-wanted // count))]
    workers = setting.num_workers
    found = DataLoader(
        pictures,
        batch_size=setting.amounts.batch_size,
        sampler=torch.cat(epochs)[:wanted].tolist(),
        num_workers=workers,
        generator=generator,
        multiprocessing_context="fork" if workers and sys.platform.startswith("linux") else None,
    )
    return (batch.to(setting.device) for batch in found)


def loading_variants(setting: Setting) -> list[Variant]:
    """The two rows of loading, which take turns."""
    recipes = {"moce": our_batches, "PIL and torchvision": plain_batches}
    found = []
    for recipe, batches in recipes.items():
        about = setting.about(
            "fp32", recipe=recipe, pictures=setting.about_files(), num_workers=setting.num_workers
        )
        build = partial(Loading, partial(batches, setting), setting)
        against = "loader" if recipe == "moce" else None
        batch = setting.amounts.batch_size
        found.append(Variant("loader", about, batch, build, against, lambda: setting.files))
    return found
