"""Balanced clusters of embedded pictures: spherical k-means, then an entropic transport plan with uniform marginals.

The plan M solves  maximise <M, F C> + eps * H(M)  with rows summing to 1/n and columns to 1/K, for n unit vectors F
and K unit centroids C. It is M_ik = exp(f_i . c_k / eps + u_i + v_k); Sinkhorn-Knopp finds the potentials u and v.

How this differs from the textbook:
- Only v (K numbers) is kept. u follows from v by a softmax over clusters, so rows are exact at any time and the error
  of the marginals is that of the columns: max_k |K * mass_k - 1|.
- The n x K scores never exist at once: every pass multiplies chunks of pictures anew and keeps sums over pictures.
- v is kept from round to round, while the centroids move to the normalised, plan-weighted means of the pictures.
- Everything stays in the log domain: the softmax sees f . c / eps + v, and v may be as large as eps demands.
- What only leads to the result is cheap: k-means and the rounds of plan and centroids begin on samples, and up to the
  last plan products multiply in bf16 where the processor can. The last rounds see every picture, and the last plan,
  which the potentials and their error come from, has full precision.
- Sinkhorn-Knopp needs hundreds of passes where pictures fall into kinds that have nothing to do with each other. It is
  coordinate ascent on a concave function of the K numbers v, so after its first pass damped Newton steps on the
  same function take over: the same potentials after about ten passes, from round to round after three.

Pictures may be spread over several processes (`processes`): each holds its features, in the order of the ranks, and
what is summed over pictures is summed over processes too, so all of them have the same centroids and potentials.

Everything here is a pure function of its arguments. Features may be a memory-mapped float16 or float32 tensor on the
CPU; the arithmetic runs where the centroids are.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from moce.engine.devices import coarse_products
from moce.engine.processes import ALONE, Group

CHUNK_ELEMENTS = 1 << 20
"""Numbers of a chunk of features or scores on the CPU (4 MiB in float32); a GPU takes 64 times as many."""
SAMPLE = 256  # pictures per cluster that k-means begins with
STEPS_OVER_ALL = 8  # of k-means, after those on the sample
ROUND_SAMPLE = 1024  # pictures per cluster, at least, that the rounds of plan and centroids begin with
ROUNDS_OVER_ALL = 5  # of them, after those on the sample


class Plan(NamedTuple):
    """What one run of Sinkhorn-Knopp found."""

    potentials: Float[Tensor, "clusters"]  # v, float64, mean 0
    marginal_error: float  # max_k |K * mass_k - 1| of exactly these potentials
    passes: int  # over all pictures


class Clustering(NamedTuple):
    """Centroids of balanced clusters and the potentials that belong to them."""

    centroids: Float[Tensor, "clusters width"]
    potentials: Float[Tensor, "clusters"]
    marginal_error: float
    rounds: int
    passes: int
    shift: float  # how far the last round moved a centroid, as 1 - cosine


def chunk_rows(num_clusters: int, width: int, device: torch.device) -> int:
    """How many pictures are scored at a time."""
    elements = CHUNK_ELEMENTS * (64 if device.type == "cuda" else 1)
    return max(256, elements // max(num_clusters, width))


def chunks_of(
    features: Float[Tensor, "images width"], rows: int, device: torch.device
) -> Iterator[tuple[slice, Float[Tensor, "rows width"]]]:
    """The pictures in order, `rows` at a time, as float32 on `device`."""
    for start in range(0, len(features), rows):
        here = slice(start, min(start + rows, len(features)))
        yield here, features[here].to(device=device, dtype=torch.float32)


def normalised(vectors: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """Vectors of length 1; a vector of zeros stays one."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def sample_of(
    features: Float[Tensor, "images width"],
    num_clusters: int,
    generator: torch.Generator,
    processes: Group = ALONE,
) -> Float[Tensor, "sample width"]:
    """At most 256 pictures per cluster of all processes, drawn at random, in their order; every process gets them."""
    _, num_images = processes.span(len(features))
    if num_images <= SAMPLE * num_clusters:
        return processes.gather(features)
    chosen = torch.randperm(num_images, generator=generator)[: SAMPLE * num_clusters].sort().values
    return processes.take(features, chosen)


def spread_out_centroids(
    features: Float[Tensor, "images width"],
    num_clusters: int,
    generator: torch.Generator,
    processes: Group = ALONE,
) -> Float[Tensor, "clusters width"]:
    """k-means++: every further centroid is a picture drawn with probability proportional to 1 - its best cosine.

    On the unit sphere that is half the squared distance. Drawn from at most 256 pictures per cluster, since K passes
    over a million pictures would cost more than the k-means that follows. These few are what every process sees.
    """
    sample = sample_of(features, num_clusters, generator, processes)
    candidates = sample.to(device="cpu", dtype=torch.float32)
    draws = torch.rand(num_clusters, generator=generator, dtype=torch.float64)
    picked = [int(draws[0] * len(candidates))]
    distance = torch.full((len(candidates),), 2.0, dtype=torch.float64)
    for draw in draws[1:]:
        distance = torch.minimum(distance, 1 - (candidates @ candidates[picked[-1]]).double())
        distance = distance.clamp_min(0)
        distance[picked] = 0
        mass = distance.cumsum(0)
        if mass[-1] > 1e-9:
            place = int(torch.searchsorted(mass, draw * mass[-1], right=True))
            picked.append(min(place, len(candidates) - 1))
        else:  # fewer different pictures than clusters: any picture not taken yet
            free = torch.ones(len(candidates), dtype=torch.bool)
            free[picked] = False
            picked.append(int(free.nonzero()[0]))
    return candidates[picked].clone()


def spherical_kmeans(
    features: Float[Tensor, "images width"],
    num_clusters: int,
    seed: int,
    iterations: int = 25,
    device: torch.device | None = None,
    rows: int | None = None,
    tick: Callable[[], None] = lambda: None,
    processes: Group = ALONE,
) -> Float[Tensor, "clusters width"]:
    """Unit centroids that maximise the mean cosine of pictures to their nearest one; sizes are whatever they become.

    Of more than 256 pictures per cluster all but the last eight steps look at a sample of so many. A cluster that lost
    all its pictures starts again at the picture that its own centroid fits worst. Stops early when the mean cosine
    grows by less than 1e-5.
    """
    device = device or features.device
    rows = rows or chunk_rows(num_clusters, features.shape[1], device)
    generator = torch.Generator().manual_seed(seed)
    _, num_images = processes.span(len(features))
    if num_images > SAMPLE * num_clusters and iterations > STEPS_OVER_ALL:
        sample = sample_of(
            features, num_clusters, generator, processes
        )  # the same everywhere, as is what follows
        steps = iterations - STEPS_OVER_ALL
        centroids = spherical_kmeans(sample, num_clusters, seed, steps, device, rows, tick)
        iterations = STEPS_OVER_ALL
    else:
        centroids = spread_out_centroids(features, num_clusters, generator, processes).to(device)
    previous = -math.inf
    for _ in range(iterations):
        sums = torch.zeros(centroids.shape, device=device, dtype=torch.float64)
        sizes = torch.zeros(num_clusters, device=device, dtype=torch.int64)
        best = torch.empty(len(features), device=device)
        for here, chunk in chunks_of(features, rows, device):
            best[here], labels = (chunk @ centroids.T).max(dim=1)
            sums += torch.zeros_like(centroids).index_add_(0, labels, chunk)
            sizes += torch.bincount(labels, minlength=num_clusters)
        centroids = normalised(processes.sum(sums)).float()
        empty = (processes.sum(sizes) == 0).nonzero().flatten()
        if len(empty):
            centroids[empty] = worst_fitting(features, best, len(empty), processes).to(device)
        tick()
        mean_cosine = float(processes.sum(best.double().sum())) / num_images
        if not len(empty) and mean_cosine - previous < 1e-5:
            break
        previous = mean_cosine
    return centroids


def worst_fitting(
    features: Float[Tensor, "images width"], cosines: Float[Tensor, "images"], count: int, processes: Group
) -> Float[Tensor, "count width"]:
    """The features of the `count` pictures with the smallest cosines, of all processes."""
    own = cosines.topk(min(count, len(cosines)), largest=False)
    cosine = processes.gather(own.values)
    feature = processes.gather(features[own.indices.to(features.device)].float())
    return feature[cosine.topk(count, largest=False).indices.to(feature.device)]


def sinkhorn(
    features: Float[Tensor, "images width"],
    centroids: Float[Tensor, "clusters width"],
    potentials: Float[Tensor, "clusters"],
    eps: float,
    tolerance: float = 1e-3,
    rows: int | None = None,
    newton_after: int = 1,
    max_passes: int = 500,
    processes: Group = ALONE,
) -> Plan:
    """The column potentials of the plan, from the given ones on, until every column holds 1/K up to `tolerance`.

    When the columns are good enough nothing is changed any more, so the error returned is the error of the potentials
    returned. `newton_after` passes take the step of Sinkhorn-Knopp; set it to `max_passes` for the textbook.
    """
    num_clusters = len(centroids)
    rows = rows or chunk_rows(len(centroids), centroids.shape[1], centroids.device)
    scaled = (centroids / eps).T.contiguous()
    _, num_images = processes.span(len(features))
    potentials = potentials.double() - potentials.double().mean()
    for number in range(1, max_passes + 1):
        sums = processes.sum(_columns(features, scaled, potentials.float(), rows)) / num_images
        mass, overlap = sums[0], sums[1:]
        load = mass * num_clusters  # 1 where the column is right
        error = float((load - 1).abs().max())
        if error < tolerance or number == max_passes:
            break
        if number <= newton_after or load.min() < 1e-2:
            # A column that holds next to nothing is raised by at most 69 (1e-30) per pass, and seen again in the next.
            step = -load.clamp_min(1e-30).log()
        else:
            step = _newton_step(1 / num_clusters - mass, overlap)
        potentials = potentials + step
        potentials = potentials - potentials.mean()
    return Plan(potentials, error, number)


def _columns(
    features: Float[Tensor, "images width"],
    scaled: Float[Tensor, "width clusters"],
    potentials: Float[Tensor, "clusters"],
    rows: int,
) -> Float64[Tensor, "1+clusters clusters"]:
    """The mass of every column of the plan, and below it the products of two columns' shares, summed over pictures."""
    num_clusters = len(potentials)
    mass = torch.zeros(num_clusters, device=scaled.device, dtype=torch.float64)
    overlap = torch.zeros(num_clusters, num_clusters, device=scaled.device, dtype=torch.float64)
    for _, chunk in chunks_of(features, rows, scaled.device):
        shares = torch.addmm(potentials, chunk, scaled).softmax(dim=1)
        mass += shares.sum(dim=0, dtype=torch.float64)
        overlap += shares.T @ shares
    return torch.cat([mass[None], overlap])


def _newton_step(
    gradient: Float64[Tensor, "clusters"], overlap: Float64[Tensor, "clusters clusters"]
) -> Float64[Tensor, "clusters"]:
    """A damped Newton step of the dual  mean_k v_k - mean_i log sum_k exp(f_i . c_k / eps + v_k),  which is concave.

    Minus its Hessian is diag(mass) - overlap. As the shares of a picture sum to 1 that is the Laplacian of the graph
    whose weights are the overlaps, and is written as such, so that rounding cannot make it indefinite. Damping by
    log(1 + b) / b with b = max(step) - min(step) makes the step safe from anywhere: the dual is generalised
    self-concordant in that norm (Sun and Tran-Dinh, Math. Programming 2019, nu = 2).
    """
    num_clusters = len(gradient)
    weights = overlap.clone().fill_diagonal_(0)
    curvature = weights.sum(dim=1).diag() - weights
    curvature += 1 / num_clusters**2  # constants change nothing; this pins their direction to 0
    curvature.diagonal().add_(1e-12 / num_clusters)
    step = torch.linalg.solve(curvature, gradient)
    width = float(step.max() - step.min())
    return step * (math.log1p(width) / width) if width > 0 else step


def plan_centroids(
    features: Float[Tensor, "images width"],
    centroids: Float[Tensor, "clusters width"],
    potentials: Float[Tensor, "clusters"],
    eps: float,
    rows: int | None = None,
    processes: Group = ALONE,
) -> Float[Tensor, "clusters width"]:
    """The normalised means of the pictures, weighted by the plan's columns."""
    rows = rows or chunk_rows(len(centroids), centroids.shape[1], centroids.device)
    scaled = (centroids / eps).T.contiguous()
    offset = potentials.float()
    sums = torch.zeros(centroids.shape, device=centroids.device, dtype=torch.float64)
    for _, chunk in chunks_of(features, rows, centroids.device):
        sums += torch.addmm(offset, chunk, scaled).softmax(dim=1).T @ chunk
    return normalised(processes.sum(sums)).float()


def every_so_many(
    features: Float[Tensor, "images width"], num_clusters: int, processes: Group = ALONE
) -> Float[Tensor, "seen width"]:
    """Every second, third, ... picture, at least 1,024 per cluster; of those, what lies in this process, as a view.

    `features` itself where that is every picture.
    """
    first, num_images = processes.span(len(features))
    step = max(1, num_images // (ROUND_SAMPLE * num_clusters))
    return features if step == 1 else features[-first % step :: step]


def balanced_clusters(
    features: Float[Tensor, "images width"],
    num_clusters: int,
    seed: int,
    eps: float = 0.05,
    rounds: int = 15,
    kmeans_iterations: int = 25,
    tolerance: float = 1e-3,
    settled: float = 1e-4,
    device: torch.device | None = None,
    rows: int | None = None,
    tick: Callable[[], None] = lambda: None,
    processes: Group = ALONE,
) -> Clustering:
    """Centroids and column potentials of `num_clusters` balanced clusters of unit feature vectors.

    features: n unit vectors, of all processes together, float16 or float32, possibly memory-mapped. `rounds` rounds of
    plan and centroids, fewer when no centroid moves by more than `settled` (1 - cosine); of 2,048 pictures per
    cluster and more all but the last five look at every second, third, ... picture. Needs num_clusters <= n.
    `tick` is called after every k-means step and every round. Memory beyond the features: a few chunks and one
    number per picture.
    """
    assert 1 <= num_clusters <= processes.span(len(features))[1] and eps > 0 and rounds >= 1
    device = device or features.device
    with coarse_products(device):
        centroids = spherical_kmeans(
            features, num_clusters, seed, kmeans_iterations, device, rows, tick, processes
        )
        potentials = torch.zeros(num_clusters, device=device, dtype=torch.float64)
        passes, done = 0, 0
        sample = every_so_many(features, num_clusters, processes)
        early = 0 if sample is features else max(0, rounds - ROUNDS_OVER_ALL)
        for seen, most in ((sample, early), (features, rounds - early)):
            for _ in range(most):
                plan = sinkhorn(seen, centroids, potentials, eps, tolerance, rows, processes=processes)
                moved = plan_centroids(seen, centroids, plan.potentials, eps, rows, processes)
                shift = float((1 - (moved * centroids).sum(dim=1)).max())
                centroids, potentials, done = moved, plan.potentials, done + 1
                passes += plan.passes + 1 if seen is features else 0
                tick()
                if shift < settled:
                    break
    # The potentials have to belong to the final centroids.
    plan = sinkhorn(features, centroids, potentials, eps, tolerance, rows, processes=processes)
    return Clustering(centroids, plan.potentials, plan.marginal_error, done, passes + plan.passes, shift)
