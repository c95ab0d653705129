"""Probes on frozen features: weighted nearest neighbours and multinomial logistic regression.

Both follow one protocol: fit on train, choose on val, refit on train + val, predict test once.

Nearest neighbours: each of the k most similar training images (cosine s) votes for its class with weight exp(s / T).
Logistic regression: minimise over (W, b)

    1/n sum_i CE(W x_i + b, y_i)  +  1/(2 C n) |W|^2

which is scikit-learn's `LogisticRegression(C=C)`, on features standardised with the training mean and deviation.
The solver is L-BFGS, with one difference from the textbook: it works in the eigenbasis of the features, each direction
scaled by (lambda_j / classes + 1/(C n))^-1/2, the curvature at the start. A rotation leaves |W|^2 as it is and a change
of variable leaves the minimum where it is; only the number of steps falls, several-fold, because the features of a
masked autoencoder are strongly correlated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from moce.transfer.metrics import Score

INVERSE_L2 = tuple(10 ** (half / 2) for half in range(-8, 5))  # 1e-4 ... 100, two a decade


class Labelled(NamedTuple):
    """Features and classes of some images, in the same order."""

    features: Float[Tensor, "images width"]
    labels: Int64[Tensor, "images"]


class Outcome(NamedTuple):
    """Predicted and true classes of the test images, and what was chosen on the way there."""

    predictions: Int64[Tensor, "images"]
    labels: Int64[Tensor, "images"]
    settings: dict[str, Any]


def joined(train: Labelled, val: Labelled) -> Labelled:
    return Labelled(torch.cat([train.features, val.features]), torch.cat([train.labels, val.labels]))


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
    labels: Int64[Tensor, "queries k"],
    num_classes: int,
    temperature: float,
) -> Int64[Tensor, "queries"]:
    """The class with the largest sum of exp(similarity / T) over the neighbours; the first one in a tie."""
    # The best similarity is taken off before exp: a factor common to all votes of a query, and no overflow at small T.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    votes = torch.zeros(len(labels), num_classes, dtype=weights.dtype, device=weights.device)
    return votes.scatter_add_(1, labels, weights).argmax(dim=1)


def knn(
    train: Labelled,
    val: Labelled,
    test: Labelled,
    num_classes: int,
    score: Score,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> Outcome:
    """Weighted nearest neighbours: k and T chosen on val, then train + val as the bank for test."""
    ks = sorted({min(k, len(train.labels)) for k in ks})
    similarities, indices = neighbours(train.features, val.features, ks[-1])
    near = train.labels[indices]
    tried = [
        (score(vote(similarities[:, :k], near[:, :k], num_classes, t), val.labels), k, t)
        for k in ks
        for t in temperatures
    ]
    best, k, temperature = max(tried, key=lambda row: row[0])  # the first of equals: fewest neighbours
    bank = joined(train, val)
    similarities, indices = neighbours(bank.features, test.features, k)
    settings = {
        "k": k,
        "temperature": temperature,
        "grid": {"k": ks, "temperature": list(temperatures)},
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

    def logits(self, features: Float[Tensor, "images width"]) -> Float64[Tensor, "images classes"]:
        return (features.double() - self.mean) / self.std @ self.weight + self.bias

    def predict(self, features: Float[Tensor, "images width"]) -> Int64[Tensor, "images"]:
        return self.logits(features).argmax(dim=1)


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
    bias_scale = num_classes**0.5
    fits = {}
    for c in sorted(cs):
        l2 = 1 / (c * num_images)
        scale = (spectrum.clamp_min(0) / num_classes + l2).rsqrt()[:, None]
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
            loss = F.cross_entropy(logits, data.labels) + l2 / 2 * (v[:-1] * scale).square().sum()
            (v.grad,) = torch.autograd.grad(loss, v)
            return loss.detach()

        with torch.enable_grad():
            solver.step(closure)
            closure()
        gradient = v.grad.abs().max().item() if v.grad is not None else 0.0
        weight, bias = (v[:-1] * scale).detach(), (v[-1] * bias_scale).detach()
        evaluations = solver.state[v]["func_evals"]
        fits[c] = Logistic(mean, std, basis @ weight, bias, evaluations, gradient)
        tick()
    return [fits[c] for c in cs]


def linear(
    train: Labelled,
    val: Labelled,
    test: Labelled,
    num_classes: int,
    score: Score,
    cs: Sequence[float] = INVERSE_L2,
    tick: Callable[[], object] = lambda: None,
) -> Outcome:
    """Logistic regression: C chosen on val, refitted on train + val, predicted on test once."""
    cs = sorted(cs)
    fits = fit_logistic(train, num_classes, cs, tick=tick)
    tried = [score(fit.predict(val.features), val.labels) for fit in fits]
    best = max(range(len(cs)), key=tried.__getitem__)  # the first of equals: the strongest penalty
    # The value before the chosen one is fitted only as a start, nearer than zero; the minimum is the same.
    final = fit_logistic(joined(train, val), num_classes, cs[max(0, best - 1) : best + 1], tick=tick)[-1]
    settings = {
        "C": cs[best],
        "grid": {"C": cs},
        "val_score": tried[best],
        "val_scores": tried,
        "standardised": "mean and deviation of the images fitted on",
        "solver": {"evaluations": final.evaluations, "largest_gradient": final.gradient},
    }
    return Outcome(final.predict(test.features), test.labels, settings)
