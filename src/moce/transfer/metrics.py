"""What predictions are worth: top-1 and mean per-class accuracy.

The two metrics of Ericsson et al. (2021) for single-label tasks. They differ where classes differ in size: top-1
weighs images, mean per class weighs classes. A class without a test image has no accuracy: it is None in the list
and left out of the mean, never a zero.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

METRICS = ("top1", "mean_per_class")

Score = Callable[[Tensor, Tensor], float]


def per_class(
    predictions: Int64[Tensor, "images"], labels: Int64[Tensor, "images"], num_classes: int
) -> Float64[Tensor, "classes"]:
    """Share of each class's images that were predicted right; nan for a class without images."""
    total = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    return right.double() / total.double()


def score(
    metric: str, predictions: Int64[Tensor, "images"], labels: Int64[Tensor, "images"], num_classes: int
) -> float:
    """The value of `metric` ("top1" or "mean_per_class"), 0 to 1."""
    assert len(labels) > 0, "no image to score"
    if metric == "top1":
        return (predictions == labels).double().mean().item()
    assert metric == "mean_per_class", metric
    return per_class(predictions, labels, num_classes).nanmean().item()


def scorer(metric: str, num_classes: int) -> Score:
    """`score` with the task's metric and class count filled in: (predictions, labels) -> value."""
    return lambda predictions, labels: score(metric, predictions, labels, num_classes)


def listed(accuracies: Float64[Tensor, "classes"]) -> list[float | None]:
    """Per-class accuracies for JSON, which has no nan."""
    return [None if value != value else value for value in accuracies.tolist()]
