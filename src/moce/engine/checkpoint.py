"""Checkpoints: everything that a run needs to continue exactly, as safetensors, written whole or not at all.

A checkpoint holds the trained module, AdamW's moments, the sums of the metrics line that is being collected, the step
and the seconds spent. There is no state of random generators: randomness is a function of (seed, epoch, picture).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from moce.engine.files import write_whole
from moce.engine.processes import group
from moce.engine.shards import taken_apart, whole
from moce.errors import UserError

KEPT = 2  # newest checkpoints that stay; the one before the newest is there if that one turns out bad


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.safetensors"))


def save_checkpoint(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: Optimizer,
    sums: dict[str, Tensor],
    about: dict[str, Any],
) -> Path:
    """Write the state after `step` steps and drop all but the newest checkpoints.

    All processes call it, since they may have to put tensors together; the first one writes.
    """
    content = whole_state(module, optimizer, sums)
    return group().once(lambda: write_checkpoint(folder, step, content, about))


def whole_state(module: nn.Module, optimizer: Optimizer, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole and on the CPU, in the process that writes; nothing in the others."""
    tensors = {f"module.{n}": t for n, t in module.state_dict().items()}
    names: dict[Tensor, str] = {p: n for n, p in module.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items()}
    tensors |= {f"sums.{n}": t for n, t in sums.items()}
    content = {}
    for name, tensor in tensors.items():
        together = whole(tensor.detach())
        if group().rank == 0:
            content[name] = together.contiguous().cpu().clone()
    return content


def write_checkpoint(folder: Path, step: int, content: dict[str, Tensor], about: dict[str, Any]) -> Path:
    """Write a checkpoint of these tensors and drop all but the newest ones."""
    path = folder / "checkpoints" / f"step-{step:09d}.safetensors"
    with write_whole(path) as temporary:
        save_file(
            content, temporary, metadata={"moce": json.dumps({"kind": "checkpoint", "step": step, **about})}
        )
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def restore_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put a checkpoint back into module and optimiser; (sums, about) with about["step"].

    Where these are spread over processes, each takes its shares, tensor by tensor.
    """
    likes = {f"module.{n}": t for n, t in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        likes |= {f"optimizer.{name}.{key}": parameter for key in ("exp_avg", "exp_avg_sq")}
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["moce"])
            tensors = {n: taken_apart(file.get_tensor(n), likes.get(n)) for n in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UserError(
            f"The checkpoint {path} cannot be read ({error}); delete it to continue from the one before."
        ) from None
    own = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
    module.load_state_dict(own)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            start = f"optimizer.{name}."
            state = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            if state:
                # AdamW keeps its step count on the CPU unless it is fused on a GPU.
                optimizer.state[parameter] = {
                    k: t if k == "step" and parameter.device.type == "cpu" else t.to(parameter.device)
                    for k, t in state.items()
                }
    sums = {n.removeprefix("sums."): t for n, t in tensors.items() if n.startswith("sums.")}
    return sums, about
