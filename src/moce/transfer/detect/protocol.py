"""`evaluate --protocol detect`: train Mask R-CNN on an encoder, test it once, COCO's mAP of boxes and masks.

It is a run: interrupted, the same command goes on from the last checkpoint. One process trains it. There is one
learning rate, so nothing is chosen; pictures without an object are not trained on.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from moce.config import EvaluateConfig, Training, pair
from moce.engine.devices import num_workers_of, peak_rss_bytes
from moce.engine.files import read_json, require_space, write_json, write_whole
from moce.engine.progress import say
from moce.engine.runs import Run, open_run, source_commit
from moce.engine.trainer import Plan, train
from moce.errors import UserError
from moce.images.loader import in_workers, survey
from moce.images.sampler import Order
from moce.transfer.detect.coco_map import coco_map, library
from moce.transfer.detect.cocoset import CocoSet, CocoTask, open_coco
from moce.transfer.detect.detector import Detector
from moce.transfer.detect.jitter import JitteredBatches
from moce.transfer.detect.prediction import draw, predict
from moce.transfer.detect.pyramid import require_fitting
from moce.transfer.detect.recipe import RECIPES, Recipe
from moce.transfer.detect.training import DetectorObjective
from moce.transfer.encoder import Encoder, Trainable, channels_of, load_encoder, require_map

SCHEMA = 1
WEIGHTS, TRAINING, PREDICTIONS = "detector.safetensors", "training.json", "predictions.json"
BY_PICTURE = ("knn", "oracle")  # strategies that read one class for each picture


def detect(config: EvaluateConfig, strategy: str | None, device: torch.device) -> dict[str, Any]:
    """The result of a model on a set in COCO's format, as JSON. UserError for what cannot be trained on."""
    library()  # at once, and not after the training that it scores
    if config.task == "all":
        raise UserError(
            "--task all is for tasks of whole pictures; name one set in COCO's format for --protocol detect."
        )
    if len(config.lrs) != 1:
        raise UserError("--protocol detect trains once: give one learning rate as --lrs.")
    if strategy in BY_PICTURE:
        raise UserError(
            f"--strategy {strategy} compares pictures by their class, and those of --protocol detect have none: give "
            "--strategy vote, or another that reads no labels."
        )
    task = open_coco(config.task, config.data_root, channels_of(config.model))
    size = pair(config.image_size or 224)
    looking = (num_workers_of(config.num_workers), config.quiet, size, strategy, config.seed, task.name)
    encoder = load_encoder(config.model, device, task.train, *looking)
    network = require_map(encoder, "detect")
    require_fitting(network, size, RECIPES[config.preset or "small"].coarsest)
    with ExitStack() as stack:
        folder = result_folder(config) or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="moce-detect-")
        )
        inputs = {
            "model": encoder.fingerprint,
            "task": f"{task.train.fingerprint()}+{task.test.fingerprint()}",
        }
        run = stack.enter_context(open_run(folder, "evaluate", config, inputs))
        if run.finished:
            say(f"{run.path} is finished; --overwrite starts again", config.quiet)
            return run.result()
        result = evaluated(run, task, encoder, network, config, device)
        if result_folder(config) is None:
            del result["pictures"], result["predictions"], result["folder"]
        return run.finish(result)


def result_folder(config: EvaluateConfig) -> Path | None:
    """--out, else a folder beside --json of the same name; None where neither is given."""
    if config.out is not None:
        return Path(config.out)
    if config.json is None:
        return None
    path = Path(config.json)
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-files")


def evaluated(
    run: Run,
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
    weights = sum(t.nbytes for t in detector.state_dict().values())
    require_space(run.path, 8 * weights)  # two checkpoints with both moments, and the weights
    unreadable = [survey(source, config.quiet).unreadable for source in (task.train, task.test)]
    learned = [
        i for i, objects in enumerate(task.train.split.usable) if objects and i not in set(unreadable[0])
    ]
    say(told(task, learned, unreadable), config.quiet)
    if (run.path / WEIGHTS).is_file():  # interrupted after training
        detector.load_state_dict(load_file(run.path / WEIGHTS, device=str(device)))
        training = read_json(run.path / TRAINING)
    else:
        training = trained(run, detector, encoder, task.train, task.name, learned, recipe, config)
        run.write_json(TRAINING, training)  # before the weights, which say that it is done
        with write_whole(run.path / WEIGHTS) as temporary:
            save_file({n: t.contiguous().cpu() for n, t in detector.state_dict().items()}, temporary)
    start = time.perf_counter()
    workers = num_workers_of(config.num_workers)
    results, read = predict(detector, encoder, task.test, device, workers, config.quiet)
    write_json(run.path / PREDICTIONS, results)
    scores, per_class = coco_map(task.test.ground_truth(read), results)
    say(
        f"{task.name}: box mAP {100 * (scores['box_map'] or 0):.2f}, mask mAP {100 * (scores['mask_map'] or 0):.2f} on "
        f"{len(read)} pictures of {task.tested_on}",
        config.quiet,
    )
    objects = [a for index in read for a in task.test.split.annotations[index]]
    counts = [sum(a["category_id"] == n for a in objects) for n in task.test.split.categories]
    choice = encoder.about.get("choice", {})
    return {
        "schema": SCHEMA,
        "model": config.model,
        "model_fingerprint": encoder.fingerprint,
        "method": encoder.method,
        "task": task.name,
        "protocol": "detect",
        "metric": "box_map",
        "value": scores["box_map"] or 0.0,
        "mask_map": scores["mask_map"],
        "scores": scores,
        "per_class": per_class,
        "num_train": len(learned),
        "num_val": 0,
        "num_test": len(read),
        "num_objects_per_class": counts,
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
            **({"strategy": choice["strategy"]} if "strategy" in choice else {}),
        },
        "training": training,
        "predictions": PREDICTIONS,
        "pictures": draw(task.test, read, results, run.path),
        "folder": str(run.path),
        "chosen_on": None,
        "seconds": round(training["seconds"] + time.perf_counter() - start, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "commit": source_commit(),
        "torch": torch.__version__,
        **encoder.about,
    }


def told(task: CocoTask, learned: list[int], unreadable: list[list[int]]) -> str:
    """What is trained on and what is not, in a line."""
    parts = [
        f"{task.name}: {len(learned):,} of {len(task.train):,} pictures of {task.train.split.path.name} have objects "
        "to learn from"
    ]
    if broken := sum(map(len, unreadable)):
        parts.append(f"{broken} cannot be read and are left out")
    if flat := task.train.split.num_flat:
        parts.append(f"{flat} boxes have no area and are not learned from")
    return "; ".join(parts)


def trained(
    run: Run,
    detector: Detector,
    encoder: Encoder,
    source: CocoSet,
    name: str,
    learned: list[int],
    recipe: Recipe,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Train in place, from the newest checkpoint on; what it took."""
    order = Order(len(source), config.batch_size, config.seed, allowed=np.array(learned, np.int64))
    plan = Plan(order.steps_for(config.epochs), len(order), config.batch_size, recipe.warmup)
    objective = DetectorObjective(detector.train(), encoder, config.lrs[0], config.layer_decay, config.seed)
    batches = JitteredBatches(source, order, encoder.image_size[0], recipe.scales, encoder.mean, config.seed)
    workers = num_workers_of(config.num_workers)
    options = Training(
        seed=config.seed,
        device=config.device,
        quiet=config.quiet,
        batch_size=config.batch_size,
        weight_decay=recipe.weight_decay,
        beta2=0.999,
        checkpoint_minutes=config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
    )
    return train(
        run,
        objective,
        lambda first, rank, world: in_workers(batches, range(first, plan.num_steps), workers),
        plan,
        options,
        what=f"detection on {name}",
        lower="--lrs",
    )
