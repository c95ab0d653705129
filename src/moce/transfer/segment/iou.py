"""Intersection over union of classes, from the confusion matrix over the pixels of all pictures together."""

import torch
from jaxtyping import Int, Int64
from torch import Tensor


class Confusion:
    """counts[t, p]: pixels of class t that were taken for class p. Pixels of no class (below 0) are not counted."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: Int64[Tensor, "classes classes"] = torch.zeros(
            num_classes, num_classes, dtype=torch.int64
        )

    def add(self, truth: Int[Tensor, "*pixels"], predicted: Int[Tensor, "*pixels"]) -> None:
        """Count a picture."""
        scored = truth >= 0
        pairs = truth[scored].long() * self.num_classes + predicted[scored].long()
        found = torch.bincount(pairs.flatten(), minlength=self.num_classes**2)
        self.counts += found.view(self.num_classes, self.num_classes)

    def iou(self) -> list[float | None]:
        """Of each class: pixels that truly are and were taken for it, over those that are or were; None without any."""
        both = self.counts.diag()
        either = self.counts.sum(dim=0) + self.counts.sum(dim=1) - both
        return [b / e if e else None for b, e in zip(both.tolist(), either.tolist(), strict=True)]

    def accuracy(self) -> list[float | None]:
        """Share of the pixels of each class that were found; None for a class without pixels."""
        true = self.counts.sum(dim=1).tolist()
        return [b / t if t else None for b, t in zip(self.counts.diag().tolist(), true, strict=True)]

    def mean_iou(self) -> float:
        """Mean over the classes that are there or were predicted; 0 where no pixel was counted."""
        found = [value for value in self.iou() if value is not None]
        return sum(found) / len(found) if found else 0.0

    def pixel_accuracy(self) -> float:
        """Share of all pixels that were found."""
        total = int(self.counts.sum())
        return int(self.counts.diag().sum()) / total if total else 0.0
