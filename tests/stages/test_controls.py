"""The controls as runs: what each is called, what it leaves, and how a sub-net is cut out of one."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch

import moce
from moce.config import ExpertsConfig
from moce.errors import UserError
from moce.model.experts import ExpertAutoencoder
from moce.model.weights import load_model
from moce.stages.experts import distill_share, require_sense
from moce.verbs import resolve

TASK = "toyworld://letters?split=train&num=48&size=32"
CONTROLS = {
    "sdr": {"gate": "sdr"},
    "shared": {"shared_gradient": 0.25, "distill": 0.0},
    "shuffled": {"shuffle_clusters": True, "embedding": "learned", "gate_start": "super-centroids"},
    "selected": {"gate": "none", "only_clusters": (2, 5), "distill_until": 0.0},
    "plain": {"gate": "none", "distill": 0.0},
    "mlps": {"gate": "none", "only_clusters": (2, 5), "only_mlps": True, "layers": (1, 3), "distill": 0.0},
}


class Controls(NamedTuple):
    """Run folders and what the verb returned."""

    folder: Path
    results: dict[str, dict]


@pytest.fixture(scope="module")
def controls(small_runs, tmp_path_factory: pytest.TempPathFactory) -> Controls:
    folder = tmp_path_factory.mktemp("controls")
    common = {"images": small_runs.images, "quiet": True, "num_workers": 0}
    results = {
        name: moce.train_experts(small_runs.mae, small_runs.clusters, out=folder / name, **common, **options)
        for name, options in CONTROLS.items()
    }
    return Controls(folder, results)


def lines(run: Path) -> list[dict]:
    return [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]


def test_methods_have_names_and_the_same_number_of_updates(controls: Controls, small_runs) -> None:
    assert {name: result["method"] for name, result in controls.results.items()} == {
        "sdr": "SDR", "shared": "MoCE, shared gradient", "shuffled": "random clusters",
        "selected": "data selection", "plain": "MAE*",
        "mlps": "data selection, MLPs alone",
    }  # fmt: skip
    for name, result in controls.results.items():
        assert result["steps"] == len(lines(small_runs.moce)), name
        assert load_model(controls.folder / name)[1]["about"]["method"] == result["method"]
    labels = np.load(small_runs.clusters / "labels.npy")
    assert controls.results["selected"]["num_images"] == np.isin(labels, (2, 5)).sum() < len(labels)


def test_a_finished_run_without_experts_does_not_care_how_many(controls: Controls, small_runs) -> None:
    given = {"images": small_runs.images, "out": controls.folder / "plain", "quiet": True, "num_workers": 0}
    asked = {**given, **CONTROLS["plain"], "layers": (2,), "num_experts": 3}
    assert moce.train_experts(small_runs.mae, small_runs.clusters, **asked) == controls.results["plain"]


@pytest.mark.parametrize("name", ["sdr", "shuffled", "plain"])
def test_all_start_from_the_dense_model_on_the_same_pictures(
    controls: Controls, small_runs, name: str
) -> None:
    first, wanted = (lines(run)[0]["reconstruction"] for run in (controls.folder / name, small_runs.mae_star))
    assert first == pytest.approx(wanted, rel=2e-3)


def test_sub_nets_are_one_for_a_third_of_the_updates_and_then_part(controls: Controls, small_runs) -> None:
    model, _ = load_model(controls.folder / "sdr")
    assert isinstance(model, ExpertAutoencoder)
    own = model.encoder.blocks[1].mlp.own.w1_EDF
    assert (own - own[:1]).abs().max() > 1e-5
    star = lines(small_runs.mae_star)
    for step, (line, wanted) in enumerate(zip(lines(controls.folder / "sdr"), star, strict=True)):
        assert "layers" not in line
        if step < len(star) / 3:  # the whole net is the dense model, so it learns what MAE* learns
            assert line["loss"] == pytest.approx(wanted["loss"], rel=2e-3), step
    routing = json.loads((controls.folder / "sdr" / "routing.json").read_text())
    assert routing["1"]["expert"] == routing["3"]["expert"] == model.gate.group_K.tolist()


def test_the_file_of_a_learned_embedding_rebuilds_it(controls: Controls) -> None:
    model, header = load_model(controls.folder / "shuffled")
    assert header["experts"]["embedding"] == "learned"
    assert isinstance(model.gate.centroids_KD, torch.nn.Parameter)


def test_distillation_is_faded_out(controls: Controls) -> None:
    assert [distill_share(done, 0.5) for done in (0.0, 0.5, 0.6, 1.0)] == [1.0, 1.0, pytest.approx(0.0), 0.0]
    assert distill_share(0.55, 0.5) == pytest.approx(0.5)
    assert distill_share(0.999, 1.0) == 1.0
    seen = [line["distill"] for line in lines(controls.folder / "selected")]
    assert seen[1] > 0 and all(value == 0 for value in seen[3:])  # 16 steps
    assert all(line["distill"] == 0 for line in lines(controls.folder / "plain"))
    for line in lines(controls.folder / "plain"):
        assert line["loss"] == line["reconstruction"]


@pytest.mark.parametrize(
    "options", [{"images": TASK}, {"strategy": "cluster:3"}, {"images": TASK, "strategy": "vote"}]
)
def test_a_sub_net_is_customised(controls: Controls, tmp_path: Path, options: dict) -> None:
    run, out = controls.folder / "sdr", tmp_path / "m"
    choice = moce.customize(run, out=out, quiet=True, **options)
    assert choice["method"] == "SDR"
    assert choice["strategy"] == options.get("strategy", "knn")
    if choice["strategy"] == "knn":
        assert choice["tried"] == len(choice["scores"]) > 1
        assert choice["scores"][f"cluster:{choice['cluster']}"] == max(choice["scores"].values())
    model, _ = load_model(run)
    plain = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        routed = model.tokens(images, model.router(torch.full((3,), choice["cluster"])))
        assert (plain.forward_features(images) - routed).abs().max() <= 1e-5


def test_neighbours_need_labels(controls: Controls, small_runs, tiny_folder: Path, tmp_path: Path) -> None:
    for run, options in ((controls.folder / "sdr", {}), (small_runs.moce, {"strategy": "knn"})):
        with pytest.raises(UserError, match="'.*blobs' have no labels"):
            moce.customize(run, images=tiny_folder / "blobs", out=tmp_path / "m", quiet=True, **options)
    with pytest.raises(UserError, match="--strategy knn looks at the task's pictures: give --images"):
        moce.customize(controls.folder / "sdr", out=tmp_path / "m", quiet=True)
    assert not (tmp_path / "m").exists()


def test_pages_and_descriptions_know_the_controls(controls: Controls, tmp_path: Path) -> None:
    folders = [str(controls.folder / name) for name in CONTROLS]
    moce.customize(controls.folder / "sdr", images=TASK, out=tmp_path / "m", quiet=True)
    moce.report([*folders, str(tmp_path / "m")], out=tmp_path / "page.html", quiet=True)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert all(result["method"] in text for result in controls.results.values())
    assert "the one whose nearest neighbours" in text
    described = moce.inspect(str(controls.folder / "sdr" / "model.safetensors"), quiet=True)
    assert described["header"]["experts"]["gate"] == "sdr"


def test_of_mlps_alone_nothing_else_moves(controls: Controls, small_runs) -> None:
    dense, trained = (load_model(path)[0].state_dict() for path in (small_runs.mae, controls.folder / "mlps"))
    moved = {name for name in dense if not torch.equal(dense[name], trained[name])}
    parts = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    assert moved == {f"encoder.blocks.{layer}.mlp.{part}" for layer in (1, 3) for part in parts}
    with pytest.raises(UserError, match="--layers 9 does not fit an encoder of 6 blocks"):
        moce.train_experts(
            small_runs.mae, small_runs.clusters, images=small_runs.images, out=controls.folder / "no", quiet=True,
            gate="none", only_mlps=True, layers=(9,),
        )  # fmt: skip
    assert not (controls.folder / "no").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gate": "token", "shuffle_clusters": True}, "--shuffle-clusters is for --gate cluster, not token"),
        (
            {"gate": "cluster", "only_clusters": (1,)},
            "--only-clusters trains the dense model: give --gate none",
        ),
        ({"gate": "sdr", "only_mlps": True}, "--only-mlps trains the dense model: give --gate none, not sdr"),
    ],
)
def test_options_that_exclude_each_other(options: dict, words: str) -> None:
    given = {"mae": "m", "clusters": "c", "images": "x", "out": "y", "preset": "debug", **options}
    with pytest.raises(UserError, match=words):
        require_sense(resolve(ExpertsConfig, given))


def test_options_that_are_not_used_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"mae": "m", "clusters": "c", "images": "x", "out": "y", "preset": "debug", "gate": "sdr"}
    require_sense(resolve(ExpertsConfig, given))
    assert "gate sdr has no gate: --top-k, --balance, " in capsys.readouterr().err
    require_sense(resolve(ExpertsConfig, {**given, "gate": "none"}))
    assert "gate none trains no experts: --layers, --num-experts, " in capsys.readouterr().err
    require_sense(resolve(ExpertsConfig, {**given, "compile": True}))
    assert "the step of experts is not compiled" in capsys.readouterr().err
