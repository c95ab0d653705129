"""Batch norm whose batch is that of all processes; torch's own is for GPUs alone (SyncBatchNorm)."""

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from moce.engine.processes import group
from moce.errors import UserError

Map = Float[Tensor, "images channels rows columns"]


def of_all(norm: nn.BatchNorm2d, images: Map) -> Map:
    """What one process would compute of the whole batch, in training; the running statistics are those of it."""
    over, values = (0, 2, 3), images.float()
    count = group().sum(torch.tensor(values.numel() / values.shape[1], device=values.device))
    mean = all_reduce(values.sum(over)) / count
    centred = values - mean[:, None, None]
    variance = all_reduce(centred.square().sum(over)) / count
    keep(norm, mean.detach(), variance.detach() * count / (count - 1))
    found = centred * torch.rsqrt(variance + norm.eps)[:, None, None]
    if norm.affine:
        found = found * norm.weight[:, None, None] + norm.bias[:, None, None]
    return found.to(images.dtype)


@torch.no_grad()
def keep(norm: nn.BatchNorm2d, mean: Float[Tensor, "channels"], variance: Float[Tensor, "channels"]) -> None:
    """Add what was seen to the running mean and (unbiased) variance, which testing takes."""
    if not norm.track_running_stats:
        return
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    part = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.item()
    norm.running_mean.lerp_(mean, part)
    norm.running_var.lerp_(variance, part)


class BatchNorm(nn.BatchNorm2d):
    """torch's in one process and after training."""

    def forward(self, images: Map) -> Map:
        return of_all(self, images) if self.training and group().world > 1 else super().forward(images)


class BatchNormAct(BatchNormAct2d):
    """timm's in one process and after training."""

    def forward(self, images: Map) -> Map:
        if not self.training or group().world == 1:
            return super().forward(images)
        return self.act(self.drop(of_all(self, images)))


def synchronise(network: nn.Module, name: str) -> None:
    """Let the batch norms of somebody else's network see the whole batch of several processes.

    UserError for one whose batch cannot be put together, in which every process would train a network of its own.
    """
    if group().world == 1:
        return
    ours = {nn.BatchNorm2d: BatchNorm, BatchNormAct2d: BatchNormAct}
    for module in network.modules():
        if type(module) in ours:
            module.__class__ = ours[type(module)]  # the same tensors, another way through them
        elif isinstance(module, _BatchNorm) and not isinstance(module, (BatchNorm, BatchNormAct)):
            raise UserError(
                f"{name} has {type(module).__name__}, which knows the pictures of one process alone; fine-tune it "
                "in one process."
            )
