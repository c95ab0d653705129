"""Shards: weights, gradients and AdamW's moments spread over the processes of a run (FSDP2, `--shard`).

A process keeps its share of every tensor. A part of the model (the attention or the MLP of one block, experts and
all) is put together when its turn comes, forwards and again backwards, and dropped behind it; what is small (norms,
tokens, positions, embeddings, gates) is together for the whole step. The run is that of DDP, up to the order of sums.

Files know nothing of it: tensors are whole before they are written, and taken apart after they are read.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DeviceMesh, DTensor, Shard, distribute_tensor

from moce.config import Training
from moce.engine.launch import world_size
from moce.errors import UserError


def require_shards_possible(config: Training) -> None:
    """UserError where --shard has nothing to spread over, or stands beside what it does not go with."""
    if not config.shard:
        return
    if world_size() == 1:
        raise UserError(
            "--shard spreads the weights over several processes and this is one; start more with --devices or "
            "torchrun, or leave --shard out."
        )
    if config.compile:
        raise UserError("--shard does not go with --compile; leave one of them out.")


def dimension(shape: tuple[int, ...], processes: int) -> int:
    """Along which dimension a tensor is spread: the first that divides evenly, else the first of all, unevenly.

    8 experts over 16 processes, say, are spread along their width.
    """
    return next((place for place, size in enumerate(shape) if size % processes == 0), 0)


class Sealed:
    """Something that is handed on as it is.

    Torch would look for tensors in it and move them to the GPU, but indices stay on the CPU, where randomness is
    computed from them.
    """

    def __init__(self, content: Any) -> None:
        self.content = content


class Opening(nn.Module):
    """An objective that takes its batch sealed."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Sealed) -> Any:
        """What the objective makes of the batch."""
        return self.objective(batch.content)


def spread(module: Opening, mesh: DeviceMesh, bf16: bool) -> Opening:
    """Spread the objective's weights over a mesh of processes, in place; they move to the mesh's device part by part.

    In bf16 the parts, which hold linear maps alone, are put together in bf16: what autocast would make of them, and
    half as much to send. Gradients are summed over processes in fp32, and the shares are fp32 throughout.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # It warns of whoever would write into what a part returns; nobody does.
    warnings.filterwarnings(
        "ignore", message=r"FSDP2-wrapped module .* returned a view", category=UserWarning
    )

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(dimension(tuple(parameter.shape), mesh.size()))

    halves = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    objective: Any = module.objective
    policy = halves if bf16 else MixedPrecisionPolicy()
    for part in objective.parts():
        fully_shard(part, mesh=mesh, shard_placement_fn=placement, mp_policy=policy)
    fully_shard(module, mesh=mesh, shard_placement_fn=placement)
    return module


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together, in all processes; all have to ask. Others come back as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def here(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, or all of it where it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def taken_apart(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor that every process has, spread as `like` is; nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def bring_together(module: nn.Module, into: nn.Module) -> None:
    """Copy a spread module's tensors, put together one by one, into the same module that is not; all have to ask."""
    places = into.state_dict()
    for name, tensor in module.state_dict().items():
        places[name].copy_(whole(tensor))
