"""What the protocols that train share: a run, the training of a network on an encoder, what the loop is told.

Several processes train together. The first one alone writes, and the others read what it wrote where they continue.
"""

import math
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
from moce.engine.runs import CONFIG, Run, open_run, read_run
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


def require_several_possible(config: EvaluateConfig, trains: bool) -> None:
    """UserError for what several processes cannot do together."""
    world = group().world
    if world > 1 and config.download:
        raise UserError(
            "--download is for one process, since the others would not wait for hours: give the command once without "
            "torchrun and --devices, then without --download."
        )
    if trains and config.batch_size < world:
        raise UserError(
            f"--batch-size {config.batch_size} is less than the {world} processes; each needs a picture."
        )


def result_folder(config: EvaluateConfig) -> Path | None:
    """--out, else a folder beside --json of the same name; None where neither is given."""
    if config.out is not None:
        return Path(config.out)
    if config.json is None:
        return None
    path = Path(config.json)
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-files")


def require_no_run(folder: Path | None, config: EvaluateConfig) -> None:
    """UserError where another verb's run lies beside --json under its name."""
    if config.out is None and folder and (folder / CONFIG).is_file() and read_run(folder).verb != "evaluate":
        raise UserError(
            f"--json {config.json}: the run of this evaluation would go into {folder}, where another one lies; give "
            "another file, or a folder as --out."
        )


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
    dropped: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The result of the run of `config`, which `evaluated` makes of the run and the folder that is kept, if any.

    The run lies `within` that folder, where there are runs of several tasks. Once it is finished the `dropped` files
    are deleted.
    """
    with ExitStack() as stack:
        kept = result_folder(config)
        group().once(lambda: require_no_run(kept, config))
        kept = None if kept is None else kept / within
        folder = kept or stack.enter_context(passing_folder(f"moce-{config.protocol}-"))
        run = stack.enter_context(open_run(folder, "evaluate", config, inputs))
        if run.finished:
            say(f"{run.path} is finished; --overwrite starts again", config.quiet)
            result = {**run.result(), "model": config.model}  # the same weights may have got another name
        else:
            if kept is None:
                say("without --json or --out an interrupted training starts again", config.quiet)
            result = run.finish(evaluated(run, kept))
        for name in dropped:
            run.drop(name)
        return result


def learned(
    run: Run, network: nn.Module, weights: str, train: Callable[[], dict[str, Any]], kept: bool
) -> dict[str, Any]:
    """What `train` says of training `network` in place; of a run interrupted later its weights are read instead.

    Once they are there the checkpoints are gone. Of a run that is not `kept` nothing is written.
    """
    if not kept:
        return train()
    if run.once((run.path / weights).is_file):
        network.load_state_dict(load_file(run.path / weights))
        training = read_json(run.path / TRAINING)
    else:
        run.once(lambda: require_room(run.path, network))
        training = train()
        run.write_json(TRAINING, training)  # before the weights, which say that it is done
        run.once(lambda: write_weights(run.path / weights, network))
    run.drop(CHECKPOINTS)
    return training


def require_room(folder: Path, network: nn.Module) -> None:
    """UserError where the disk cannot hold three checkpoints, each with both moments, less what lies there of them."""
    there = sum(path.stat().st_size for path in (folder / CHECKPOINTS).glob("*"))
    needed = 9 * sum(t.nbytes for t in network.state_dict().values())
    require_space(folder, max(needed - there, 0))


def write_weights(path: Path, network: nn.Module) -> None:
    """Write what was trained."""
    with write_whole(path) as temporary:
        save_file({n: t.contiguous().cpu() for n, t in network.state_dict().items()}, temporary)


def forward_flops(network: nn.Module, encoder: Encoder, device: torch.device) -> int:
    """FLOPs of a forward pass on one picture of the encoder's size, counted in one."""
    network.eval()
    picture = torch.zeros(1, len(encoder.mean), *encoder.image_size, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(picture)
    network.train()
    return counter.get_total_flops()


def training_options(config: EvaluateConfig, weight_decay: float) -> Training:
    """What the training loop takes; where no folder is kept there is nothing to continue, and no checkpoint."""
    kept = result_folder(config) is not None
    return Training(
        seed=config.seed,
        device=config.device,
        quiet=config.quiet,
        batch_size=config.batch_size,
        weight_decay=weight_decay,
        beta2=BETA2,
        precision=config.precision,
        checkpoint_minutes=config.checkpoint_minutes if kept else math.inf,
        checkpoint_steps=config.checkpoint_steps if kept else 0,
    )
