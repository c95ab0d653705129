"""Whitening: the principal axes of features made alike, wholly or in part, before cosines are taken.

Features of masked autoencoders are strongly correlated: a few axes are much longer than the others, and may decide most
of a cosine.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

ROWS = 8192  # at a time
SHORTEST_AXIS = 1e-3  # of the longest
NO_AXIS = 1e-5  # of the longest; what is shorter is rounding, or a direction in which no feature differs


def scaling_of(covariance: Float64[Tensor, "width width"], whiten: float) -> Float64[Tensor, "width width"]:
    """The symmetric matrix that scales every principal axis by its deviation to the power of -`whiten`.

    The longest axis keeps its length. Axes of less than a thousandth of its deviation count as that long, so that
    noise is not blown up; those without any, as most have that fewer pictures than the width leave, are left out.
    Symmetric, it does not depend on the signs of the eigenvectors.
    """
    variances, axes = torch.linalg.eigh(covariance)
    longest = variances.max()
    if longest <= 0:
        return torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    relative = (variances / longest).clamp_min(0).sqrt()
    scales = relative.clamp_min(SHORTEST_AXIS) ** -whiten
    return (axes * scales * (relative > NO_AXIS)) @ axes.T


def whitened(
    known: Float[Tensor, "images width"], others: Float[Tensor, "others width"], whiten: float
) -> tuple[Float[Tensor, "images width"], Float[Tensor, "others width"]]:
    """Both less the mean of `known`, their axes scaled by the deviations of `known`; for 0 both as they are.

    In float64, of which nothing but the result is ever whole in memory.
    """
    if not whiten:
        return known, others
    parts = known.split(ROWS)
    mean = sum((part.sum(dim=0, dtype=torch.float64) for part in parts), start=torch.zeros(())) / len(known)
    products = torch.zeros(known.shape[1], known.shape[1], dtype=torch.float64, device=known.device)
    for part in parts:
        centred = part.double() - mean
        products += centred.T @ centred
    scaling = scaling_of(products / len(known), whiten)

    def scaled(features: Tensor) -> Tensor:
        out = torch.empty(features.shape, dtype=torch.float64, device=features.device)
        for part, row in zip(features.split(ROWS), out.split(ROWS), strict=True):
            torch.matmul(part.double() - mean, scaling, out=row)
        return out

    return scaled(known), scaled(others)
