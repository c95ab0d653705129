"""What predictions are worth: top-1 and mean per-class accuracy; of several classes a picture, average precision.

The metrics of Ericsson et al. (2021). Top-1 and the mean over classes differ where classes differ in size: top-1 weighs
images, mean per class weighs classes. A class without a test image has no accuracy: it is None in the list and left out
of the mean, never a zero.

mAP11 is that of PASCAL VOC2007 (Everingham et al. 2010): for each class the images are ranked by their score; its
average precision is the mean, over the recalls 0, 0.1, ..., 1, of the highest precision at that recall or a higher one.
Images in which the class is only difficult to see (-1) do not count for it. Of equal scores the first image is first.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

METRICS = ("top1", "mean_per_class", "mAP11")
RECALLS = 10  # steps from 0 to 1

# (predictions, labels) -> value. Predictions are classes, or scores where labels are 1, 0 or -1 for each class.
Score = Callable[[Tensor, Tensor], float]


def per_class(
    predictions: Shaped[Tensor, "images *classes"], labels: Int64[Tensor, "images *classes"], num_classes: int
) -> Float64[Tensor, "classes"]:
    """Share of each class's images that were predicted right, or its average precision; nan without such images."""
    if labels.ndim == 2:
        columns = zip(predictions.T, labels.T, strict=True)
        return torch.tensor([average_precision(*column) for column in columns], dtype=torch.float64)
    total = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    return right.double() / total.double()


def average_precision(scores: Shaped[Tensor, "images"], shown: Int64[Tensor, "images"]) -> float:
    """The 11-point average precision of one class; nan where no image shows it."""
    judged = shown >= 0
    ranked = (shown[judged] == 1)[scores[judged].argsort(descending=True, stable=True)]
    found, total = ranked.cumsum(0), int(ranked.sum())
    if not total:
        return float("nan")
    precision = found.double() / torch.arange(1, len(found) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)  # at this place or a later one
    # The first place with a recall of at least step / 10, in whole numbers: 3 / 10 is less than 0.1 * 3 in floats.
    places = torch.searchsorted(found * RECALLS, torch.arange(RECALLS + 1) * total)
    return best[places].mean().item()


def score(
    metric: str,
    predictions: Shaped[Tensor, "images *classes"],
    labels: Int64[Tensor, "images *classes"],
    num_classes: int,
) -> float:
    """The value of `metric` (one of METRICS), 0 to 1."""
    assert len(labels) > 0, "no image to score"
    if metric == "top1":
        return (predictions == labels).double().mean().item()
    assert metric in METRICS, metric
    return per_class(predictions, labels, num_classes).nanmean().item()


def scorer(metric: str, num_classes: int) -> Score:
    """`score` with the task's metric and class count filled in: (predictions, labels) -> value."""
    return lambda predictions, labels: score(metric, predictions, labels, num_classes)


def images_per_class(labels: Int64[Tensor, "images *classes"], num_classes: int) -> list[int]:
    """How many images show each class."""
    shown = (labels == 1).sum(dim=0) if labels.ndim == 2 else torch.bincount(labels, minlength=num_classes)
    return shown.tolist()


def listed(accuracies: Float64[Tensor, "classes"]) -> list[float | None]:
    """Per-class accuracies for JSON, which has no nan."""
    return [None if value != value else value for value in accuracies.tolist()]
