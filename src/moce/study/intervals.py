"""How far a score may lie from what infinitely many test pictures of the same kind would give: 95 % intervals.

They hold for the sampling of test pictures alone. Another seed, or other pictures to train on, is not in them.

    top1             Wilson's interval of a share (Wilson 1927)
    mean_per_class   normal, with the variance of a mean of independent shares, sum_c p_c (1 - p_c) / n_c / C^2, where
                     each class is given one right and one wrong picture more, for one without mistakes may make some
                     (rather too wide for classes of few pictures; a test simulates its coverage)
    differences      from the intervals of both sides (Zou and Donner 2008; for two shares: Newcombe 1998, method 10),
    and means        as if each score had test pictures of its own. Two models that are tested on the same pictures fail
                     on the same ones, so such an interval is rather too wide.

Where every prediction is known (studies), differences are paired instead: the percentile bootstrap (Efron 1979) of the
per-picture differences, seeds averaged first.

    pictures         the tasks are what they are; the test pictures of each are drawn again
    tasks            the tasks are drawn again too, each time with pictures of their own: what another set of tasks of
                     this kind might say

Pictures with the same difference (and, where classes count alike, class) are exchangeable, so how many of each kind a
resample holds is drawn at once, from a multinomial: the same distribution as drawing pictures one by one, in the time
of a few numbers.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

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


RESAMPLES = 10_000
AT_ONCE = 2_000_000  # counts that are drawn at once, so that memory stays small
RESAMPLED = ("top1", "mean_per_class")  # metrics that are means over pictures, or over classes of them


def resampled(
    metric: str,
    scores: Float[np.ndarray, " pictures"],
    labels: Int64[np.ndarray, " pictures"],
    draw: np.random.Generator,
    num: int = RESAMPLES,
) -> Float64[np.ndarray, " resamples"]:
    """The metric of `num` resamples of the pictures, from what each adds to it (0 or 1, or a difference of these).

    Of mean_per_class, a class that a resample misses is left out of its mean.
    """
    assert metric in RESAMPLED and len(scores), metric
    classes = np.zeros_like(labels) if metric == "top1" else np.unique(labels, return_inverse=True)[1]
    kinds, sizes = np.unique(np.stack([classes, np.round(scores, 9)]), axis=1, return_counts=True)
    values, number = kinds[1], kinds[0].astype(np.int64)
    member = np.eye(number.max() + 1)[number]  # kinds x classes
    found = []
    step = max(AT_ONCE // len(sizes), 1)
    for first in range(0, num, step):
        counts = draw.multinomial(len(scores), sizes / sizes.sum(), size=min(step, num - first)).astype(float)
        total, right = counts @ member, (counts * values) @ member
        there = total > 0
        shares = np.divide(right, total, out=np.zeros_like(right), where=there)
        found.append(shares.sum(axis=1) / there.sum(axis=1))
    return np.concatenate(found)


def percentiles(draws: Float[np.ndarray, " resamples"]) -> Interval:
    """The middle 95 % of them."""
    low, high = np.percentile(draws, (2.5, 97.5)).tolist()
    return low, high


def over_tasks(
    draws_RT: Float[np.ndarray, "resamples tasks"], draw: np.random.Generator
) -> Float64[np.ndarray, " resamples"]:
    """The mean over tasks where the tasks are drawn again too; a task drawn twice has other pictures each time."""
    num, tasks = draws_RT.shape
    chosen = draw.integers(tasks, size=(num, tasks))
    rows = (np.arange(num)[:, None] + np.arange(tasks) * (num // tasks)) % num
    return draws_RT[rows, chosen].mean(axis=1)
