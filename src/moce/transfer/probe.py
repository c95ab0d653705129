"""Probes on frozen features: weighted nearest neighbours and multinomial logistic regression.

Both follow one protocol: fit on train, choose on val, refit on train + val, predict test once. With few shots there is
no val: the choice is made by leaving out one image of each class in turn (of more than five, a fifth of them), and with
one image of a class there is none: k is the smallest of the grid and C is 1, as in scikit-learn.

Nearest neighbours: each of the k most similar training images (cosine s) votes for its class with weight exp(s / T).
With `--whiten` w the features are first centred and their principal axes scaled by their deviation to the power of -w,
both measured on the training images (0: features as they are). Where images show several classes the score of a class
is the weighted share of the neighbours that show it.
Logistic regression: minimise over (W, b)

    1/n sum_i CE(W x_i + b, y_i)  +  1/(2 C n) |W|^2

which is scikit-learn's `LogisticRegression(C=C)`, on features standardised with the training mean and deviation.
The solver is L-BFGS, with one difference from the textbook: it works in the eigenbasis of the features, each direction
scaled by (lambda_j / classes + 1/(C n))^-1/2, the curvature at the start. A rotation leaves |W|^2 as it is and a change
of variable leaves the minimum where it is; only the number of steps falls, several-fold, because the features of a
masked autoencoder are strongly correlated. Where images show several classes, each class has a binary regression of its
own with the same C (the curvature is lambda_j / 4), of the images in which it can be judged.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from moce.model.whitening import whitened
from moce.transfer.metrics import Score

INVERSE_L2 = tuple(10 ** (half / 2) for half in range(-8, 5))  # 1e-4 ... 100, two a decade
FIXED_C = 1.0  # where nothing can be left out to choose it by
FOLDS = 5
EVALUATIONS = 50  # of the loss in a fit, the median on eleven small tasks (M)


class Labelled(NamedTuple):
    """Features and classes of some images, in the same order; with several classes an image 1, 0 or -1 for each."""

    features: Float[Tensor, "images width"]
    labels: Int64[Tensor, "images *classes"]


class Outcome(NamedTuple):
    """Predicted and true classes of the test images, and what was chosen on the way there.

    With several classes an image, predictions are a score for each.
    """

    predictions: Shaped[Tensor, "images *classes"]
    labels: Int64[Tensor, "images *classes"]
    settings: dict[str, Any]


def joined(train: Labelled, val: Labelled | None) -> Labelled:
    if val is None:
        return train
    return Labelled(torch.cat([train.features, val.features]), torch.cat([train.labels, val.labels]))


def folds(train: Labelled, val: Labelled | None) -> list[tuple[Labelled, Labelled]]:
    """What to fit on and what to choose on: train and val, or without val what is left out in turn and the rest.

    Nothing where no class has two images. With few shots all classes have as many, and a fold leaves out as many.
    """
    if val is not None:
        return [(train, val)]
    labels = train.labels
    same = labels[:, None] == labels[None, :]
    rank = same.tril(-1).sum(dim=1)  # how many of the same class come before
    num = min(int(rank.max()) + 1, FOLDS)
    if num < 2:
        return []
    parts = [(rank % num != fold, rank % num == fold) for fold in range(num)]
    return [(part(train, kept), part(train, left_out)) for kept, left_out in parts]


def part(data: Labelled, chosen: Bool[Tensor, "images"]) -> Labelled:
    return Labelled(data.features[chosen], data.labels[chosen])


def mean_score(
    score: Score, predicted: Sequence[Tensor], pairs: Sequence[tuple[Labelled, Labelled]]
) -> float:
    """Mean over the folds of what predictions of the held-out images are worth."""
    return sum(score(p, held.labels) for p, (_, held) in zip(predicted, pairs, strict=True)) / len(pairs)


# ---------------------------------------------------------------------------------------------- nearest neighbours


def neighbours(
    bank: Float[Tensor, "images width"], queries: Float[Tensor, "queries width"], k: int
) -> tuple[Float64[Tensor, "queries k"], Int64[Tensor, "queries k"]]:
    """Cosine similarity and index of the `k` most similar bank images, best first. In float64, in bounded chunks."""
    bank = F.normalize(bank.double(), dim=1)
    queries = F.normalize(queries.double(), dim=1)
    chunk = max(1, 2**24 // len(bank))  # at most 128 MiB of similarities at once
    found = [(part @ bank.T).topk(k, dim=1) for part in queries.split(chunk)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def vote(
    similarities: Float64[Tensor, "queries k"],
    labels: Int64[Tensor, "queries k *classes"],
    num_classes: int,
    temperature: float,
) -> Shaped[Tensor, "queries *classes"]:
    """The class with the largest sum of exp(similarity / T) over the neighbours; the first one in a tie.

    With several classes an image, for each class the weighted share of the neighbours that show it, 0 where none of
    them can be judged.
    """
    # The best similarity is taken off before exp: a factor common to all votes of a query, and no overflow at small T.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    if labels.ndim == 3:
        judged = (weights[..., None] * (labels >= 0)).sum(dim=1)
        return (weights[..., None] * (labels == 1)).sum(dim=1) / judged.clamp_min(1e-300)
    votes = torch.zeros(len(labels), num_classes, dtype=weights.dtype, device=weights.device)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)


def knn(
    train: Labelled,
    val: Labelled | None,
    test: Labelled,
    num_classes: int,
    score: Score,
    ks: Sequence[int],
    temperatures: Sequence[float],
    whitens: Sequence[float] = (0.0,),
) -> Outcome:
    """Weighted nearest neighbours: whitening, k and T chosen on val, train + val as the bank for test.

    Without val: `folds`.
    """
    pairs, bank = folds(train, val), joined(train, val)
    fewest = min((len(fit.labels) for fit, _ in pairs), default=len(bank.labels))
    ks = sorted({min(k, fewest) for k in ks})

    def tried(whiten: float) -> list[tuple[float, float, int, float]]:
        near = [neighbours(*whitened(fit.features, held.features, whiten), ks[-1]) for fit, held in pairs]

        def worth(k: int, t: float) -> float:
            found = [
                vote(cosines[:, :k], fit.labels[indices[:, :k]], num_classes, t)
                for (cosines, indices), (fit, _) in zip(near, pairs, strict=True)
            ]
            return mean_score(score, found, pairs)

        return [(worth(k, t), whiten, k, t) for k in ks for t in temperatures]

    best, whiten, k, temperature = None, whitens[0], ks[0], temperatures[0]
    if pairs:  # the first of equals: the first whitening, fewest neighbours
        rows = [row for w in whitens for row in tried(w)]
        best, whiten, k, temperature = max(rows, key=lambda row: row[0])
    similarities, indices = neighbours(*whitened(bank.features, test.features, whiten), k)
    settings = {
        "whiten": whiten,
        "k": k,
        "temperature": temperature,
        "grid": {"whiten": list(whitens), "k": ks, "temperature": list(temperatures)},
        "val_score": best,
    }
    predictions = vote(similarities, bank.labels[indices], num_classes, temperature)
    return Outcome(predictions, test.labels, settings)


# --------------------------------------------------------------------------------------------- logistic regression


class Logistic(NamedTuple):
    """A fitted linear classifier on features standardised with `mean` and `std`, and how the fit went."""

    mean: Float64[Tensor, "width"]
    std: Float64[Tensor, "width"]
    weight: Float64[Tensor, "width classes"]
    bias: Float64[Tensor, "classes"]
    evaluations: int
    gradient: float  # largest entry of the scaled gradient where the solver stopped
    several: bool = False  # classes an image

    def logits(self, features: Float[Tensor, "images width"]) -> Float64[Tensor, "images classes"]:
        return (features.double() - self.mean) / self.std @ self.weight + self.bias

    def predict(self, features: Float[Tensor, "images width"]) -> Shaped[Tensor, "images *classes"]:
        """The class, or the probability of each where an image may show several."""
        logits = self.logits(features)
        return logits.sigmoid() if self.several else logits.argmax(dim=1)


def fit_logistic(
    data: Labelled,
    num_classes: int,
    cs: Sequence[float],
    tolerance: float = 1e-5,
    max_steps: int = 500,
    tick: Callable[[], object] = lambda: None,
) -> list[Logistic]:
    """One fit for each inverse penalty C, smallest first as the start of the next. float64, full batch.

    `tick` is called after every fit.
    """
    features = data.features.double()
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    # A constant feature is zero after centring, up to rounding, which must not be blown up to unit size.
    std = torch.where(std > 1e-9 * mean.abs(), std, 1.0)
    x = (features - mean) / std
    num_images = len(x)
    spectrum, basis = torch.linalg.eigh(x.T @ x / num_images)
    x = x @ basis

    weight = x.new_zeros(x.shape[1], num_classes)
    bias = x.new_zeros(num_classes)
    several = data.labels.ndim == 2
    flatness = (
        4 if several else num_classes
    )  # 1 / (p (1 - p)) of a binary, about 1 / p of a uniform prediction
    bias_scale = flatness**0.5
    judged, shown = (data.labels >= 0).double(), data.labels.clamp_min(0)
    fits = {}
    for c in sorted(cs):
        l2 = 1 / (c * num_images)
        scale = (spectrum.clamp_min(0) / flatness + l2).rsqrt()[:, None]
        scaled = x * scale.T
        v = torch.cat([weight / scale, bias[None] / bias_scale]).requires_grad_()
        solver = torch.optim.LBFGS(
            [v],
            max_iter=max_steps,
            max_eval=2 * max_steps,
            tolerance_grad=tolerance,
            tolerance_change=1e-12,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(v: Tensor = v, scaled: Tensor = scaled, scale: Tensor = scale, l2: float = l2) -> Tensor:
            logits = torch.addmm(v[-1] * bias_scale, scaled, v[:-1])
            if several:
                sums = F.binary_cross_entropy_with_logits(logits, shown.double(), judged, reduction="sum")
                error = sums / num_images
            else:
                error = F.cross_entropy(logits, data.labels)
            loss = error + l2 / 2 * (v[:-1] * scale).square().sum()
            (v.grad,) = torch.autograd.grad(loss, v)
            return loss.detach()

        with torch.enable_grad():
            solver.step(closure)
            closure()
        gradient = v.grad.abs().max().item() if v.grad is not None else 0.0
        weight, bias = (v[:-1] * scale).detach(), (v[-1] * bias_scale).detach()
        evaluations = solver.state[v]["func_evals"]
        fits[c] = Logistic(mean, std, basis @ weight, bias, evaluations, gradient, several)
        tick()
    return [fits[c] for c in cs]


def fitting_seconds(num_images: int, width: int, num_classes: int, num_fits: int) -> float:
    """About how long so many fits take, by two products of some of the rows: what an evaluation consists of."""
    rows = torch.ones(min(num_images, 4096), width, dtype=torch.float64)
    weight = torch.ones(width, num_classes, dtype=torch.float64)
    for _ in range(2):  # the first time is slower
        start = time.perf_counter()
        rows.T @ (rows @ weight)
        took = time.perf_counter() - start
    return took / len(rows) * num_images * num_fits * EVALUATIONS


def linear(
    train: Labelled,
    val: Labelled | None,
    test: Labelled,
    num_classes: int,
    score: Score,
    cs: Sequence[float] = INVERSE_L2,
    tick: Callable[[], object] = lambda: None,
) -> Outcome:
    """Logistic regression: C chosen on val, refitted on train + val, predicted on test once. Without val: `folds`."""
    cs, pairs, whole = sorted(cs), folds(train, val), joined(train, val)
    fits = [fit_logistic(fit, num_classes, cs, tick=tick) for fit, _ in pairs]
    tried = [
        mean_score(score, [fit.predict(held.features) for fit, (_, held) in zip(row, pairs)], pairs)
        for row in zip(*fits)
    ]
    # The first of equals: the strongest penalty. The value before the chosen one is fitted only as a start, nearer than
    # zero; the minimum is the same.
    best = max(range(len(tried)), key=tried.__getitem__) if tried else None
    last = [FIXED_C] if best is None else cs[max(0, best - 1) : best + 1]
    final = fit_logistic(whole, num_classes, last, tick=tick)[-1]
    settings = {
        "C": last[-1],
        "grid": {"C": cs},
        "val_score": None if best is None else tried[best],
        "val_scores": tried,
        "standardised": "mean and deviation of the images fitted on",
        "solver": {"evaluations": final.evaluations, "largest_gradient": final.gradient},
    }
    return Outcome(final.predict(test.features), test.labels, settings)
