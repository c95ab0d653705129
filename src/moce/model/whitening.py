"""Whitening: the principal axes of features made alike, wholly or in part, before cosines are taken.

Features of masked autoencoders are strongly correlated: a few axes are much longer than the others, and may decide most
of a cosine.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

SHORTEST_AXIS = 1e-3  # of the longest
NO_AXIS = (
    1e-5  # of the longest; what is shorter is rounding, or a direction in which no feature was seen to differ
)


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
    """Both less the mean of `known`, their axes scaled by the deviations of `known`; for 0 both as they are."""
    if not whiten:
        return known, others
    known, others = known.double(), others.double()
    mean = known.mean(dim=0)
    centred = known - mean
    scaling = scaling_of(centred.T @ centred / len(centred), whiten)
    return centred @ scaling, (others - mean) @ scaling
