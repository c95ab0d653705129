"""From the balanced plan to one cluster per picture.

The argmax of a plan's rows is not balanced although the plan is. `capacity_labels` gives every cluster as many pictures
as it has room for (`even_capacities`: n / K rounded up or down, so that sizes differ by one at most): pictures choose
one after the other, those with the largest regret (best score minus second best) first, each the best cluster that
still has room.

That order is found without a loop over pictures. Everybody applies to his best cluster; a full cluster keeps those
that come first in the order and refuses the others, who apply to their next best, until nobody is refused (deferred
acceptance, Gale and Shapley 1962). As all clusters prefer pictures in one and the same order, there is exactly one
stable outcome, and it is the outcome of choosing one after the other.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moce.engine.processes import ALONE, Group

Scores = Callable[[Tensor], Tensor]
"""Embedded features [rows, width] to scores [rows, clusters], such as `Assigner.scores`."""


def best_and_regret(
    features: Float[Tensor, "images width"], scores: Scores, rows: int
) -> tuple[Int64[Tensor, "images"], Float[Tensor, "images"]]:
    """(the best cluster, best score minus second best) of every picture here. At least 2 clusters."""
    labels, regrets = [], []
    for chunk in features.split(rows):
        found = scores(chunk)
        labels.append(found.argmax(dim=1))
        first_two = found.topk(2, dim=1).values
        regrets.append(first_two[:, 0] - first_two[:, 1])
    return torch.cat(labels), torch.cat(regrets)


def even_capacities(sizes: Int64[Tensor, "clusters"]) -> Int64[Tensor, "clusters"]:
    """Room for all pictures in clusters of n / K; where that is no whole number the largest `sizes` have one more."""
    capacities = torch.full_like(sizes, int(sizes.sum()) // len(sizes))
    capacities[sizes.argsort(descending=True, stable=True)[: int(sizes.sum()) % len(sizes)]] += 1
    return capacities


def capacity_labels(
    features: Float[Tensor, "images width"],
    scores: Scores,
    labels: Int64[Tensor, "all"],
    regrets: Float[Tensor, "all"],
    capacities: Int64[Tensor, "clusters"],
    rows: int,
    processes: Group = ALONE,
) -> Int64[Tensor, "all"]:
    """Labels with at most `capacities[k]` pictures in cluster k; `labels` and `regrets` are those of `best_and_regret`.

    These two are of the pictures of all processes, the features of this one's. Equal regrets choose in the order of the
    pictures. Needs as much room as there are pictures.
    """
    num_images, num_clusters = len(labels), len(capacities)
    first, _ = processes.span(len(features))
    assert capacities.sum() >= num_images, "there is not room for every picture"
    labels = labels.clone()
    rank = torch.empty(num_images, dtype=torch.int64)  # place in the order of choosing
    rank[regrets.argsort(descending=True, stable=True)] = torch.arange(num_images)
    closed_from = torch.full((num_clusters,), num_images)  # a cluster refuses this rank and all later ones
    while True:
        sizes = labels.bincount(minlength=num_clusters)
        overfull = sizes > capacities
        if not overfull.any():
            return labels
        applicants = overfull[labels].nonzero()[:, 0]
        applicants = applicants[(labels[applicants] * num_images + rank[applicants]).argsort()]
        applied = labels[applicants]
        start = (sizes * overfull).cumsum(0) - sizes * overfull  # of each cluster in `applicants`
        place = torch.arange(len(applicants)) - start[applied]
        first_refused = place == capacities[applied]
        closed_from[applied[first_refused]] = rank[applicants[first_refused]]
        refused = applicants[place >= capacities[applied]]
        own = ((refused >= first) & (refused < first + len(features))).nonzero()[:, 0]
        next_best = torch.zeros_like(refused)
        for part in own.split(rows):
            found = scores(features[(refused[part] - first).to(features.device)])
            found[rank[refused[part]][:, None] >= closed_from] = -torch.inf
            next_best[part] = found.argmax(dim=1)
        labels[refused] = processes.sum(next_best)
