"""Whitening: principal axes made alike."""

import pytest
import torch

from moce.model import whitening
from moce.model.whitening import scaling_of, whitened


def test_whitening_does_not_blow_noise_up() -> None:
    flat = torch.diag(torch.tensor([4.0, 1.0, 1e-8, 0.0], dtype=torch.float64))
    expected = torch.tensor([1.0, 2.0, 1000.0, 0.0], dtype=torch.float64)
    assert torch.allclose(scaling_of(flat, 1.0).diag(), expected)
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


def test_what_is_whitened_does_not_depend_on_how_much_is_read_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = torch.randn(100, 4, generator=torch.Generator().manual_seed(2)) + 3
    whole = whitened(known, known[:30], 0.5)
    monkeypatch.setattr(whitening, "ROWS", 7)
    for one, part in zip(whole, whitened(known, known[:30], 0.5), strict=True):
        assert torch.allclose(one, part, rtol=1e-12, atol=1e-12)


def test_no_whitening_does_not_even_centre() -> None:
    known = torch.randn(5, 3)
    assert torch.equal(whitened(known, known, 0.0)[0], known)


def test_directions_that_few_pictures_do_not_span_are_left_out() -> None:
    generator = torch.Generator().manual_seed(1)
    known, others = torch.randn(8, 32, generator=generator), torch.randn(5, 32, generator=generator)
    here, there = whitened(known, others, 1.0)
    assert (
        torch.linalg.matrix_rank(torch.cat([here, there]), rtol=1e-6) == 7
    )  # of eight pictures less their mean
    assert there.norm(dim=1).max() < 2 * here.norm(dim=1).max()
