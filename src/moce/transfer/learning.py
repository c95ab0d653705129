"""What the protocols that train share: a run, the training of a network on an encoder, what the loop is told.

Several processes train together. The first one alone writes, and the others read what it wrote where they continue.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moce.config import EvaluateConfig, Training
from moce.engine.files import read_json, require_space, write_whole
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.runs import Run, open_run
from moce.errors import UserError
from moce.transfer.encoder import Encoder

BETA2 = 0.999  # AdamW's
TRAINING, CHECKPOINTS = "training.json", "checkpoints"
BY_LABELS = ("knn", "oracle")  # strategies that choose a sub-model by the classes of pictures


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


@contextmanager
def passing_folder(prefix: str) -> Iterator[Path]:
    """A folder that all processes know and that goes with the block."""
    folder = Path(group().once(lambda: tempfile.mkdtemp(prefix=prefix)))
    try:
        yield folder
    finally:
        if group().rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def carried_out(
    config: EvaluateConfig,
    inputs: dict[str, Any],
    evaluated: Callable[[Run, Path | None], dict[str, Any]],
    within: str = "",
) -> dict[str, Any]:
    """The result of the run of `config`, which `evaluated` makes of the run and the folder that is kept, if any.

    The run lies `within` that folder, where there are runs of several tasks.
    """
    with ExitStack() as stack:
        kept = result_folder(config)
        kept = None if kept is None else kept / within
        folder = kept or stack.enter_context(passing_folder(f"moce-{config.protocol}-"))
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
    """What `train` says of training `network` in place; of a run interrupted later its weights are read instead.

    Once they are there the checkpoints are gone.
    """
    # Two checkpoints with both moments, and the weights.
    needed = 8 * sum(t.nbytes for t in network.state_dict().values())
    run.once(lambda: require_space(run.path, needed))
    if run.once((run.path / weights).is_file):
        network.load_state_dict(load_file(run.path / weights))
        return read_json(run.path / TRAINING)
    training = train()
    run.write_json(TRAINING, training)  # before the weights, which say that it is done
    run.once(lambda: keep_weights(run.path, network, weights))
    return training


def keep_weights(folder: Path, network: nn.Module, weights: str) -> None:
    """Write what was trained, and drop the checkpoints."""
    with write_whole(folder / weights) as temporary:
        save_file({n: t.contiguous().cpu() for n, t in network.state_dict().items()}, temporary)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def forward_flops(network: nn.Module, encoder: Encoder, device: torch.device) -> int:
    """FLOPs of a forward pass on one picture of the encoder's size, counted in one."""
    network.eval()
    picture = torch.zeros(1, len(encoder.mean), *encoder.image_size, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(picture)
    network.train()
    return counter.get_total_flops()


def training_options(config: EvaluateConfig, weight_decay: float) -> Training:
    """What the training loop takes. UserError where a process would get none of a batch."""
    if config.batch_size < group().world:
        raise UserError(
            f"--batch-size {config.batch_size} is less than the {group().world} processes; each needs a picture."
        )
    return Training(
        seed=config.seed,
        device=config.device,
        quiet=config.quiet,
        batch_size=config.batch_size,
        weight_decay=weight_decay,
        beta2=BETA2,
        precision=config.precision,
        checkpoint_minutes=config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
    )
