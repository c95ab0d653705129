"""What detection and segmentation share: one training of a network on an encoder, which is a run, and one test."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from moce.config import EvaluateConfig, Training
from moce.engine.files import read_json, require_space, write_whole
from moce.engine.progress import say
from moce.engine.runs import Run, open_run
from moce.errors import UserError
from moce.transfer.submodels import BY_LABELS

BETA2 = 0.999  # AdamW's
TRAINING = "training.json"


def require_one_training(config: EvaluateConfig, kind: str) -> None:
    """UserError unless there is one set ("set in COCO's format") to train on, at one learning rate."""
    if config.task == "all":
        raise UserError(
            f"--task all is for tasks of whole pictures; name one {kind} for --protocol {config.protocol}."
        )
    if len(config.lrs) != 1:
        raise UserError(f"--protocol {config.protocol} trains once: give one learning rate as --lrs.")


def without_labels(config: EvaluateConfig, strategy: str | None) -> str | None:
    """The strategy, or the vote where none was asked for; UserError for one that reads the classes of pictures."""
    if strategy not in BY_LABELS:
        return strategy
    if config.strategy is not None:
        raise UserError(
            f"--strategy {strategy} compares pictures by their class, and those of --protocol {config.protocol} have "
            "none: give --strategy vote, or another that reads no labels."
        )
    return "vote"


def result_folder(config: EvaluateConfig) -> Path | None:
    """--out, else a folder beside --json of the same name; None where neither is given."""
    if config.out is not None:
        return Path(config.out)
    if config.json is None:
        return None
    path = Path(config.json)
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-files")


def carried_out(
    config: EvaluateConfig, inputs: dict[str, Any], evaluated: Callable[[Run, Path | None], dict[str, Any]]
) -> dict[str, Any]:
    """The result of the run of `config`, which `evaluated` makes of the run and the folder that is kept, if any."""
    with ExitStack() as stack:
        kept = result_folder(config)
        folder = kept or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=f"moce-{config.protocol}-"))
        )
        run = stack.enter_context(open_run(folder, "evaluate", config, inputs))
        if run.finished:
            say(f"{run.path} is finished; --overwrite starts again", config.quiet)
            return run.result()
        if kept is None:
            say("without --json or --out an interrupted training starts again", config.quiet)
        return run.finish(evaluated(run, kept))


def learned(
    run: Run, network: nn.Module, weights: str, train: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `train` says of training `network` in place; of a run interrupted later its weights are read instead."""
    # Two checkpoints with both moments, and the weights.
    require_space(run.path, 8 * sum(t.nbytes for t in network.state_dict().values()))
    if (run.path / weights).is_file():
        network.load_state_dict(load_file(run.path / weights))
        return read_json(run.path / TRAINING)
    training = train()
    run.write_json(TRAINING, training)  # before the weights, which say that it is done
    with write_whole(run.path / weights) as temporary:
        save_file({n: t.contiguous().cpu() for n, t in network.state_dict().items()}, temporary)
    return training


def training_options(config: EvaluateConfig, weight_decay: float) -> Training:
    """What the training loop takes."""
    return Training(
        seed=config.seed,
        device=config.device,
        quiet=config.quiet,
        batch_size=config.batch_size,
        weight_decay=weight_decay,
        beta2=BETA2,
        checkpoint_minutes=config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
    )
