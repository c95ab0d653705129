"""Intervals, against published numbers and by simulation."""

import math
from typing import Any

import numpy as np
import pytest

from moce.study.intervals import interval, of_classes, of_sum, over_tasks, percentiles, resampled, wilson


def result(value: float, num: int, metric: str = "top1", **more: Any) -> dict[str, Any]:
    return {"value": value, "num_test": num, "metric": metric, **more}


def test_wilson_s_published_intervals() -> None:
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998
    assert wilson(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1.0, 20)[1] == 1.0


def test_newcombe_s_published_difference() -> None:
    first, second = 56 / 70, 48 / 80
    found = of_sum([(1, first, wilson(first, 70)), (-1, second, wilson(second, 80))])
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_a_sum_of_symmetric_intervals_is_pythagoras() -> None:
    found = of_sum([(0.5, 0.4, (0.1, 0.7)), (0.5, 0.2, (-0.2, 0.6))])
    assert found == pytest.approx((0.3 - 0.25, 0.3 + 0.25))


def test_classes_weigh_alike_however_many_pictures_they_have() -> None:
    low, high = of_classes([0.5, 0.5], [10, 1000])
    small = 0.25 / 10  # the variance of the small class is nearly all there is
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(small) / 2, rel=0.02)
    assert of_classes([0.5, None, 0.5], [10, 0, 1000]) == (low, high)


def test_classes_without_a_mistake_are_not_certain() -> None:
    low, high = of_classes([1.0] * 5, [10] * 5)
    assert low < 0.98
    assert high == 1.0


@pytest.mark.parametrize(("num_classes", "num"), [(102, 12), (17, 25), (6, 40), (2, 10)])
def test_the_interval_of_a_mean_over_classes_covers_the_truth(num_classes: int, num: int) -> None:
    draw = np.random.default_rng(0)
    truth = draw.beta(1, 3, num_classes)
    covered = []
    for right in draw.binomial(num, truth, (400, num_classes)):
        low, high = of_classes((right / num).tolist(), [num] * num_classes)
        covered.append(low <= truth.mean() <= high)
    assert 0.92 <= np.mean(covered) <= 1


def test_counts_of_classes_are_used_where_the_file_has_them() -> None:
    shares = {"metric": "mean_per_class", "per_class": [0.5, 0.5, None]}
    even = interval(result(0.5, 100, **shares))
    assert even == of_classes([0.5, 0.5], [50, 50])
    uneven = interval(result(0.5, 100, **shares, num_test_per_class=[5, 95, 0]))
    assert uneven == of_classes([0.5, 0.5], [5, 95])


def test_unknown_metrics_and_empty_tests_have_no_interval() -> None:
    assert interval(result(0.5, 100, "map11")) is None
    assert interval(result(0.5, 100, "mean_per_class")) is None
    assert interval(result(0.5, 0)) is None


# Pictures drawn again


def test_two_pictures_have_three_resamples() -> None:
    draws = resampled("top1", np.array([0.0, 1.0]), np.array([0, 1]), np.random.default_rng(0))
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert counts / len(draws) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_a_class_that_a_resample_misses_is_left_out() -> None:
    draws = resampled("mean_per_class", np.array([0.0, 1.0]), np.array([3, 9]), np.random.default_rng(0))
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert counts / len(draws) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_resampling_kinds_is_resampling_pictures(metric: str) -> None:
    draw = np.random.default_rng(1)
    labels = draw.choice(4, size=60, p=[0.1, 0.2, 0.3, 0.4])
    scores = draw.choice([-1, -1 / 3, 0, 1 / 3, 1], size=60)
    plain = []
    for rows in draw.integers(60, size=(10_000, 60)):
        if metric == "top1":
            plain.append(scores[rows].mean())
        else:
            there = np.unique(labels[rows])
            plain.append(np.mean([scores[rows][labels[rows] == c].mean() for c in there]))
    draws = resampled(metric, scores, labels, np.random.default_rng(2))
    assert draws.mean() == pytest.approx(np.mean(plain), abs=0.005)
    assert draws.std() == pytest.approx(np.std(plain), rel=0.04)
    assert percentiles(draws) == pytest.approx(tuple(np.percentile(plain, (2.5, 97.5))), abs=0.02)


def test_tasks_that_are_drawn_again_have_pictures_of_their_own() -> None:
    fixed = over_tasks(np.tile([0.0, 1.0], (10_000, 1)), np.random.default_rng(0))
    values, counts = np.unique(fixed, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert counts / 10_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    noise = np.random.default_rng(1).normal(size=(10_000, 4))
    # Were a task's pictures the same each time it is drawn, the variance would be 7/16 instead of 1/4.
    assert over_tasks(noise, np.random.default_rng(2)).var() == pytest.approx(0.25, rel=0.1)


def test_the_interval_of_a_paired_difference_covers_the_truth() -> None:
    draw, covered = np.random.default_rng(3), []
    for _ in range(200):
        scores = draw.choice([-1.0, 0.0, 1.0], size=150, p=[0.1, 0.7, 0.2])
        low, high = percentiles(resampled("top1", scores, np.zeros(150, int), draw, num=1000))
        covered.append(low <= 0.1 <= high)
    assert 0.9 <= np.mean(covered) <= 0.99
