import math

import pytest
import torch

from moce.transfer import metrics

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 3])
PREDICTIONS = torch.tensor([0, 0, 0, 1, 1, 0, 2])


def test_accuracies_of_a_hand_made_example() -> None:
    # Class 0: 3 of 4, class 1: 1 of 2, class 2: never seen, class 3: 0 of 1.
    accuracies = metrics.per_class(PREDICTIONS, LABELS, 4)
    assert metrics.listed(accuracies) == [0.75, 0.5, None, 0.0]
    assert metrics.score("top1", PREDICTIONS, LABELS, 4) == pytest.approx(4 / 7)
    assert metrics.score("mean_per_class", PREDICTIONS, LABELS, 4) == pytest.approx((0.75 + 0.5 + 0) / 3)


def test_mean_per_class_is_top1_where_classes_are_equally_large() -> None:
    labels = torch.arange(60) % 6
    predictions = labels.where(torch.arange(60) % 7 > 0, (labels + 1) % 6)
    values = [metrics.score(metric, predictions, labels, 6) for metric in metrics.METRICS]
    assert values[0] == pytest.approx(values[1])


def test_metrics_agree_with_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (200,), generator=generator).square() // 4  # uneven classes
    predictions = labels.where(torch.rand(200, generator=generator) < 0.6, torch.zeros_like(labels))
    score = metrics.scorer("mean_per_class", int(labels.max()) + 1)
    assert score(predictions, labels) == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert metrics.score("top1", predictions, labels, 5) == pytest.approx(accuracy_score(labels, predictions))


def test_a_class_without_images_is_no_zero() -> None:
    accuracies = metrics.per_class(torch.tensor([1]), torch.tensor([1]), 2)
    assert math.isnan(accuracies[0].item())
    assert metrics.score("mean_per_class", torch.tensor([1]), torch.tensor([1]), 2) == 1.0
