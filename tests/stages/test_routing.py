"""Experts against classes: by hand, and what accident gives."""

import numpy as np
import pytest

from moce.model.weights import read_header
from moce.stages.routing import routing_of, separation


def test_separation_by_hand() -> None:
    experts = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [2, 2, 2, 2]])
    found = separation(experts, np.array([5, 5, 9]))
    assert found["purity"] == 1  # every expert sees one class alone
    assert found["together"] == pytest.approx((5 + 4) / 12)  # of class 5 five of eight patches go to expert 0
    assert separation(experts, np.array([5, 5, 5]))["nmi"] == 0
    assert separation(np.array([[0, 0], [1, 1]]), np.array([3, 4])) == {"nmi": 1, "purity": 1, "together": 1}


def test_pictures_count_for_the_expert_of_most_of_their_patches() -> None:
    found = routing_of(np.array([[0, 0, 0, 1], [0, 0, 1, 1], [2, 2, 2, 2]]), 4, None, seed=0)
    assert found == {"pictures": [2, 0, 1, 0], "main": (3 / 4 + 2 / 4 + 1) / 3, "classes": None}


def test_accident_is_told_from_agreement() -> None:
    draw = np.random.default_rng(0)
    classes = np.repeat(np.arange(20), 5)
    by_class, by_accident = (
        np.tile((classes % 4)[:, None], 16),
        np.tile(draw.integers(0, 4, 100)[:, None], 16),
    )
    kept, mixed = (routing_of(experts, 4, classes, seed=0)["classes"] for experts in (by_class, by_accident))
    assert kept["together"] == 1 and kept["chance"]["together"] < 0.7
    assert kept["nmi"] - kept["chance"]["nmi"] > 0.4
    for name in ("nmi", "together"):
        assert mixed[name] == pytest.approx(mixed["chance"][name], abs=0.08)
    assert mixed["chance"]["nmi"] > 0.1  # so plain NMI would mislead


def test_runs_say_how_their_experts_agree_with_classes(small_runs) -> None:
    for folder in (small_runs.moce, small_runs.token_moce):
        routing = read_header(folder / "patches.safetensors")["routing"]
        assert list(routing) == ["1", "3"]
        for found in routing.values():
            assert sum(found["pictures"]) == 256 and len(found["pictures"]) == 4
            assert 0 <= found["classes"]["nmi"] <= 1
    cluster, token = (
        read_header(f / "patches.safetensors")["routing"]["1"]
        for f in (small_runs.moce, small_runs.token_moce)
    )
    assert cluster["main"] == 1 > token["main"]
