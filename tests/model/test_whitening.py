"""Whitening: principal axes made alike."""

import torch

from moce.model.whitening import scaling_of, whitened


def test_whitening_does_not_blow_noise_up() -> None:
    flat = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.allclose(scaling_of(flat, 1.0).diag(), torch.tensor([1.0, 2.0, 1000.0], dtype=torch.float64))
    assert torch.equal(
        scaling_of(torch.zeros(2, 2, dtype=torch.float64), 1.0), torch.eye(2, dtype=torch.float64)
    )


def test_axes_are_those_of_the_known_and_others_follow() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(500, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 7
    alike, others = whitened(known, known[:3], 1.0)
    covariance = alike.T @ alike / len(alike)
    assert torch.allclose(covariance, covariance[0, 0] * torch.eye(4, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(others, alike[:3])


def test_no_whitening_does_not_even_centre() -> None:
    known = torch.randn(5, 3)
    assert torch.equal(whitened(known, known, 0.0)[0], known.double())
