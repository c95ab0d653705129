"""Batch norm whose batch is that of all processes; torch's own is for GPUs alone (SyncBatchNorm)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from moce.engine.processes import group


class BatchNorm(nn.BatchNorm2d):
    """What one process would compute of the whole batch; in one process, and after training, torch's own."""

    def forward(
        self, images: Float[Tensor, "images channels rows columns"]
    ) -> Float[Tensor, "images channels rows columns"]:
        if not self.training or group().world == 1:
            return super().forward(images)
        over, values = (0, 2, 3), images.float()
        count = group().sum(torch.tensor(values.numel() / values.shape[1], device=values.device))
        mean = all_reduce(values.sum(over)) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(over)) / count
        self.keep(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)

    def keep(self, mean: Float[Tensor, "channels"], variance: Float[Tensor, "channels"]) -> None:
        """Add what was seen to the running mean and (unbiased) variance, which testing takes."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
