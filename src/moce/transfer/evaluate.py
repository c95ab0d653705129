"""Measure what a model is worth on a task: choose on validation, refit on train + validation, test once."""

import dataclasses
import json
import time
from typing import Any

import torch

from moce.config import EvaluateConfig
from moce.engine.devices import pick_device
from moce.engine.files import sha256_of
from moce.engine.launch import local_world_size
from moce.engine.processes import group
from moce.engine.progress import clock, say, track
from moce.engine.runs import Run
from moce.errors import UserError, counted, did_you_mean
from moce.images.loader import survey
from moce.images.sources import Source
from moce.images.tasks import Task, few_shots, open_tasks, split
from moce.options import pair, spelled
from moce.stages.customize import STRATEGIES, default_strategy, require_strategy
from moce.transfer.encoder import Encoder, channels_of, load_encoder, refuse_strategy, routed_by
from moce.transfer.finetune import LONG, WEIGHTS, Recipe, Tuning, finetune
from moce.transfer.learning import (
    BY_LABELS,
    carried_out,
    require_several_possible,
    result_folder,
    training_options,
)
from moce.transfer.metrics import images_per_class, listed, per_class, score, scorer
from moce.transfer.pictures import CACHE_GIB, Joined, Pictures, labelled
from moce.transfer.probe import FOLDS, INVERSE_L2, Labelled, Outcome, fitting_seconds, knn, linear
from moce.transfer.results import ending, heading, strategy_named
from moce.transfer.submodels import open_submodels
from moce.verbs import verb

# Options that not every protocol reads.
READ = {
    "knn": ("k", "temperature", "whiten"),
    "linear": (),
    "finetune": ("epochs", "batch_size", "lrs", "layer_decay"),
    "detect": ("epochs", "batch_size", "lrs", "layer_decay", "window"),
    "segment": ("steps", "batch_size", "lrs", "layer_decay"),
}
PROTOCOLS = tuple(READ)
ALONE = ("detect", "segment")  # protocols whose tasks are of another kind than classes of whole pictures
TRAINING = ("finetune", *ALONE)  # protocols whose trainings are runs in a folder
FINETUNING = (
    "epochs",
    "batch_size",
    "lrs",
    "layer_decay",
    "shots",
    "strategy",
    "seed",
)  # what changes its result


@verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> dict[str, Any] | list[dict[str, Any]]:
    """Measure a model on a task, or on all of them (`task="all"`), by a protocol, or several ("knn,linear").

    Returns what `--json` writes: the result, or a list of results where there are several tasks or protocols; those of
    a task share its features. Raises UserError for a model, task or protocol that is not there, and for pictures
    without labels.
    """
    protocols = protocols_of(config.protocol)
    device = pick_device(config.device)
    if config.out is not None and not set(protocols) & set(TRAINING):
        raise UserError(f"--out is for --protocol {', '.join(TRAINING)}; the result goes where --json says.")
    require_several_possible(config, trains=bool(set(protocols) & set(TRAINING)))
    strategy = strategy_of(config, protocols)
    config = as_read(config, protocols, strategy, config.quiet)
    if set(protocols) & set(ALONE):
        result = alone(protocols[0], strategy, config, device)
        say(table([result]), config.quiet)
        return result
    channels = group().leading(lambda: channels_of(config.model))
    tasks = group().leading(lambda: open_tasks(config.task, config.data_root, channels, config.download))
    if config.shots is not None:
        tasks = [few_shots(task, config.shots, config.seed) for task in tasks]
    image_size = None if config.image_size is None else pair(config.image_size)
    results: list[dict[str, Any]] = []
    for task in tasks:
        if unreadable := num_unreadable(task, config.quiet):
            are = "is" if unreadable == 1 else "are"
            broken = f"{counted(unreadable, 'picture')} of {task.name} cannot be read and {are} left out"
            say(broken, config.quiet)
        encoder = None
        for protocol in protocols:
            if encoder is None or strategy == "oracle":  # which has another sub-model for each protocol
                encoder = encoder_for(task, protocol, strategy, image_size, config, device)
            if protocol == "finetune":
                folder = task.name.replace("/", "-") if len(tasks) > 1 else ""
                results.append(finetuned(task, encoder, strategy, config, device, folder))
            else:
                results.append(evaluate_task(task, encoder, protocol, config, device))
            say(table(results[-1:], header=len(results) == 1), config.quiet)
    for protocol in protocols:
        if len(tasks) > 1:
            mean = sum(r["value"] for r in results if r["protocol"] == protocol) / len(tasks)
            say(f"{f'mean of {len(tasks)} tasks':<31}{mean:8.4f}  {protocol}", config.quiet)
    return results if config.task == "all" or len(protocols) > 1 else results[0]


def as_read(
    config: EvaluateConfig, protocols: list[str], strategy: str | None, quiet: bool
) -> EvaluateConfig:
    """The options without those that none of these protocols reads, which is said: they are the defaults then.

    So a run that is continued may have others. A strategy that looks at neighbours reads what knn does.
    """
    readers = {*protocols, *(["knn"] if strategy == "knn" else [])}
    read = {option for name in readers for option in READ[name]}
    unread = {option for options in READ.values() for option in options} - read
    known = {f.name: f for f in dataclasses.fields(config) if f.name in unread}
    if given := [name for name, f in known.items() if getattr(config, name) != f.default]:
        spelt = ", ".join(spelled(known[name]) for name in given)
        say(f"--protocol {','.join(protocols)} does not read {spelt}", quiet)
    defaults: dict[str, Any] = {name: f.default for name, f in known.items()}
    return dataclasses.replace(config, **defaults)


def alone(
    protocol: str, strategy: str | None, config: EvaluateConfig, device: torch.device
) -> dict[str, Any]:
    """The result of a protocol whose tasks are of another kind."""
    if config.shots is not None:
        raise UserError(
            f"--shots is for classes of whole pictures, not for --protocol {protocol}; leave it out."
        )
    if protocol == "detect":
        from moce.transfer.detect.protocol import detect

        return detect(config, strategy, device)
    from moce.transfer.segment.protocol import segment

    return segment(config, strategy, device)


def require_task(task: str, protocol: str, data_root: str | None, channels: int) -> None:
    """UserError where a task is not there or is of a kind that the protocol does not take; nothing is measured."""
    if protocol == "detect":
        from moce.transfer.detect.cocoset import open_coco

        open_coco(task, data_root, channels)
    elif protocol == "segment":
        from moce.transfer.segment.maskset import open_mask_task

        open_mask_task(task, data_root, channels)
    else:
        open_tasks(task, data_root, channels)


def protocols_of(option: str) -> list[str]:
    """The protocols named in `--protocol`; UserError for one that is not there."""
    protocols = [name.strip() for name in option.split(",")]
    for name in protocols:
        if name not in PROTOCOLS:
            hint = did_you_mean(name, PROTOCOLS)
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
    """(training and validation pictures as one, rows of training, rows of validation, of which few shots have none)."""
    if task.shots is not None:
        return task.train, torch.arange(len(task.train)), torch.arange(0)
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
    if task.shots == 1:
        raise UserError(
            f"--shots 1 leaves nothing to choose a sub-model by labels (--strategy {strategy}): give more shots, or a "
            "strategy such as vote."
        )
    pool, train_rows, val_rows = pool_of(task)
    quietly = dataclasses.replace(config, quiet=True)

    def score(encoder: Encoder) -> float:
        pictures = Pictures(pool, encoder, device, config.num_workers, quiet=True)
        train = labelled(pictures, train_rows)
        val = labelled(pictures, val_rows) if len(val_rows) else train  # few shots choose among themselves
        # Validation takes the place of the test split, which no choice may see.
        by = protocol if strategy == "oracle" else "knn"
        return probed(task, by, train, val, val, quietly).settings["val_score"]

    return open_submodels(config.model, device, image_size).by_score(strategy, score, config.quiet)


def finetuned(
    task: Task,
    encoder: Encoder,
    strategy: str | None,
    config: EvaluateConfig,
    device: torch.device,
    folder: str,
) -> dict[str, Any]:
    """The result of fine-tuning on one task, as JSON; its run lies in a `folder` of the evaluation's.

    Beside --json, where answers to other questions are replaced, each question has a folder of its own.
    """
    splits = [source for source in (task.train, task.val, task.test) if source is not None]
    pixels = [encoder.image_size, encoder.mean, encoder.std, encoder.crop_pct, encoder.interpolation]
    inputs = {
        "model": encoder.fingerprint,
        "normalisation": sha256_of(json.dumps(pixels)),
        "task": "+".join(source.fingerprint() for source in splits),
    }
    own = dataclasses.replace(config, task=task.name, protocol="finetune")
    own = as_read(own, ["finetune"], strategy, quiet=True)
    if config.out is None:
        options = [getattr(own, name) for name in FINETUNING]
        folder = f"{task.name.replace('/', '-')}-{sha256_of(json.dumps([inputs, options]))[:8]}"
    return carried_out(
        own,
        inputs,
        lambda run, _: evaluate_task(task, encoder, "finetune", config, device, run),
        folder,
        dropped=(WEIGHTS,) if config.out is None else (),
    )


def evaluate_task(
    task: Task,
    encoder: Encoder,
    protocol: str,
    config: EvaluateConfig,
    device: torch.device,
    run: Run | None = None,
) -> dict[str, Any]:
    """The result of one task by one protocol, as JSON; fine-tuning is done in a run."""
    start, trainings = time.perf_counter(), list[dict[str, Any]]()
    pool, train_rows, val_rows = pool_of(task)
    pictures, test = (
        Pictures(source, encoder, device, config.num_workers, config.quiet) for source in (pool, task.test)
    )
    if run is not None:
        outcome, trainings = tuned(run, task, encoder, pictures, train_rows, val_rows, test, config, device)
        counts = {"num_train": len(train_rows), "num_val": len(val_rows)}
    else:
        train, val, tested = labelled(pictures, train_rows), labelled(pictures, val_rows), labelled(test)
        outcome = probed(task, protocol, train, val, tested, config)
        counts = {"num_train": len(train.labels), "num_val": len(val.labels)}
    # Fine-tuning need not have come by every picture that it learns from.
    unread_to_learn = num_unread(pictures) if run is None else num_unreadable(task, config.quiet, test=False)
    return {
        **heading(config, encoder, task.name, protocol),
        "metric": task.metric,
        "value": score(task.metric, outcome.predictions, outcome.labels, task.num_classes),
        "per_class": listed(per_class(outcome.predictions, outcome.labels, task.num_classes)),
        **counts,
        "num_test": len(outcome.labels),
        "num_test_per_class": images_per_class(outcome.labels, task.num_classes),
        "unreadable": num_unread(test) + unread_to_learn,
        "seed": config.seed,
        **answers(task, test, outcome),
        "settings": {
            **outcome.settings,
            **strategy_named(encoder),
            **({"shots": task.shots} if task.shots is not None else {}),
            "image_size": list(encoder.image_size),
            "crop_pct": encoder.crop_pct,
            "interpolation": encoder.interpolation,
        },
        **({"training": trainings[-1]} if trainings else {}),
        "chosen_on": chosen_on(task, protocol),
        **ending(encoder, max(time.perf_counter() - start, sum(t["seconds"] for t in trainings))),
    }


def chosen_on(task: Task, protocol: str) -> str:
    """Which pictures the settings were chosen on."""
    if task.shots is None:
        return "val"
    return "shots left out in turn" if protocol != "finetune" and task.shots > 1 else "nothing"


def answers(task: Task, test: Pictures, outcome: Outcome) -> dict[str, list[Any]]:
    """Predicted and true class of every test picture in the order of their indices, -1 for one that cannot be read.

    Where a picture shows several classes: a score for each class, and 1, 0 or -1; [] for one that cannot be read.
    """
    if outcome.labels.ndim == 2:
        rows = test.was_read.nonzero()[:, 0].tolist()
        lists: dict[str, list[Any]] = {
            name: [[] for _ in range(len(test.source))] for name in ("predicted", "labels")
        }
        for row, scores, labels in zip(
            rows, outcome.predictions.tolist(), outcome.labels.tolist(), strict=True
        ):
            lists["predicted"][row], lists["labels"][row] = [float(f"{s:.7g}") for s in scores], labels
        return lists
    predicted, labels = (torch.full((len(test.source),), -1) for _ in range(2))
    predicted[test.was_read], labels[test.was_read] = outcome.predictions, outcome.labels
    return {"predicted": predicted.tolist(), "labels": labels.tolist()}


def num_unread(pictures: Pictures) -> int:
    """How many of these no pass over all of them could read."""
    return int((~pictures.was_read).sum())


def num_unreadable(task: Task, quiet: bool, test: bool = True) -> int:
    """Broken pictures of all splits, of large ones among a sample; UserError when they are more than 5 % of one."""
    splits = (task.train, task.val, task.test if test else None)
    room = CACHE_GIB / local_world_size()
    return sum(len(survey(source, quiet, room).unreadable) for source in splits if source is not None)


def probed(
    task: Task, protocol: str, train: Labelled, val: Labelled, test: Labelled, config: EvaluateConfig
) -> Outcome:
    """A probe on frozen features; without validation pictures it chooses among its shots."""
    chosen_by, held_out = scorer(task.metric, task.num_classes), None if task.shots is not None else val
    if protocol == "knn":
        grid = config.k, config.temperature, config.whiten
        return knn(train, held_out, test, task.num_classes, chosen_by, *grid)
    num_fits = len(INVERSE_L2) * min(task.shots or 1, FOLDS) + 2
    say_cost_of_fits(task, train, num_fits, config.quiet)
    with track(num_fits, f"linear probe on {task.name}", "fits", config.quiet) as bar:
        return linear(train, held_out, test, task.num_classes, chosen_by, tick=bar.advance)


def say_cost_of_fits(task: Task, train: Labelled, num_fits: int, quiet: bool) -> None:
    """How long a linear probe will take, where that is long."""
    seconds = fitting_seconds(len(train.labels), train.features.shape[1], task.num_classes, num_fits)
    if seconds >= LONG:
        what = f"{num_fits} fits to {counted(len(train.labels), 'picture')}, about {clock(seconds)}"
        say(f"linear probe on {task.name}: {what}", quiet)


def tuned(
    run: Run,
    task: Task,
    encoder: Encoder,
    pool: Pictures,
    train_rows: torch.Tensor,
    val_rows: torch.Tensor,
    test: Pictures,
    config: EvaluateConfig,
    device: torch.device,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Fine-tuning of the whole encoder, and what each training took."""
    recipe = Recipe(config.epochs, config.batch_size, config.layer_decay, config.seed)
    options = training_options(config, recipe.weight_decay)
    what, kept = f"fine-tuning on {task.name}", result_folder(config) is not None
    tuning = Tuning(encoder, pool, task.num_classes, recipe, options, what, kept)
    chosen_by = scorer(task.metric, task.num_classes)
    return finetune(run, tuning, train_rows, val_rows, test, chosen_by, config.lrs, device)


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
