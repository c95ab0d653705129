"""`evaluate --protocol segment`: train UperNet on an encoder, test it once, mean intersection over union.

It is a run: interrupted, the same command goes on from the last checkpoint. There is one learning rate, so nothing is
chosen, and what is learned from is train and val together. Several processes take their part of every batch, whose
norms and loss are those of the whole batch, and of the test pictures.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from moce.config import EvaluateConfig
from moce.engine.devices import autocast, num_workers_of
from moce.engine.processes import group
from moce.engine.progress import track
from moce.engine.runs import Run
from moce.engine.trainer import train
from moce.errors import UserError
from moce.images.augment import finish
from moce.images.loader import in_workers
from moce.images.sampler import Order
from moce.options import pair
from moce.transfer.encoder import Encoder, channels_of, load_encoder, require_map
from moce.transfer.learning import (
    carried_out,
    learned,
    require_one_training,
    training_options,
    without_labels,
)
from moce.transfer.results import ending, heading, strategy_named
from moce.transfer.segment.augment import Batch, Crops
from moce.transfer.segment.drawing import shown, side_by_side, write_png
from moce.transfer.segment.iou import Confusion
from moce.transfer.segment.maskset import MaskTask, Pool, open_mask_task
from moce.transfer.segment.recipe import RECIPES, PolyPlan, Recipe
from moce.transfer.segment.segmenter import Segmentation, Segmenter
from moce.transfer.segment.sliding import covered, most_likely, slid

WEIGHTS = "segmenter.safetensors"


def segment(config: EvaluateConfig, strategy: str | None, device: torch.device) -> dict[str, Any]:
    """The result of a model on a segmentation task, as JSON. UserError for what cannot be trained on."""
    require_one_training(config, "task of masks")
    if config.batch_size < 2:
        raise UserError(
            "--protocol segment needs a --batch-size of at least 2: its norms are those of a batch."
        )
    strategy = without_labels(config, strategy)
    channels = group().leading(lambda: channels_of(config.model))
    task = group().leading(lambda: open_mask_task(config.task, config.data_root, channels))
    workers, size = num_workers_of(config.num_workers), pair(config.image_size or 128)
    looking = (workers, config.quiet, size, strategy, config.seed, task.name)
    encoder = load_encoder(config.model, device, task.train.pictures, *looking)
    require_map(encoder, "segment")
    task = task.checked(workers, config.quiet)
    return carried_out(
        config,
        {"model": encoder.fingerprint, "task": task.fingerprint()},
        lambda run, kept: evaluated(run, kept, task, encoder, config, device),
    )


def evaluated(
    run: Run,
    kept: Path | None,
    task: MaskTask,
    encoder: Encoder,
    config: EvaluateConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Train, test, draw: the result in the form that all protocols share."""
    assert task.classes is not None
    recipe, names = RECIPES[config.preset or "small"], task.classes.names
    segmenter = Segmenter(require_map(encoder, "segment"), encoder.width, len(names), recipe, config.seed)
    training = learned(
        run,
        segmenter,
        WEIGHTS,
        lambda: trained(run, segmenter, task, encoder, recipe, config, device),
        kept is not None,
    )
    start = time.perf_counter()
    confusion, pictures = tested(segmenter, task, encoder, recipe, kept, config, device)
    iou, accuracy = confusion.iou(), confusion.accuracy()
    pixels = confusion.counts.sum(dim=1).tolist()
    return {
        **heading(config, encoder, task.name, "segment"),
        "metric": "miou",
        "value": confusion.mean_iou(),
        "pixel_accuracy": confusion.pixel_accuracy(),
        "per_class": iou,
        "scores": [
            {"class": name, "iou": i, "accuracy": a, "pixels": p}
            for name, i, a, p in zip(names, iou, accuracy, pixels, strict=True)
        ],
        "num_train": len(task.train),
        "num_val": 0 if task.val is None else len(task.val),
        "num_test": len(task.test),
        "seed": config.seed,
        "settings": {
            "preset": config.preset or "small",
            "steps": config.steps,
            "batch_size": config.batch_size,
            "lr": config.lrs[0],
            "layer_decay": config.layer_decay,
            **asdict(recipe),
            "blocks": segmenter.blocks,
            "image_size": list(encoder.image_size),
            **strategy_named(encoder),
        },
        "training": training,
        "pictures": pictures,
        **({"folder": str(kept)} if kept is not None else {}),
        "chosen_on": None,
        **ending(encoder, training["seconds"] + time.perf_counter() - start),
    }


def trained(
    run: Run,
    segmenter: Segmenter,
    task: MaskTask,
    encoder: Encoder,
    recipe: Recipe,
    config: EvaluateConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Train in place, from the newest checkpoint on; what it took."""
    pool = Pool([task.train] if task.val is None else [task.train, task.val])
    order = Order(len(pool), config.batch_size, config.seed)
    workers = num_workers_of(config.num_workers)

    def batches(first: int, rank: int, world: int) -> Iterator[Batch]:
        crops = Crops(pool, order, encoder.image_size, recipe, encoder.mean, config.seed, rank, world)
        return in_workers(crops, range(first, config.steps), workers)

    return train(
        run,
        Segmentation(segmenter, encoder, recipe, config.lrs[0], config.layer_decay, device),
        batches,
        PolyPlan(config.steps, len(pool), config.batch_size, recipe.warmup),
        training_options(config, recipe.weight_decay),
        what=f"segmentation of {task.name}",
        lower="--lrs",
        unused=True,  # the final norm, which the maps of blocks do not pass
    )


@torch.no_grad()
def tested(
    segmenter: Segmenter,
    task: MaskTask,
    encoder: Encoder,
    recipe: Recipe,
    kept: Path | None,
    config: EvaluateConfig,
    device: torch.device,
) -> tuple[Confusion, list[str]]:
    """(every test picture scored at its own size, names of the pictures of predictions that were drawn into `kept`)."""
    segmenter.to(device).eval()
    assert task.classes is not None
    window, num_classes = encoder.image_size, len(task.classes.names)
    confusion, pictures = Confusion(num_classes), list[tuple[int, Image.Image]]()
    processes = group()
    drawn = shown(len(task.test)) if kept is not None else []

    def predict(windows: Tensor) -> Tensor:
        with autocast(device, config.precision):
            return segmenter.logits(windows)

    with track(len(task.test), f"testing on {task.name}", quiet=config.quiet) as bar:
        for index in processes.share(len(task.test)):
            image, truth = task.test.get(index)
            pixels = finish(covered(image, window)[None].to(device), None, encoder.mean, encoder.std)
            logits = slid(predict, pixels[0], window, recipe.overlap, config.batch_size)
            predicted = most_likely(logits, (truth.shape[0], truth.shape[1])).cpu()
            confusion.add(truth, predicted)
            if index in drawn:
                pictures.append((index, side_by_side(image, truth, predicted, num_classes)))
            bar.advance(processes.world)  # the others are as far, more or less
    confusion.counts = processes.sum(confusion.counts)
    together = processes.collect(pictures)
    return confusion, processes.once(lambda: written(together, kept))


def written(pictures: list[tuple[int, Image.Image]], kept: Path | None) -> list[str]:
    """The names of pictures of predictions, written into the folder `kept`; there are none without one."""
    names = []
    for index, picture in pictures:
        assert kept is not None
        names.append(f"predictions-{index:05d}.png")
        write_png(kept / names[-1], picture)
    return names
