"""Do clusters agree with classes? Normalised mutual information, purity and names, from the table of counts."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int


def contingency(
    clusters: Int[np.ndarray, "images"], classes: Int[np.ndarray, "images"]
) -> Float[np.ndarray, "clusters classes"]:
    """How many pictures each pair of cluster and class has; empty rows and columns left out."""
    _, rows = np.unique(clusters, return_inverse=True)
    _, columns = np.unique(classes, return_inverse=True)
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    counts = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    return counts.reshape(shape).astype(np.float64)


def entropy(shares: Float[np.ndarray, "parts"]) -> float:
    """- sum of p log p, in nats; an empty part adds nothing."""
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def normalised_mutual_information(
    clusters: Int[np.ndarray, "images"], classes: Int[np.ndarray, "images"]
) -> float:
    """I(clusters; classes) over the mean of their entropies, 0 to 1 (scikit-learn's default)."""
    joint = contingency(clusters, classes) / len(clusters)
    rows, columns = entropy(joint.sum(axis=1)), entropy(joint.sum(axis=0))
    if rows + columns == 0:  # one cluster and one class: the same partition
        return 1.0
    return min(max(2 * (rows + columns - entropy(joint.ravel())) / (rows + columns), 0.0), 1.0)


def purity(clusters: Int[np.ndarray, "images"], classes: Int[np.ndarray, "images"]) -> float:
    """Share of pictures that are of the most frequent class of their cluster."""
    return float(contingency(clusters, classes).max(axis=1).sum() / len(clusters))


def leading_classes(
    clusters: Int[np.ndarray, "images"],
    classes: Int[np.ndarray, "images"],
    names: list[str],
    num_clusters: int,
    most: int = 3,
) -> list[list[list[Any]]]:
    """Per cluster [class, share] of its most frequent classes; "creatures/cat" and "creatures/dog" count as one."""
    groups = [name.rpartition("/")[0] or name for name in names]
    shown = sorted(set(groups))
    place = {name: number for number, name in enumerate(shown)}
    of_class = np.array([place[group] for group in groups])
    counts = np.zeros((num_clusters, len(shown)))
    np.add.at(counts, (clusters, of_class[classes]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :most]
    return [
        [[shown[n], round(float(row[n]), 4)] for n in best if row[n] > 0]
        for row, best in zip(shares, order, strict=True)
    ]
