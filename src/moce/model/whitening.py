"""Whitening: the principal axes of features made alike, wholly or in part, before cosines are taken.

The features of a masked autoencoder are strongly correlated: a few axes are so much longer than the others that they
decide nearly every cosine by themselves.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

SHORTEST_AXIS = 1e-3  # of the longest


def scaling_of(covariance: Float64[Tensor, "width width"], whiten: float) -> Float64[Tensor, "width width"]:
    """The symmetric matrix that scales every principal axis by its deviation to the power of -`whiten`.

    The longest axis keeps its length. Axes of less than a thousandth of its deviation count as that long, so that
    noise is not blown up. Symmetric, it does not depend on the signs of the eigenvectors.
    """
    variances, axes = torch.linalg.eigh(covariance)
    longest = variances.max()
    if longest <= 0:
        return torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    relative = (variances / longest).clamp_min(SHORTEST_AXIS**2).sqrt()
    return (axes * relative**-whiten) @ axes.T


def whitened(
    known: Float[Tensor, "images width"], others: Float[Tensor, "others width"], whiten: float
) -> tuple[Float64[Tensor, "images width"], Float64[Tensor, "others width"]]:
    """Both less the mean of `known`, their axes scaled by the deviations of `known`; for 0 both as they are."""
    known, others = known.double(), others.double()
    if not whiten:
        return known, others
    mean = known.mean(dim=0)
    centred = known - mean
    scaling = scaling_of(centred.T @ centred / len(centred), whiten)
    return centred @ scaling, (others - mean) @ scaling
