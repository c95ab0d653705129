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


def test_eleven_point_precision_by_hand() -> None:
    # Ranked: shown, not, shown, not, shown. Precision 1, 2/3 and 3/5 at recall 1/3, 2/3 and 1.
    scores, shown = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([1, 0, 1, 0, 1])
    expected = (4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11  # recalls 0 to 0.3, 0.4 to 0.6, 0.7 to 1
    assert metrics.average_precision(scores, shown) == pytest.approx(expected)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert metrics.average_precision(scores[order], shown[order]) == pytest.approx(expected)
    assert metrics.average_precision(scores**3, shown) == pytest.approx(expected)  # only the ranks count


def test_precision_counts_where_it_is_higher_at_a_higher_recall() -> None:
    # Not, shown, shown: precision 1/2 at recall 1/2, 2/3 at recall 1, which is the best at every recall.
    assert metrics.average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0, 1, 1])) == pytest.approx(
        2 / 3
    )


def test_a_recall_of_three_tenths_is_reached_by_three_of_ten() -> None:
    # 3 shown, 10 not, 7 shown: precision 1 at recalls 0 to 0.3, at most 10/20 beyond; in floats 0.1 * 3 > 3 / 10.
    shown = torch.tensor([1] * 3 + [0] * 10 + [1] * 7)
    value = metrics.average_precision(-torch.arange(20.0), shown)
    assert value == pytest.approx((4 * 1 + 7 * 0.5) / 11)


def test_what_is_difficult_to_see_does_not_count() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.7, 0.5], [0.6, 0.2]])
    labels = torch.tensor([[-1, 0], [1, 0], [0, 1], [1, -1]])
    both = metrics.per_class(scores, labels, 2)
    # First class: shown, not, shown: 1 at recalls 0 to 0.5, 2/3 above. Second: not, shown, not: 1/2 throughout.
    assert metrics.listed(both) == pytest.approx([(6 + 5 * 2 / 3) / 11, 0.5])
    assert metrics.score("mAP11", scores, labels, 2) == pytest.approx(both.mean().item())
    assert metrics.images_per_class(labels, 2) == [2, 1]
    nobody = torch.tensor([[0, 0], [1, 0], [0, -1], [1, 0]])
    assert metrics.listed(metrics.per_class(scores, nobody, 2))[1] is None
    assert metrics.images_per_class(LABELS, 4) == [4, 2, 0, 1]
