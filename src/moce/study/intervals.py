"""How far a score may lie from what infinitely many test pictures of the same kind would give: 95 % intervals.

They hold for the sampling of test pictures alone. Another seed, or other pictures to train on, is not in them.

    top1             Wilson's interval of a share (Wilson 1927)
    mean_per_class   normal, with the variance of a mean of independent shares, sum_c p_c (1 - p_c) / n_c / C^2, where
                     each class is given one right and one wrong picture more, for one without mistakes may make some
                     (rather too wide for classes of few pictures; a test simulates its coverage)
    differences      from the intervals of both sides (Zou and Donner 2008; for two shares: Newcombe 1998, method 10),
    and means        as if each score had test pictures of its own. Two models that are tested on the same pictures fail
                     on the same ones, so such an interval is rather too wide.
"""

import math
from collections.abc import Iterable
from typing import Any

Z = 1.959964  # of 95 %

Interval = tuple[float, float]


def wilson(share: float, num: int, z: float = Z) -> Interval:
    """The interval of a share of `num` pictures."""
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def of_classes(shares: list[float | None], numbers: list[float], z: float = Z) -> Interval:
    """The interval of the mean of per-class shares; classes without pictures (None) are left out."""
    variance, total, num_classes = 0.0, 0.0, 0
    for share, num in zip(shares, numbers, strict=True):
        if share is None:
            continue
        moderated = (share * num + 1) / (num + 2)
        variance += moderated * (1 - moderated) / num
        total, num_classes = total + share, num_classes + 1
    value, half = total / num_classes, z * math.sqrt(variance) / num_classes
    return max(value - half, 0.0), min(value + half, 1.0)


def interval(result: dict[str, Any]) -> Interval | None:
    """Of a result of `moce evaluate`; None where its metric is unknown or nothing was counted.

    Results of mean_per_class without `num_test_per_class` are taken to have as many pictures of every class.
    """
    if result["num_test"] < 1:
        return None
    if result["metric"] == "top1":
        return wilson(result["value"], result["num_test"])
    shares = result.get("per_class") or []
    present = sum(share is not None for share in shares)
    if result["metric"] != "mean_per_class" or not present:
        return None
    return of_classes(
        shares, result.get("num_test_per_class") or [result["num_test"] / present] * len(shares)
    )


def of_sum(terms: Iterable[tuple[float, float, Interval]]) -> Interval:
    """The interval of sum_i weight_i * value_i, from (weight, value, interval of the value) of independent values."""
    value = below = above = 0.0
    for weight, own, (low, high) in terms:
        down, up = (own - low, high - own) if weight >= 0 else (high - own, own - low)
        value, below, above = value + weight * own, below + (weight * down) ** 2, above + (weight * up) ** 2
    return value - math.sqrt(below), value + math.sqrt(above)
