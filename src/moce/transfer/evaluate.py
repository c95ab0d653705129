"""Measure what a model is worth on a task: choose on validation, refit on train + validation, test once."""

import dataclasses
import time
from typing import Any

import torch

from moce.config import EvaluateConfig, pair, verb
from moce.engine.devices import peak_rss_bytes, pick_device
from moce.engine.progress import say, track
from moce.engine.runs import source_commit
from moce.errors import UserError, did_you_mean
from moce.images.loader import survey
from moce.images.sources import Source
from moce.images.tasks import Task, open_tasks, split
from moce.stages.customize import STRATEGIES, default_strategy, require_strategy
from moce.transfer.encoder import Encoder, channels_of, load_encoder, refuse_strategy, routed_by
from moce.transfer.finetune import Recipe, finetune
from moce.transfer.metrics import listed, per_class, score, scorer
from moce.transfer.pictures import Joined, Pictures, labelled
from moce.transfer.probe import INVERSE_L2, Labelled, Outcome, knn, linear
from moce.transfer.submodels import BY_LABELS, open_submodels

SCHEMA = 1
PROTOCOLS = ("knn", "linear", "finetune", "segment")
LATER = ("detect",)
ALONE = ("segment",)  # protocols whose tasks are of another kind than classes of whole pictures


@verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> dict[str, Any] | list[dict[str, Any]]:
    """Measure a model on a task, or on all of them (`task="all"`), by a protocol, or several ("knn,linear").

    Returns what `--json` writes: the result, or a list of results where there are several tasks or protocols; those of
    a task share its features. Raises UserError for a model, task or protocol that is not there, and for pictures
    without labels.
    """
    protocols = protocols_of(config.protocol)
    device = pick_device(config.device)
    if "segment" in protocols:
        from moce.transfer.segment.protocol import segment

        result = segment(config, strategy_of(config, protocols), device)
        say(table([result]), config.quiet)
        return result
    tasks = open_tasks(config.task, config.data_root, channels_of(config.model))
    image_size = None if config.image_size is None else pair(config.image_size)
    strategy = strategy_of(config, protocols)
    results: list[dict[str, Any]] = []
    for task in tasks:
        if unreadable := num_unreadable(task, config.quiet):
            say(f"{unreadable} pictures of {task.name} cannot be read and are left out", config.quiet)
        encoder = None
        for protocol in protocols:
            if encoder is None or strategy == "oracle":  # which has another sub-model for each protocol
                encoder = encoder_for(task, protocol, strategy, image_size, config, device)
            results.append(evaluate_task(task, encoder, protocol, config, device))
            say(table(results[-1:], header=len(results) == 1), config.quiet)
    for protocol in protocols:
        if len(tasks) > 1:
            mean = sum(r["value"] for r in results if r["protocol"] == protocol) / len(tasks)
            say(f"{f'mean of {len(tasks)} tasks':<31}{mean:8.4f}  {protocol}", config.quiet)
    return results if config.task == "all" or len(protocols) > 1 else results[0]


def protocols_of(option: str) -> list[str]:
    """The protocols named in `--protocol`; UserError for one that is not there."""
    protocols = [name.strip() for name in option.split(",")]
    for name in protocols:
        if name in LATER:
            raise UserError(f"--protocol {name} is not there yet; choose one of {', '.join(PROTOCOLS)}.")
        if name not in PROTOCOLS:
            hint = did_you_mean(name, PROTOCOLS + LATER)
            raise UserError(f"There is no protocol '{name}'; choose one of {', '.join(PROTOCOLS)}.{hint}")
        if name in ALONE and len(protocols) > 1:
            raise UserError(
                f"--protocol {name} goes alone: its sets are of another kind than those of the others."
            )
    return protocols


def strategy_of(config: EvaluateConfig, protocols: list[str]) -> str | None:
    """How a sub-model is chosen; None where the model is one. UserError for what cannot be."""
    strategy, routed = config.strategy, routed_by(config.model)
    if routed is None:
        refuse_strategy(config.model, strategy)
        return None
    gate, num_clusters = routed
    if strategy is None:
        return default_strategy(gate)
    require_strategy(strategy, num_clusters, (*STRATEGIES, "oracle"))
    if strategy == "oracle" and (others := [p for p in protocols if p not in ("knn", "linear")]):
        raise UserError(
            f"--strategy oracle tries every sub-model, which would take too long with --protocol {others[0]}: give "
            "knn or linear."
        )
    return strategy


def pool_of(task: Task) -> tuple[Source, torch.Tensor, torch.Tensor]:
    """(training and validation pictures as one, rows of training, rows of validation)."""
    if task.val is None:
        train_rows, val_rows = (torch.as_tensor(rows) for rows in split(task.train))
        return task.train, train_rows, val_rows
    pool = Joined([task.train, task.val])
    train_rows, val_rows = torch.arange(len(pool)).split([len(task.train), len(task.val)])
    return pool, train_rows, val_rows


def encoder_for(
    task: Task,
    protocol: str,
    strategy: str | None,
    image_size: tuple[int, int] | None,
    config: EvaluateConfig,
    device: torch.device,
) -> Encoder:
    """The model for a task; of several sub-models the one that the strategy chooses."""
    if strategy not in BY_LABELS:
        looking = (config.num_workers, config.quiet, image_size, strategy, config.seed, task.name)
        return load_encoder(config.model, device, task.train, *looking)
    pool, train_rows, val_rows = pool_of(task)
    quietly = dataclasses.replace(config, quiet=True)

    def score(encoder: Encoder) -> float:
        pictures = Pictures(pool, encoder, device, config.num_workers, quiet=True)
        train, val = labelled(pictures, train_rows), labelled(pictures, val_rows)
        # Validation takes the place of the test split, which no choice may see.
        by = protocol if strategy == "oracle" else "knn"
        return probed(task, by, train, val, val, quietly).settings["val_score"]

    return open_submodels(config.model, device, image_size).by_score(strategy, score, config.quiet)


def evaluate_task(
    task: Task, encoder: Encoder, protocol: str, config: EvaluateConfig, device: torch.device
) -> dict[str, Any]:
    """The result of one task by one protocol, as JSON."""
    start = time.perf_counter()
    pool, train_rows, val_rows = pool_of(task)
    pictures, test = (
        Pictures(source, encoder, device, config.num_workers, config.quiet) for source in (pool, task.test)
    )
    if protocol == "finetune":
        outcome = tuned(task, encoder, pictures, train_rows, val_rows, test, config, device)
        counts = {"num_train": len(train_rows), "num_val": len(val_rows)}
    else:
        train, val, tested = labelled(pictures, train_rows), labelled(pictures, val_rows), labelled(test)
        outcome = probed(task, protocol, train, val, tested, config)
        counts = {"num_train": len(train.labels), "num_val": len(val.labels)}
    return {
        "schema": SCHEMA,
        "model": config.model,
        "model_fingerprint": encoder.fingerprint,
        "method": encoder.method,
        "task": task.name,
        "protocol": protocol,
        "metric": task.metric,
        "value": score(task.metric, outcome.predictions, outcome.labels, task.num_classes),
        "per_class": listed(per_class(outcome.predictions, outcome.labels, task.num_classes)),
        **counts,
        "num_test": len(outcome.labels),
        "num_test_per_class": torch.bincount(outcome.labels, minlength=task.num_classes).tolist(),
        "unreadable": num_unreadable(task, config.quiet),
        "seed": config.seed,
        **answers(task, test, outcome),
        "settings": {
            **outcome.settings,
            **strategy_named(encoder),
            "image_size": list(encoder.image_size),
            "crop_pct": encoder.crop_pct,
            "interpolation": encoder.interpolation,
        },
        "chosen_on": "val",
        "seconds": round(time.perf_counter() - start, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "commit": source_commit(),
        "torch": torch.__version__,
        **encoder.about,
    }


def answers(task: Task, test: Pictures, outcome: Outcome) -> dict[str, list[int]]:
    """Predicted and true class of every test picture in the order of their indices, -1 for one that cannot be read."""
    if task.metric not in ("top1", "mean_per_class"):
        return {}
    predicted, labels = (torch.full((len(test.source),), -1) for _ in range(2))
    predicted[test.was_read], labels[test.was_read] = outcome.predictions, outcome.labels
    return {"predicted": predicted.tolist(), "labels": labels.tolist()}


def strategy_named(encoder: Encoder) -> dict[str, str]:
    """How the sub-model was chosen, where there were several."""
    choice = encoder.about.get("choice", {})
    return {"strategy": choice["strategy"]} if "strategy" in choice else {}


def num_unreadable(task: Task, quiet: bool) -> int:
    """Broken pictures of all splits; UserError when they are more than 5 % of one."""
    splits = [source for source in (task.train, task.val, task.test) if source is not None]
    return sum(len(survey(source, quiet).unreadable) for source in splits)


def probed(
    task: Task, protocol: str, train: Labelled, val: Labelled, test: Labelled, config: EvaluateConfig
) -> Outcome:
    """A probe on frozen features."""
    chosen_by = scorer(task.metric, task.num_classes)
    if protocol == "knn":
        return knn(train, val, test, task.num_classes, chosen_by, config.k, config.temperature)
    with track(len(INVERSE_L2) + 2, f"linear probe on {task.name}", "fits", config.quiet) as bar:
        return linear(train, val, test, task.num_classes, chosen_by, tick=bar.advance)


def tuned(
    task: Task,
    encoder: Encoder,
    pool: Pictures,
    train_rows: torch.Tensor,
    val_rows: torch.Tensor,
    test: Pictures,
    config: EvaluateConfig,
    device: torch.device,
) -> Outcome:
    """Fine-tuning of the whole encoder."""
    recipe = Recipe(config.epochs, config.batch_size, config.layer_decay, config.seed)
    return finetune(
        encoder,
        pool,
        train_rows,
        val_rows,
        test,
        task.num_classes,
        scorer(task.metric, task.num_classes),
        recipe,
        config.lrs,
        device,
        what=f"fine-tuning on {task.name}",
        quiet=config.quiet,
    )


def table(results: list[dict[str, Any]], header: bool = True) -> str:
    """Results as lines for people."""
    wide = max([10, *(len(r["method"]) + 1 for r in results)])
    lines = [
        f"{'task':<16}{'metric':<15}{'value':>8}  {'protocol':<10}{'method':<{wide}}{'seconds':>8}"
    ] * header
    for r in results:
        what, how = f"{r['task']:<16}{r['metric']:<15}", f"{r['protocol']:<10}{r['method']:<{wide}}"
        lines.append(f"{what}{r['value']:8.4f}  {how}{r['seconds']:8.1f}")
    return "\n".join(lines)
