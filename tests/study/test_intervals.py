"""Intervals, against published numbers and by simulation."""

import math
from typing import Any

import numpy as np
import pytest

from moce.study.intervals import interval, of_classes, of_sum, wilson


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
