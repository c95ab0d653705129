import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from moce.engine.processes import Group
from moce.model.assigner import adjusted_scores
from moce.stages import balance
from moce.stages.agreement import normalised_mutual_information, purity
from moce.stages.balance import (
    Plan,
    balanced_clusters,
    chunks_of,
    every_so_many,
    normalised,
    plan_centroids,
    sinkhorn,
    spherical_kmeans,
    spread_out_centroids,
)
from moce.stages.rounding import best_and_regret, capacity_labels, even_capacities


def unit(count: int, width: int, seed: int = 0) -> Tensor:
    return normalised(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def mixture(
    sizes: list[int], width: int = 16, noise: float = 0.15, seed: int = 0
) -> tuple[Tensor, np.ndarray]:
    """Separable clouds of these sizes around orthogonal directions, centred and of length 1, and their numbers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    features = torch.eye(width)[labels] + noise * torch.randn(len(labels), width, generator=generator)
    return normalised(features - features.mean(dim=0)), labels.numpy()


def dense_sinkhorn(features: Tensor, centroids: Tensor, eps: float, iterations: int = 5000) -> Tensor:
    """The textbook: the whole plan, rows and columns scaled in turn. Returns n * K * M in float64."""
    kernel = torch.exp(features.double() @ centroids.double().T / eps)
    rows, columns = (
        torch.ones(len(kernel), dtype=torch.float64),
        torch.ones(kernel.shape[1], dtype=torch.float64),
    )
    for _ in range(iterations):
        rows = 1 / (len(kernel) * (kernel @ columns))
        columns = 1 / (kernel.shape[1] * (kernel.T @ rows))
    return rows[:, None] * kernel * columns * len(kernel) * kernel.shape[1]


def plan_of(features: Tensor, centroids: Tensor, potentials: Tensor, eps: float) -> Tensor:
    """n * K * M of our potentials."""
    return adjusted_scores(features, centroids, potentials, eps).softmax(dim=1) * centroids.shape[0]


# ------------------------------------------------------------------------------------------------------------ plan


def test_plan_of_two_pictures_and_two_clusters_by_hand() -> None:
    # A 2 x 2 plan with marginals 1/2 is ((p, q), (q, p)) with p + q = 1/2, and the potentials keep the odds ratio of
    # the kernel: (p / q)^2 = exp((s00 + s11 - s01 - s10) / eps). Scores: s = ((1, 0.6), (0.96, 0.8)).
    features = torch.tensor([[1.0, 0.0], [0.96, 0.28]])
    centroids = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    s = features.double() @ centroids.double().T
    assert torch.allclose(s, torch.tensor([[1, 0.6], [0.96, 0.8]], dtype=torch.float64), atol=1e-6)
    odds = math.exp((1 + 0.8 - 0.6 - 0.96) / (2 * 0.1))  # p / q = e^1.2
    plan = sinkhorn(features, centroids, torch.zeros(2), eps=0.1, tolerance=1e-6)
    found = plan_of(features, centroids, plan.potentials, 0.1) / 4
    p, q = odds / (2 * (1 + odds)), 1 / (2 * (1 + odds))
    assert torch.allclose(found, torch.tensor([[p, q], [q, p]], dtype=torch.float64), atol=1e-6)
    # log(p / q) = (s00 - s01) / eps + v0 - v1, so v0 - v1 = 1.2 - 4 = -2.8
    assert float(plan.potentials[0] - plan.potentials[1]) == pytest.approx(-2.8, abs=1e-5)
    assert plan.marginal_error < 1e-6


@pytest.mark.parametrize("eps", [0.05, 0.2, 1.0])
def test_plan_is_that_of_the_dense_textbook_iteration(eps: float) -> None:
    features, centroids = unit(60, 5), unit(7, 5, seed=1)
    plan = sinkhorn(features, centroids, torch.zeros(7), eps, tolerance=1e-6)
    expected = dense_sinkhorn(features, centroids, eps)
    assert torch.allclose(plan_of(features, centroids, plan.potentials, eps), expected, atol=1e-4)


def test_newton_steps_find_the_potentials_of_plain_sinkhorn_knopp() -> None:
    features, _ = mixture([120, 80, 40, 20], noise=0.4)
    centroids = spherical_kmeans(features, 8, seed=0)
    plain = sinkhorn(features, centroids, torch.zeros(8), 0.05, 1e-5, newton_after=5000, max_passes=5000)
    fast = sinkhorn(features, centroids, torch.zeros(8), 0.05, 1e-5)
    assert max(plain.marginal_error, fast.marginal_error) < 1e-5
    assert torch.allclose(plain.potentials, fast.potentials, atol=2e-3)
    assert fast.passes < plain.passes / 3


@given(
    seed=st.integers(0, 10_000),
    num_images=st.integers(2, 60),
    num_clusters=st.integers(1, 12),
    eps=st.sampled_from([0.01, 0.05, 0.3, 2.0]),
)
def test_marginals_are_uniform(seed: int, num_images: int, num_clusters: int, eps: float) -> None:
    features, centroids = unit(num_images, 4, seed), unit(num_clusters, 4, seed + 1)
    plan = sinkhorn(features, centroids, torch.zeros(num_clusters), eps, tolerance=1e-3)
    shares = plan_of(features, centroids, plan.potentials, eps)
    assert torch.allclose(
        shares.sum(dim=1), torch.full((num_images,), float(num_clusters), dtype=torch.float64)
    )
    columns = shares.mean(dim=0)  # 1 where the column is right
    assert plan.marginal_error < 1e-3
    assert float((columns - 1).abs().max()) == pytest.approx(plan.marginal_error, abs=2e-5)


def test_the_error_belongs_to_the_potentials_also_when_passes_run_out() -> None:
    features, _ = mixture([90, 10])
    centroids = features[[0, 95]]
    plan = sinkhorn(features, centroids, torch.zeros(2), 0.02, tolerance=1e-6, max_passes=2)
    columns = plan_of(features, centroids, plan.potentials, 0.02).mean(dim=0)
    assert plan.passes == 2
    assert plan.marginal_error > 0.01
    assert float((columns - 1).abs().max()) == pytest.approx(plan.marginal_error, rel=1e-3)


def test_an_eps_whose_kernel_underflows_is_balanced_all_the_same() -> None:
    # exp(-2 / 0.002) is zero in any float; the log domain does not mind.
    features, _ = mixture([60, 20], noise=0.3)
    plan = sinkhorn(features, features[[0, 70]], torch.zeros(2), eps=0.002)
    assert plan.marginal_error < 1e-3


def test_known_potentials_need_one_pass() -> None:
    features, centroids = unit(200, 8), unit(10, 8, seed=1)
    plan = sinkhorn(features, centroids, torch.zeros(10), 0.05)
    assert sinkhorn(features, centroids, plan.potentials, 0.05).passes == 1


# ------------------------------------------------------------------------------------------------- chunks and k-means


def test_chunk_size_does_not_change_the_result() -> None:
    features, _ = mixture([150, 150, 150, 150], noise=0.5)
    results = [balanced_clusters(features, 12, seed=3, rows=rows) for rows in (7, 100, 10_000)]
    for other in results[1:]:
        assert torch.allclose(results[0].centroids, other.centroids, atol=1e-5)
        assert torch.allclose(results[0].potentials, other.potentials, atol=1e-4)
        assert results[0].rounds == other.rounds


def test_one_pass_in_chunks_is_one_pass_at_once() -> None:
    features, centroids = unit(501, 8), unit(10, 8, seed=1)
    potentials = torch.linspace(-1, 1, 10)
    shares = adjusted_scores(features, centroids, potentials, 0.1).softmax(dim=1)
    expected = normalised(shares.T @ features.double())
    for rows in (1, 64, 501):
        found = plan_centroids(features, centroids, potentials, 0.1, rows)
        assert torch.allclose(found.double(), expected, atol=1e-6)


def test_features_may_be_float16() -> None:
    features, labels = mixture([100, 100, 100])
    found = balanced_clusters(features.half(), 3, seed=0)
    assert found.marginal_error < 1e-3
    own = adjusted_scores(features, found.centroids, found.potentials, 0.05).argmax(dim=1)
    assert normalised_mutual_information(own.numpy(), labels) == 1.0


def test_the_same_seed_gives_the_same_clusters_and_another_one_others() -> None:
    features = unit(300, 12)
    first, again, other = (balanced_clusters(features, 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.centroids, again.centroids)
    assert torch.equal(first.potentials, again.potentials)
    assert not torch.allclose(first.centroids, other.centroids)


def test_kmeans_never_lowers_the_mean_cosine() -> None:
    features = unit(400, 12)
    start = spread_out_centroids(features, 10, torch.Generator().manual_seed(5))
    fits = [
        float((features @ spherical_kmeans(features, 10, seed=5, iterations=i).T).max(dim=1).values.mean())
        for i in range(8)
    ]
    assert fits[0] == pytest.approx(float((features @ start.T).max(dim=1).values.mean()))
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(fits))


def test_kmeans_that_begins_on_a_sample_fits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = mixture([1500, 900, 600], noise=0.3)
    looked_at = []

    def noted(features: Tensor, *others: object) -> Iterator[tuple[slice, Tensor]]:
        looked_at.append(len(features))
        return chunks_of(features, *others)

    monkeypatch.setattr(balance, "chunks_of", noted)
    sampled = spherical_kmeans(features, 3, seed=0)
    assert looked_at[0] == 3 * 256 and looked_at[-1] == 3000
    assert looked_at.count(3000) <= 8
    monkeypatch.setattr(balance, "SAMPLE", 3000)
    whole = spherical_kmeans(features, 3, seed=0)
    fits = [float((features @ found.T).max(dim=1).values.mean()) for found in (sampled, whole)]
    assert fits[0] > fits[1] - 1e-3


def test_rounds_that_begin_on_a_sample_fit_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = mixture([1500, 900, 600, 400], width=64, noise=0.3)
    whole = balanced_clusters(features, 6, seed=0, settled=0)
    looked_at = []

    def noted(features: Tensor, *others: Any, **options: Any) -> Tensor:
        looked_at.append(len(features))
        return plan_centroids(features, *others, **options)

    monkeypatch.setattr(balance, "plan_centroids", noted)
    monkeypatch.setattr(balance, "ROUND_SAMPLE", 100)
    found = balanced_clusters(features, 6, seed=0, settled=0)
    assert looked_at == [680] * 10 + [3400] * 5 and found.rounds == 15
    fits = []
    for one in (found, whole):
        shares = plan_of(features, one.centroids, one.potentials, 0.05) / 6
        fits.append(float((shares * (features @ one.centroids.T)).sum(dim=1).mean()))
    assert fits[0] > fits[1] - 5e-3
    assert found.marginal_error < 1e-3


def test_the_sample_of_the_rounds_does_not_depend_on_how_pictures_are_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balance, "ROUND_SAMPLE", 30)
    features = unit(500, 8)
    alone = every_so_many(features, 4)

    class One(Group):
        def span(self, count: int) -> tuple[int, int]:
            return (0 if self.rank == 0 else 203), 500

    own = (features[:203], features[203:])
    parts = [every_so_many(part, 4, One(rank)) for rank, part in enumerate(own)]
    assert len(alone) == 125 and torch.equal(torch.cat(parts), alone)
    assert alone.untyped_storage().data_ptr() == features.untyped_storage().data_ptr()


def test_what_leads_to_the_plan_may_be_coarse_but_the_last_plan_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, _ = mixture([900, 500, 300, 100], width=64, noise=0.3)
    precisions = []

    def noted(*arguments: Any, **options: Any) -> Plan:
        precisions.append(torch.get_float32_matmul_precision())
        return sinkhorn(*arguments, **options)

    monkeypatch.setattr(balance, "sinkhorn", noted)
    found = balanced_clusters(features, 6, seed=0)
    assert precisions[-1] == torch.get_float32_matmul_precision() == "highest"
    columns = plan_of(features, found.centroids, found.potentials, 0.05).mean(dim=0)
    assert float((columns - 1).abs().max()) == pytest.approx(found.marginal_error, abs=2e-5)
    assert found.marginal_error < 1e-3


def test_first_centroids_are_different_pictures() -> None:
    features = unit(40, 6)
    start = spread_out_centroids(features, 40, torch.Generator().manual_seed(0))
    assert len(start.unique(dim=0)) == 40


@pytest.mark.parametrize("sizes", [[200, 200, 200, 200], [400, 200, 100, 50]], ids=["equal", "unequal"])
def test_kmeans_recovers_separable_clouds(sizes: list[int]) -> None:
    features, labels = mixture(sizes)
    own = (features @ spherical_kmeans(features, len(sizes), seed=0).T).argmax(dim=1)
    assert normalised_mutual_information(own.numpy(), labels) > 0.9


@pytest.mark.parametrize("sizes", [[200, 200, 200, 200], [220, 200, 200, 180]], ids=["equal", "nearly equal"])
def test_balanced_clusters_recover_separable_clouds(sizes: list[int]) -> None:
    features, labels = mixture(sizes)
    found = balanced_clusters(features, len(sizes), seed=0)
    own = adjusted_scores(features, found.centroids, found.potentials, 0.05).argmax(dim=1)
    assert normalised_mutual_information(own.numpy(), labels) > 0.9


def test_more_balanced_clusters_than_unequal_clouds_stay_within_them() -> None:
    # Clouds of 8, 4, 2, 1 parts in 15 clusters of one part each: every cluster can be of one cloud.
    features, labels = mixture([480, 240, 120, 60])
    found = balanced_clusters(features, 15, seed=0)
    own = adjusted_scores(features, found.centroids, found.potentials, 0.05).argmax(dim=1)
    assert purity(own.numpy(), labels) > 0.95


@pytest.mark.parametrize("num_clusters", [2, 6, 30])
def test_pictures_that_are_all_alike_are_no_fault(num_clusters: int) -> None:
    found = balanced_clusters(torch.zeros(30, 4), num_clusters, seed=0)
    assert found.marginal_error < 1e-3
    assert torch.isfinite(found.potentials).all()
    features = unit(3, 4)[torch.arange(30) % 3]  # three different pictures
    found = balanced_clusters(features, num_clusters, seed=0)
    assert found.marginal_error < 1e-3
    assert torch.isfinite(found.centroids).all()


def test_as_many_clusters_as_pictures_is_one_each() -> None:
    features = unit(16, 12)
    found = balanced_clusters(features, 16, seed=0)
    own = adjusted_scores(features, found.centroids, found.potentials, 0.05).argmax(dim=1)
    assert own.sort().values.tolist() == list(range(16))


# -------------------------------------------------------------------------------------------------------- rounding


def rounded(scores: Tensor, capacity: int, rows: int = 1000) -> list[int]:
    """Capacity labels of a table of scores."""
    labels, regrets = best_and_regret(scores, lambda chunk: chunk.clone(), rows)
    capacities = torch.full((scores.shape[1],), capacity)
    return capacity_labels(scores, lambda chunk: chunk.clone(), labels, regrets, capacities, rows).tolist()


def one_after_the_other(scores: np.ndarray, capacity: int) -> list[int]:
    """The definition, as a loop."""
    ordered = np.sort(scores, axis=1)
    room = [capacity] * scores.shape[1]
    labels = [-1] * len(scores)
    for image in np.argsort(-(ordered[:, -1] - ordered[:, -2]), kind="stable"):
        for cluster in np.argsort(-scores[image], kind="stable"):
            if room[cluster]:
                room[cluster] -= 1
                labels[image] = int(cluster)
                break
    return labels


def test_best_and_regret_by_hand() -> None:
    labels, regrets = best_and_regret(
        torch.tensor([[1.0, 4.0, 3.5], [2.0, 2.0, 0.0]]), lambda chunk: chunk, 1
    )
    assert labels.tolist() == [1, 0]
    assert regrets.tolist() == [0.5, 0.0]


def test_capacity_by_hand() -> None:
    # All want cluster 0, which has room for two. Regrets 1, 5, 3, 2: pictures 1 and 2 stay, 3 and then 0 go on.
    # Picture 3 takes cluster 1 (6 before 5), and so does picture 0, for which there is room.
    scores = torch.tensor([[9.0, 8, 7], [9, 4, 3], [9, 6, 1], [8, 6, 5]])
    assert rounded(scores, capacity=2) == [1, 0, 0, 1]
    # Without picture 3 and with room for one each: 1 takes cluster 0, 2 takes cluster 1, 0 takes what is left.
    assert rounded(scores[:3], capacity=1) == [2, 0, 1]


def test_a_refused_picture_displaces_one_with_less_regret() -> None:
    # 0 and 1 want cluster 0 (regrets 9 and 5), 2 and 3 want cluster 1 (regrets 1 and 7).
    scores = torch.tensor([[10.0, 1, 0], [10, 5, 0], [0, 10, 9], [0, 10, 3]])
    labels, regrets = best_and_regret(scores, lambda chunk: chunk.clone(), 10)
    assert labels.tolist() == [0, 0, 1, 1]
    assert regrets.tolist() == [9, 5, 1, 7]
    more = torch.cat([scores, torch.tensor([[11.0, 0, 0]]), torch.tensor([[0.0, 0, 1]])])
    # Two more, who want cluster 0 (regret 11) and 2 (regret 1). The order is 4, 0, 3, 1, 2, 5: cluster 0 is full with
    # 4 and 0 and refuses 1, who then comes before 2 in cluster 1.
    assert rounded(more, capacity=2) == [0, 1, 2, 1, 0, 2]


def test_room_is_even_and_the_largest_clusters_have_the_rest() -> None:
    assert even_capacities(torch.tensor([2, 9, 0, 6])).tolist() == [4, 5, 4, 4]
    assert even_capacities(torch.tensor([3, 3])).tolist() == [3, 3]
    # Three pictures, all for cluster 1 (regrets 3, 9, 5): it has room for two, 1 and 2; 0 goes to 0.
    scores = torch.tensor([[2.0, 5], [0, 9], [1, 6]])
    plain, regrets = best_and_regret(scores, lambda chunk: chunk.clone(), 10)
    capacities = even_capacities(plain.bincount(minlength=2))
    assert capacities.tolist() == [1, 2]
    assert capacity_labels(scores, lambda chunk: chunk.clone(), plain, regrets, capacities, 10).tolist() == [
        0,
        1,
        1,
    ]


def test_equal_regrets_choose_in_the_order_of_the_pictures() -> None:
    assert rounded(torch.tensor([[1.0, 0.0]] * 4), capacity=2) == [0, 0, 1, 1]


@given(
    seed=st.integers(0, 10_000),
    num_images=st.integers(1, 60),
    num_clusters=st.integers(2, 9),
    levels=st.sampled_from([3, 10, 10_000]),
    rows=st.sampled_from([1, 4, 1000]),
)
def test_capacity_is_choosing_one_after_the_other(
    seed: int, num_images: int, num_clusters: int, levels: int, rows: int
) -> None:
    # Few levels: many equal regrets. Within a picture the scores differ, so that "next best" is one cluster.
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (num_images, num_clusters)) * 16.0 + rng.permuted(
        np.tile(np.arange(num_clusters), (num_images, 1)), axis=1
    )
    capacity = -(-num_images // num_clusters)
    labels = rounded(torch.from_numpy(scores), capacity, rows)
    assert labels == one_after_the_other(scores, capacity)
    assert np.bincount(labels, minlength=num_clusters).max() <= capacity


def test_rounding_keeps_balanced_clusters_even_and_moves_few() -> None:
    features, _ = mixture([250] * 4, noise=0.5)
    found = balanced_clusters(features, 16, seed=0)
    scores = partial(adjusted_scores, centroids=found.centroids, potentials=found.potentials, eps=0.05)
    plain, regrets = best_and_regret(features, scores, 64)
    labels = capacity_labels(
        features, scores, plain, regrets, even_capacities(plain.bincount(minlength=16)), 64
    )
    assert sorted(labels.bincount(minlength=16).unique().tolist()) == [62, 63]
    assert plain.bincount(minlength=16).max() > 63
    assert float((labels != plain).float().mean()) < 0.25


# ------------------------------------------------------------------------------------------------------- agreement


@given(
    seed=st.integers(0, 10_000),
    num_images=st.integers(1, 80),
    clusters=st.integers(1, 9),
    classes=st.integers(1, 9),
)
def test_mutual_information_is_that_of_scikit_learn(
    seed: int, num_images: int, clusters: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, clusters, num_images) * 3, rng.integers(0, classes, num_images) + 5
    expected = normalized_mutual_info_score(right, left)
    assert normalised_mutual_information(left, right) == pytest.approx(expected, abs=1e-9)


def test_purity_by_hand() -> None:
    # Cluster 0 holds classes 7, 7, 9; cluster 4 holds 9, 9: four of five are of their cluster's most frequent class.
    assert purity(np.array([0, 0, 0, 4, 4]), np.array([7, 7, 9, 9, 9])) == 0.8


# ---------------------------------------------------------------------------------------------------------- memory


def test_the_scores_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    addmm = torch.addmm

    def watched(*arguments: Tensor, **options: float) -> Tensor:
        nonlocal largest
        result = addmm(*arguments, **options)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch, "addmm", watched)
    balanced_clusters(unit(2000, 8), 20, seed=0, rows=100, rounds=2)
    assert 0 < largest <= 100 * 20
