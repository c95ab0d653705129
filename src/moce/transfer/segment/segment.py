"""The protocol `segment` of `moce evaluate`: train UperNet on a model, test it once, draw some of what it says.

Nothing is chosen, so it is trained on train and val together. With `--json FILE`, training takes place in a run folder
beside FILE (its name with .training), which the same command continues exactly, and pictures of predictions lie beside
FILE as well; without, nothing is kept.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moce.config import EvaluateConfig, Training, pair
from moce.engine.devices import autocast, num_workers_of, peak_rss_bytes
from moce.engine.files import require_writable
from moce.engine.progress import say, track
from moce.engine.runs import open_run, source_commit
from moce.engine.trainer import train
from moce.errors import UserError
from moce.images.augment import finish
from moce.images.loader import in_workers
from moce.images.sampler import Order
from moce.transfer.encoder import Encoder, channels_of, load_encoder, require_map
from moce.transfer.segment.augment import Crops
from moce.transfer.segment.drawing import shown, side_by_side, write_png
from moce.transfer.segment.iou import Confusion
from moce.transfer.segment.masks import Classes
from moce.transfer.segment.maskset import MaskTask, Pool, open_mask_task
from moce.transfer.segment.recipe import PolyPlan, Recipe, recipe_of
from moce.transfer.segment.segmenter import Segmentation, Segmenter
from moce.transfer.segment.sliding import covered, most_likely, slid
from moce.transfer.submodels import BY_LABELS

BETA2 = 0.999  # AdamW's


def segment(config: EvaluateConfig, device: torch.device, strategy: str | None) -> dict[str, Any]:
    """The result of one segmentation task, as JSON. UserError for a task, model or recipe that cannot be used."""
    image_size = None if config.image_size is None else pair(config.image_size)
    recipe = recipe_of(config.preset, image_size, config.steps, config.lr)
    strategy = without_labels(strategy, asked=config.strategy is not None)
    if config.task == "all":
        raise UserError("--protocol segment takes one task: name it with --task.")
    if config.json is not None:
        require_writable(config.json)
    workers = num_workers_of(config.num_workers)
    task = open_mask_task(config.task, config.data_root, channels_of(config.model))
    encoder = load_encoder(
        config.model, device, task.train.pictures, config.num_workers, config.quiet, recipe.image_size, strategy,
        config.seed, task.name,
    )  # fmt: skip
    network = require_map(encoder, "segment")
    task = task.checked(workers, config.quiet)
    assert task.classes is not None
    inputs = {"model": encoder.fingerprint, "task": task.fingerprint()}
    with training_folder(config) as folder, open_run(folder, "evaluate", config, inputs) as run:
        if run.finished:
            say(f"{folder} is finished: {config.json} is its result (--overwrite starts again)", config.quiet)
            return run.result()
        pool = Pool([task.train] if task.val is None else [task.train, task.val])
        segmenter = Segmenter(network, encoder.width, len(task.classes.names), recipe, config.seed)
        order = Order(len(pool), recipe.batch_size, config.seed)
        crops = Crops(pool, order, recipe, encoder.mean, config.seed)
        plan = PolyPlan(recipe.steps, len(pool), recipe.batch_size, recipe.warmup)

        def batches(first: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
            return in_workers(crops, range(first, recipe.steps), workers)

        trained = train(
            run,
            Segmentation(segmenter, encoder, recipe, device),
            batches,
            plan,
            Training(seed=config.seed, device=config.device, quiet=config.quiet, beta2=BETA2),
            f"training UperNet on {task.name}",
            remedy="take a lower --lr and give --overwrite",
        )
        start = time.perf_counter()
        found = tested(segmenter, task, encoder, recipe, device, config)
        return run.finish(
            {
                **described(config, task, encoder, recipe, task.classes, found, segmenter.blocks),
                "seconds": round(trained["seconds"] + time.perf_counter() - start, 3),
                "training": {
                    k: trained[k] for k in ("steps", "loss", "seconds", "images_per_second", "precision")
                },
                "peak_rss_bytes": peak_rss_bytes(),
                "commit": source_commit(),
                "torch": torch.__version__,
                **encoder.about,
            }
        )


def without_labels(strategy: str | None, asked: bool) -> str | None:
    """The strategy, or the vote where none was asked for; UserError for one that reads the classes of pictures."""
    if strategy not in BY_LABELS:
        return strategy
    if asked:
        raise UserError(
            f"--strategy {strategy} compares pictures by class, and those of a segmentation task have none: give vote."
        )
    return "vote"


@contextmanager
def training_folder(config: EvaluateConfig) -> Iterator[Path]:
    """Where training takes place: beside the result, or for as long as it lasts."""
    if config.json is not None:
        yield Path(config.json).with_suffix(".training")
        return
    say(
        "without --json FILE an interrupted training starts again, and no predictions are drawn", config.quiet
    )
    with tempfile.TemporaryDirectory(prefix="moce-segment-") as folder:
        yield Path(folder)


class Found:
    """What the test pictures gave."""

    def __init__(self, num_classes: int) -> None:
        self.confusion, self.pictures = Confusion(num_classes), list[str]()


@torch.no_grad()
def tested(
    segmenter: Segmenter,
    task: MaskTask,
    encoder: Encoder,
    recipe: Recipe,
    device: torch.device,
    config: EvaluateConfig,
) -> Found:
    """Every test picture at its own size, in sliding windows; some of them drawn beside the result."""
    segmenter.to(device).eval()
    assert task.classes is not None
    num_classes, test = len(task.classes.names), task.test
    found, drawn = Found(num_classes), shown(len(test)) if config.json is not None else []

    def predict(windows: Tensor) -> Tensor:
        with autocast(device, "auto"):
            return segmenter.logits(windows)

    with track(len(test), f"testing on {task.name}", quiet=config.quiet) as bar:
        for index in range(len(test)):
            image, truth = test.get(index)
            pixels = finish(
                covered(image, recipe.image_size)[None].to(device), None, encoder.mean, encoder.std
            )
            logits = slid(predict, pixels[0], recipe.image_size, recipe.overlap, recipe.batch_size)
            predicted = most_likely(logits, (truth.shape[0], truth.shape[1])).cpu()
            found.confusion.add(truth, predicted)
            if index in drawn:
                result = Path(str(config.json))
                name = f"predictions-{result.stem}-{drawn.index(index)}.png"
                write_png(result.parent / name, side_by_side(image, truth, predicted, num_classes))
                found.pictures.append(name)
            bar.advance()
    say(f"{task.name}: mean IoU {found.confusion.mean_iou():.4f} of {len(test)} test pictures", config.quiet)
    return found


def described(
    config: EvaluateConfig,
    task: MaskTask,
    encoder: Encoder,
    recipe: Recipe,
    classes: Classes,
    found: Found,
    blocks: list[int],
) -> dict[str, Any]:
    """The result in the form that all protocols share."""
    confusion = found.confusion
    pixels = confusion.counts.sum(dim=1).tolist()
    each = zip(classes.names, confusion.iou(), confusion.accuracy(), pixels, strict=True)
    choice = encoder.about.get("choice", {})
    return {
        "schema": 1,
        "model": config.model,
        "model_fingerprint": encoder.fingerprint,
        "method": encoder.method,
        "task": task.name,
        "protocol": "segment",
        "metric": "miou",
        "value": confusion.mean_iou(),
        "per_class": confusion.iou(),
        "pixel_accuracy": confusion.pixel_accuracy(),
        "scores": [{"class": n, "iou": i, "accuracy": a, "pixels": p} for n, i, a, p in each],
        "num_train": len(task.train),
        "num_val": 0 if task.val is None else len(task.val),
        "num_test": len(task.test),
        "seed": config.seed,
        "settings": {
            "preset": config.preset or "small",
            **asdict(recipe),
            "image_size": list(encoder.image_size),
            "blocks": blocks,
            **({"strategy": choice["strategy"]} if "strategy" in choice else {}),
        },
        "chosen_on": "val",
        "pictures": found.pictures,
    }
