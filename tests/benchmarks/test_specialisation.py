"""The script that asks whether experts specialise, on the small runs: groups, rivals, and what it refuses."""

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import moce
from moce.errors import UserError
from moce.images.sources import open_images
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder
from moce.model.subnets import SubnetAutoencoder
from moce.model.weights import load_model, save_model
from moce.stages.membership import Clusters, read_clusters

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "specialisation.py"
PICTURES = 64
SAMPLE = np.random.default_rng(0).permutation(256)[:PICTURES]  # those that the script looks at
Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("specialisation", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measure(script: ModuleType, small_runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """What the script writes about a run."""

    def run(path: Path, *others: Path) -> dict[str, Any]:
        words = [
            path,
            "--clusters",
            small_runs.clusters,
            "--images",
            small_runs.images,
            "--pictures",
            PICTURES,
        ]
        words += ["--device", "cpu", "--out", tmp_path / "found.json"]
        words += ["--others", *others] if others else []
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *map(str, words)])
        script.main()

        def no_json(text: str) -> None:
            raise AssertionError(f"{text} is not JSON")

        return json.loads((tmp_path / "found.json").read_text(), parse_constant=no_json)

    return run


@pytest.fixture(scope="module")
def clusters(small_runs) -> Clusters:
    fingerprint = open_images(small_runs.images).fingerprint()
    return read_clusters(str(small_runs.clusters), load_model(small_runs.mae)[0], fingerprint)


@pytest.fixture(scope="module")
def trained(small_runs, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("specialisation")

    def train(name: str, **options: Any) -> Path:
        common = {"images": small_runs.images, "epochs": 1, "num_workers": 0, "quiet": True}
        moce.train_experts(small_runs.mae, small_runs.clusters, out=folder / name, **common, **options)
        return folder / name

    return train


def sizes_of_groups(run: Path, labels: torch.Tensor) -> list[int]:
    """How many pictures of the sample go to each sub-model when these are their clusters."""
    model, _ = load_model(run)
    assert isinstance(model, ExpertAutoencoder)
    groups, group_K = model.gates().argmax(dim=-1).T.unique(dim=0, return_inverse=True)
    return group_K[labels[SAMPLE]].bincount(minlength=len(groups)).tolist()


def altered(run: Path, out: Path, change: Callable[[MaskedAutoencoder, dict[str, Any]], None]) -> Path:
    """A copy of a run with another model."""
    shutil.copytree(run, out)
    model, header = load_model(run)
    with torch.no_grad():
        change(model, header["about"])
    save_model(out / "model.safetensors", model, header["about"])
    return out


def test_groups_are_by_cluster_and_rivals_choose_for_themselves(
    measure: Measure, trained, small_runs, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdr, asked = trained("sdr", gate="sdr"), {}
    for kind in (ExpertAutoencoder, SubnetAutoencoder):
        own = kind.router

        def router(model: Any, labels: Any = None, noise: Any = None, own: Any = own) -> Any:
            asked[model.expert_shape.gate] = (labels, noise)
            return own(model, labels, noise)

        monkeypatch.setattr(kind, "router", router)
    others = [small_runs.mae_star, small_runs.token_moce, sdr, small_runs.moce]
    found = measure(small_runs.moce, *others)
    assert found["pictures_of_group"] == sizes_of_groups(small_runs.moce, clusters.labels)
    assert found["pictures"] == PICTURES and len(found["sub_models"]) > 1
    assert set(found["loss_of_others"]) == set(map(str, others))
    assert asked["token"] == (None, None)
    for gate in ("sdr", "cluster"):
        assert asked[gate][0].equal(clusters.labels[SAMPLE]) and asked[gate][1] is None
    # The run as its own rival, routed by its own gate: what it gets with its experts forced on it.
    assert found["loss_of_others"][str(small_runs.moce)] == pytest.approx(found["loss_own"], abs=2e-5)
    there = [(group, size) for group, size in enumerate(found["pictures_of_group"]) if size]
    elsewhere = [
        (sum(row) - row[group]) / (len(row) - 1) for row, (group, _) in zip(found["loss"], there, strict=True)
    ]
    weighted = np.average(elsewhere, weights=[size for _, size in there])
    assert found["loss_of_other_sub_models"] == pytest.approx(weighted, abs=2e-5)


def test_groups_of_random_clusters_are_those_it_was_trained_on(
    measure: Measure, trained, clusters: Clusters
) -> None:
    run = trained("shuffled", shuffle_clusters=True, gate_start="super-centroids")
    found = measure(run)
    assert found["method"] == "random clusters"
    assert found["pictures_of_group"] == sizes_of_groups(run, clusters.shuffled(0).labels)
    assert found["pictures_of_group"] != sizes_of_groups(run, clusters.labels)


def test_one_sub_model_has_no_other_to_be_better_than(measure: Measure, small_runs, tmp_path: Path) -> None:
    one = altered(small_runs.moce, tmp_path / "one", lambda model, _: model.gate.weight_LED.zero_())
    found = measure(one)
    assert found["pictures_of_group"] == [PICTURES]
    assert found["gain_own"] is None and found["loss_of_other_sub_models"] is None


def test_rivals_that_take_other_pictures_are_refused(measure: Measure, small_runs, tmp_path: Path) -> None:
    star = small_runs.mae_star
    brighter = altered(star, tmp_path / "brighter", lambda _, about: about.update(mean=[0.1, 0.2, 0.3]))
    with pytest.raises(UserError, match=r"brighter has mean \(0.1, 0.2, 0.3\) where the run has"):
        measure(small_runs.moce, star, brighter)
    model, header = load_model(star)
    smaller = MaskedAutoencoder(dataclasses.replace(model.shape, image_size=(16, 16)))
    save_model(tmp_path / "smaller", smaller, header["about"])
    with pytest.raises(UserError, match=r"smaller has image_size \(16, 16\) where the run has \(32, 32\)"):
        measure(small_runs.moce, tmp_path / "smaller")
    assert not (tmp_path / "found.json").exists()


def test_runs_without_clusters_or_of_others_are_refused(measure: Measure, small_runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no gate that reads clusters"):
        measure(small_runs.token_moce)
    other = shutil.copytree(small_runs.moce, tmp_path / "other")
    content = json.loads((other / "config.json").read_text())
    content["inputs"]["clusters"] = "0" * 16
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="other was trained on other clusters than"):
        measure(other)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"output_scale": "raw"}])
def test_runs_whose_sub_models_are_no_slices_are_refused(
    measure: Measure, trained: Callable[..., Path], options: dict[str, Any]
) -> None:
    run = trained("-".join(options), **options)
    with pytest.raises(UserError, match="give a run of --top-k 1 and --output-scale straight-through"):
        measure(run)


def test_forced_choices_are_where_the_tokens_are(script: ModuleType) -> None:
    choice = script.Forced({3: 1}).choose(3, torch.empty(5, 2, 8, device="meta"))
    assert choice.expert_NC.device == choice.scale_NC.device == torch.device("meta")
