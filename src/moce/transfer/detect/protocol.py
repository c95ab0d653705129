"""`evaluate --protocol detect`: train Mask R-CNN on an encoder, test it once, COCO's mAP of boxes and masks.

It is a run: interrupted, the same command goes on from the last checkpoint. There is one learning rate, so nothing is
chosen; pictures without an object are not trained on. Several processes take their part of every batch and of the test
pictures; the losses of each are normalised over its own regions, as is usual.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moce.config import EvaluateConfig
from moce.engine.devices import num_workers_of
from moce.engine.files import write_json
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.runs import Run
from moce.engine.trainer import Plan, train
from moce.errors import counted
from moce.images.loader import in_workers, survey
from moce.images.sampler import Order
from moce.options import pair
from moce.transfer.detect.coco_map import coco_map, library
from moce.transfer.detect.cocoset import CocoSet, CocoTask, open_coco
from moce.transfer.detect.detector import Detector
from moce.transfer.detect.jitter import Batch, JitteredBatches
from moce.transfer.detect.prediction import draw, predict
from moce.transfer.detect.pyramid import require_fitting
from moce.transfer.detect.recipe import RECIPES, Recipe
from moce.transfer.detect.training import DetectorObjective
from moce.transfer.encoder import Encoder, Trainable, channels_of, load_encoder, require_map
from moce.transfer.learning import (
    carried_out,
    learned,
    require_one_training,
    training_options,
    without_labels,
)
from moce.transfer.results import ending, heading, strategy_named

WEIGHTS, PREDICTIONS = "detector.safetensors", "predictions.json"


def detect(config: EvaluateConfig, strategy: str | None, device: torch.device) -> dict[str, Any]:
    """The result of a model on a set in COCO's format, as JSON. UserError for what cannot be trained on."""
    library()  # at once, and not after the training that it scores
    require_one_training(config, "set in COCO's format")
    strategy = without_labels(config, strategy)
    channels = group().leading(lambda: channels_of(config.model))
    task = group().leading(lambda: open_coco(config.task, config.data_root, channels))
    size = pair(config.image_size or 224)
    looking = (num_workers_of(config.num_workers), config.quiet, size, strategy, config.seed, task.name)
    encoder = load_encoder(config.model, device, task.train, *looking)
    network = require_map(encoder, "detect")
    require_fitting(network, size, RECIPES[config.preset or "small"].coarsest)
    fingerprint = f"{task.train.fingerprint()}+{task.test.fingerprint()}"
    return carried_out(
        config,
        {"model": encoder.fingerprint, "task": fingerprint},
        lambda run, kept: evaluated(run, kept, task, encoder, network, config, device),
    )


def evaluated(
    run: Run,
    kept: Path | None,
    task: CocoTask,
    encoder: Encoder,
    network: Trainable,
    config: EvaluateConfig,
    device: torch.device,
) -> dict[str, Any]:
    """Train, predict, score, draw."""
    recipe = RECIPES[config.preset or "small"]
    made = (network, encoder.width, encoder.image_size, len(task.train.classes), recipe)
    detector = Detector(*made, config.window, config.seed).to(device)
    unreadable = [survey(source, config.quiet).unreadable for source in (task.train, task.test)]
    usable = [
        i for i, objects in enumerate(task.train.split.usable) if objects and i not in set(unreadable[0])
    ]
    say(told(task, usable, unreadable), config.quiet)
    training = learned(
        run,
        detector,
        WEIGHTS,
        lambda: trained(run, detector, encoder, task.train, task.name, usable, recipe, config),
        kept is not None,
    )
    start = time.perf_counter()
    workers = num_workers_of(config.num_workers)
    results, read = predict(detector, encoder, task.test, device, workers, config.quiet)
    found = run.once(lambda: scored(run, task, results, read))
    scores, pictures = found["scores"], found.pop("pictures")
    say(
        f"{task.name}: box mAP {100 * (scores['box_map'] or 0):.2f}, mask mAP {100 * (scores['mask_map'] or 0):.2f} on "
        f"{counted(found['num_test'], 'picture')} of {task.tested_on}",
        config.quiet,
    )
    return {
        **heading(config, encoder, task.name, "detect"),
        "metric": "box_map",
        "value": scores["box_map"] or 0.0,
        "mask_map": scores["mask_map"],
        "num_train": len(usable),
        "num_val": 0,
        **found,
        "unreadable": sum(map(len, unreadable)),
        "seed": config.seed,
        "settings": {
            "preset": config.preset or "small",
            "tested_on": task.tested_on,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "lr": config.lrs[0],
            "layer_decay": config.layer_decay,
            "weight_decay": recipe.weight_decay,
            "window": config.window,
            "image_size": list(encoder.image_size),
            **strategy_named(encoder),
        },
        "training": training,
        **(
            {"predictions": PREDICTIONS, "pictures": pictures, "folder": str(kept)}
            if kept is not None
            else {}
        ),
        "chosen_on": None,
        **ending(encoder, training["seconds"] + time.perf_counter() - start),
    }


def scored(run: Run, task: CocoTask, results: list[dict[str, Any]], read: list[int]) -> dict[str, Any]:
    """COCO's scores of the results on the pictures that were read; both are left in the run's folder."""
    write_json(run.path / PREDICTIONS, results)
    scores, per_class = coco_map(task.test.ground_truth(read), results)
    objects = [a for index in read for a in task.test.split.annotations[index]]
    return {
        "scores": scores,
        "per_class": per_class,
        "num_test": len(read),
        "num_objects_per_class": [
            sum(a["category_id"] == n for a in objects) for n in task.test.split.categories
        ],
        "pictures": draw(task.test, read, results, run.path),
    }


def told(task: CocoTask, usable: list[int], unreadable: list[list[int]]) -> str:
    """What is trained on and what is not, in a line."""
    parts = [
        f"{task.name}: objects to learn from in {len(usable):,} of {counted(len(task.train), 'picture')} of "
        f"{task.train.split.path.name}"
    ]
    if broken := sum(map(len, unreadable)):
        parts.append(f"{broken} cannot be read and {'is' if broken == 1 else 'are'} left out")
    if flat := task.train.split.num_flat:
        are = ("has", "is") if flat == 1 else ("have", "are")
        parts.append(f"{counted(flat, 'box', 'boxes')} {are[0]} no area and {are[1]} not learned from")
    return "; ".join(parts)


def trained(
    run: Run,
    detector: Detector,
    encoder: Encoder,
    source: CocoSet,
    name: str,
    usable: list[int],
    recipe: Recipe,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Train in place, from the newest checkpoint on; what it took."""
    order = Order(len(source), config.batch_size, config.seed, allowed=np.array(usable, np.int64))
    plan = Plan(order.steps_for(config.epochs), len(order), config.batch_size, recipe.warmup)
    objective = DetectorObjective(
        detector.train(), encoder, config.lrs[0], config.layer_decay, config.seed, config.batch_size
    )
    workers = num_workers_of(config.num_workers)

    def batches(first: int, rank: int, world: int) -> Iterator[Batch]:
        made = (source, order, encoder.image_size[0], recipe.scales, encoder.mean, config.seed, rank, world)
        return in_workers(JitteredBatches(*made), range(first, plan.num_steps), workers)

    return train(
        run,
        objective,
        batches,
        plan,
        training_options(config, recipe.weight_decay),
        what=f"detection on {name}",
        lower="--lrs",
        unused=not detector.encoder.all_used,
    )
