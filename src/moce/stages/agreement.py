"""Do clusters agree with classes? Normalised mutual information and purity, from the table of counts."""

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
