"""What the training loop sees of a detector: the sum of its losses, layer-wise decay, the seed of a step."""

from typing import Any

import torch
from torch import Tensor

from moce.config import Training
from moce.engine.files import sha256_of
from moce.engine.processes import group
from moce.engine.trainer import Objective
from moce.images.augment import finish
from moce.model.autoencoder import block_flops
from moce.transfer.detect.detector import Detector, drawn_from
from moce.transfer.detect.jitter import Batch, boxes_of
from moce.transfer.encoder import Encoder
from moce.transfer.finetune import parameter_groups

LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}  # torchvision's names: ours


class DetectorObjective(Objective):
    """The losses of a batch, summed; of several processes each counts by its pictures."""

    trained: Detector

    def __init__(
        self,
        detector: Detector,
        encoder: Encoder,
        lr: float,
        layer_decay: float,
        seed: int,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.trained = detector
        self.mean, self.std, self.image_size = encoder.mean, encoder.std, encoder.image_size
        self.lr, self.layer_decay, self.seed, self.width = lr, layer_decay, seed, encoder.width
        self.batch_size = batch_size

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, its parts)."""
        device, processes = next(self.trained.parameters()).device, group()
        images = finish(batch.images.to(device), None, self.mean, self.std)
        targets = [{name: t.to(device) for name, t in target.items()} for target in batch.targets]
        for (
            target
        ) in targets:  # here, since Fabric rounds all floats that come in to the precision of training
            target["boxes"] = boxes_of(target["masks"])
        own = [str(processes.rank)] if processes.rank else []  # each process draws regions of its own
        with drawn_from(int(sha256_of("regions", str(self.seed), str(batch.step), *own), 16) >> 1, device):
            _, losses = self.trained(
                images, [(int(high), int(wide)) for high, wide in batch.sizes.tolist()], targets
            )
        part = processes.part_of_mean(len(images), self.batch_size)
        parts = {ours: losses[theirs] * part for theirs, ours in LOSSES.items()}
        if (auxiliary := self.trained.encoder.auxiliary_loss()) is not None:
            parts["balance"] = auxiliary
        return torch.stack(list(parts.values())).sum(), parts

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """Those of fine-tuning: one for each layer."""
        groups = parameter_groups(self.trained, self.layer_decay, config.weight_decay)
        return [{**group, "peak_lr": self.lr * float(str(group.pop("scale")))} for group in groups]

    def flops_per_image(self) -> int:
        """Of the encoder's blocks alone; windows are not subtracted."""
        side = self.trained.encoder.patch_size
        assert side is not None
        tokens = self.image_size[0] * self.image_size[1] // (side[0] * side[1])
        return 3 * (self.trained.encoder.num_layers - 1) * block_flops(tokens, self.width, 4 * self.width)
