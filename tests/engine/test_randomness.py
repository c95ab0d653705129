"""Draws are a function of (seed, purpose, epoch, index, place) and of nothing else."""

import math

import pytest
import torch

from moce.engine.randomness import normal, uniform

INDICES = torch.arange(20_000)


def test_values_are_frozen() -> None:
    """Recorded once: whoever changes them changes every run that anybody has started."""
    indices = torch.tensor([0, 1, 7, 49_999])
    numerators = (uniform(0, "crop", 0, indices, 3).double() * 2**24).long().tolist()
    assert numerators == [
        [9317454, 9435173, 15011263],
        [12117883, 2053309, 12749176],
        [1868674, 12924115, 12746345],
        [8582760, 8353389, 16690061],
    ]
    epochs = torch.arange(4)
    numerators = (uniform(-3, "mask", epochs, indices, 2).double() * 2**24).long().tolist()
    assert numerators == [[16273536, 1094398], [13399731, 11773280], [14376349, 7218625], [2401484, 9546699]]
    expected = [
        [0.98535186, -0.87678444],
        [-0.43530509, 1.77965212],
        [-0.86058164, -2.63313842],
        [-0.709445, -1.08031690],
    ]
    torch.testing.assert_close(normal(7, "gate", 3, indices, 2), torch.tensor(expected), rtol=1e-6, atol=0)


def test_the_hash_is_splitmix64() -> None:
    from moce.engine.randomness import GOLDEN, WORD, _mix, _mix_int, _signed

    assert (
        _mix_int((1234567 + GOLDEN) & WORD) == 6457827717110365317
    )  # the published first output for this seed
    words = [0, 1, WORD, 1 << 63, GOLDEN]
    assert _mix(torch.tensor([_signed(w) for w in words])).tolist() == [_signed(_mix_int(w)) for w in words]


@pytest.mark.parametrize("draw", [uniform, normal])
def test_slicing_and_order_change_nothing(draw) -> None:  # type: ignore[no-untyped-def]
    epochs = INDICES[:300] % 5
    whole = draw(3, "crop", epochs, INDICES[:300], 7)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(3, "crop", epochs[order], INDICES[order], 7), whole[order])
    parts = [draw(3, "crop", epochs[i : i + 77], INDICES[:300][i : i + 77], 7) for i in range(0, 300, 77)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(
        draw(3, "crop", epochs, INDICES[:300], 4), whole[:, :4]
    )  # asking for more keeps the first
    assert torch.equal(draw(3, "crop", 2, INDICES[2:300:5], 7), whole[2::5])  # one epoch for all, as an int


def test_arguments_are_left_alone() -> None:
    indices, epochs = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    uniform(0, "crop", epochs, indices, 2)
    assert indices.tolist() == [0, 1, 2, 3, 4] and epochs.tolist() == [0] * 5


@pytest.mark.parametrize("axis", ["indices", "epochs", "places", "seeds", "purposes"])
def test_uniform_is_uniform_along_every_argument(axis: str) -> None:
    draws = {
        "indices": lambda: uniform(0, "a", 0, INDICES, 1),
        "epochs": lambda: uniform(0, "a", INDICES, torch.zeros_like(INDICES), 1),
        "places": lambda: uniform(0, "a", 0, torch.tensor([0]), 20_000),
        "seeds": lambda: torch.cat([uniform(s, "a", 0, torch.tensor([0]), 1) for s in range(2_000)]),
        "purposes": lambda: torch.cat([uniform(0, f"a{s}", 0, torch.tensor([0]), 1) for s in range(2_000)]),
    }[axis]().flatten()
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.bincount((draws * 50).long(), minlength=50).double()
    expected = len(draws) / 50
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert 49 - 4.5 * math.sqrt(98) < chi2 < 49 + 4.5 * math.sqrt(98)
    ordered = draws.sort().values.double()
    distance = (ordered - torch.arange(len(draws)) / len(draws)).abs().max().item()
    assert distance < 2.0 / math.sqrt(len(draws))  # Kolmogorov-Smirnov, p about 0.001


def test_seeds_purposes_epochs_and_places_are_independent() -> None:
    base = uniform(0, "crop", 0, INDICES, 1).flatten()
    others = [
        uniform(0, "mask", 0, INDICES, 1).flatten(),
        uniform(1, "crop", 0, INDICES, 1).flatten(),
        uniform(0, "crop", 1, INDICES, 1).flatten(),
        uniform(0, "crop", 0, INDICES + 1, 1).flatten(),
        uniform(0, "crop", 0, INDICES, 2)[:, 1],
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([base, other]))[0, 1].item()
        assert abs(correlation) < 4.5 / math.sqrt(len(base))
        assert (base == other).sum() < 5


def test_normal_has_the_moments_of_a_normal() -> None:
    x = normal(0, "noise", 0, torch.arange(200_000), 1).double()
    assert abs(x.mean().item()) < 0.01 and abs(x.std().item() - 1) < 0.01
    assert abs((x**3).mean().item()) < 0.03 and abs((x**4).mean().item() - 3) < 0.06
    assert x.isfinite().all() and x.abs().max() < 5.5


@pytest.mark.gpu
def test_uniform_has_the_same_bits_on_the_gpu() -> None:
    gpu = INDICES.cuda()
    assert torch.equal(uniform(5, "crop", gpu % 3, gpu, 4).cpu(), uniform(5, "crop", INDICES % 3, INDICES, 4))
    assert (normal(5, "crop", 0, gpu, 4).cpu() != normal(5, "crop", 0, INDICES, 4)).float().mean() < 1e-4
