"""Which sub-model a task gets: by strategy, by labels, and what is told about it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import moce
from moce.engine.files import write_json
from moce.errors import UserError
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder, ExpertShape
from moce.model.weights import load_model, save_model
from moce.transfer import pictures, submodels

TASK, SMALL = "toyworld://letters", "toyworld://?num=60&size=32"


@pytest.fixture(scope="module")
def run(small_runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with experts pushed apart, so that sub-models differ in what they are worth."""
    import shutil

    folder = tmp_path_factory.mktemp("apart") / "moce"
    shutil.copytree(small_runs.moce, folder)
    model, header = load_model(small_runs.moce)
    torch.manual_seed(3)
    with torch.no_grad():
        model.gate.weight_LED.normal_(std=2.0)
        for layer in (1, 3):
            for parameter in model.encoder.blocks[layer].mlp.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_model(folder / "model.safetensors", model, header["about"])
    return folder


def found(run: Path, strategy: str | None = None, protocol: str = "knn", **options: Any) -> dict[str, Any]:
    result = moce.evaluate(
        str(run),
        task=TASK,
        data_root=SMALL,
        protocol=protocol,
        strategy=strategy,
        num_workers=0,
        quiet=True,
        **options,
    )
    assert isinstance(result, dict)
    return result


def test_the_oracle_is_chosen_on_validation_and_tested_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[str, str]] = []
    features = pictures.Pictures.features

    def watched(self: pictures.Pictures) -> pictures.Features:
        looked.append((self.source.uri, self.encoder.fingerprint))
        return features(self)

    monkeypatch.setattr(pictures.Pictures, "features", watched)
    best = found(run, "oracle")
    choice = best["choice"]
    assert choice["tried"] == len(choice["scores"]) > 2
    tested = {encoder for uri, encoder in looked if "split=test" in uri}
    assert tested == {best["model_fingerprint"]}  # of all that were tried, one met the test split
    alone = {name: found(run, name) for name in choice["scores"]}
    for name, result in alone.items():
        assert choice["scores"][name] == result["settings"]["val_score"], name
    scores = choice["scores"]
    assert choice["cluster"] == int(max(scores, key=scores.__getitem__).removeprefix("cluster:"))
    assert best["value"] == alone[f"cluster:{choice['cluster']}"]["value"]
    assert best["settings"]["strategy"] == "oracle" and best["method"] == "MoCE (oracle)"


def test_the_oracle_of_each_protocol_is_its_own(run: Path) -> None:
    both = moce.evaluate(
        str(run),
        task=TASK,
        data_root=SMALL,
        protocol="knn,linear",
        strategy="oracle",
        num_workers=0,
        quiet=True,
    )
    assert [r["settings"]["strategy"] for r in both] == ["oracle", "oracle"]
    for result in both:
        assert result["settings"]["val_score"] == max(result["choice"]["scores"].values())
    assert both[0]["choice"]["scores"] != both[1]["choice"]["scores"]


def test_neighbours_choose_for_other_protocols(run: Path) -> None:
    near, oracle = found(run, "knn", "linear"), found(run, "oracle", "knn")
    assert near["choice"]["scores"] == oracle["choice"]["scores"]
    assert near["model_fingerprint"] == oracle["model_fingerprint"]
    assert near["protocol"] == "linear" and near["settings"]["strategy"] == "knn"


def test_votes_are_counted_once_for_all_strategies(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = submodels.count_votes
    monkeypatch.setattr(submodels, "count_votes", lambda *a, **o: counted.append(a) or count(*a, **o))
    submodels._votes.clear()
    results = {
        s: found(run, s) for s in (None, "vote", "per-layer", "average", "nearest", "cluster:1", "random")
    }
    assert len(counted) == 1
    assert results[None]["model_fingerprint"] == results["vote"]["model_fingerprint"]
    assert results[None]["method"] == results["vote"]["method"] == "MoCE"
    for strategy, result in results.items():
        assert result["settings"]["strategy"] == result["choice"]["strategy"] == (strategy or "vote")
    assert results["average"]["method"] == "MoCE (average)"


def test_a_random_sub_model_is_the_seed_s_and_the_task_s(run: Path) -> None:
    model, _ = load_model(run)
    there = submodels.distinct(model)
    picks = {
        (seed, task): submodels.select("random", model, assigner_of(run), None, seed, task).cluster
        for seed in range(8)
        for task in ("letters", "digits")
    }
    assert set(picks.values()) <= {own.cluster for own in there}
    assert len(set(picks.values())) > 1
    assert any(picks[seed, "letters"] != picks[seed, "digits"] for seed in range(8))
    assert found(run, "random", seed=1)["choice"]["cluster"] == picks[1, "letters"]


def assigner_of(run: Path):
    from moce.model.assigner import Assigner

    return Assigner.load(run / "clusters.safetensors")


def test_distinct_sub_models_are_listed_once() -> None:
    from moce.model.autoencoder import AutoencoderShape

    torch.manual_seed(0)
    shape = AutoencoderShape("test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
    model = ExpertAutoencoder.from_dense(MaskedAutoencoder(shape), ExpertShape((1, 3), 3, "cluster", 4, 64))
    with torch.no_grad():
        model.gate.centroids_KD.copy_(torch.eye(64)[:4])
        model.gate.weight_LED.zero_()
        for layer, experts in enumerate(((0, 1, 0, 0), (2, 2, 2, 1))):  # of the clusters 0 to 3
            for cluster, expert in enumerate(experts):
                model.gate.weight_LED[layer, expert, cluster] = 1.0
    there = submodels.distinct(model)
    assert [own.cluster for own in there] == [0, 1, 3]
    assert [own.experts((1, 3)) for own in there] == [{"1": 0, "3": 2}, {"1": 1, "3": 2}, {"1": 0, "3": 1}]


def test_sub_nets_are_evaluated_by_neighbours_by_default(small_runs, tmp_path: Path) -> None:
    moce.train_experts(
        small_runs.mae, small_runs.clusters, images=small_runs.images, gate="sdr", out=tmp_path / "sdr", epochs=1,
        num_workers=0, quiet=True,
    )  # fmt: skip
    result = found(tmp_path / "sdr", None, "linear")
    assert (result["method"], result["settings"]["strategy"]) == ("SDR", "knn")
    assert result["choice"]["tried"] > 1
    assert found(tmp_path / "sdr", "vote")["method"] == "SDR (vote)"


@pytest.mark.parametrize(
    ("strategy", "protocol", "words"),
    [
        ("orcale", "knn", "Did you mean 'oracle'"),
        ("cluster:8", "knn", "name a cluster from 0 to 7"),
        ("oracle", "finetune", "--strategy oracle tries every sub-model"),
    ],
)
def test_strategies_that_cannot_be(small_runs, strategy: str, protocol: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        found(small_runs.moce, strategy, protocol)


def test_one_model_has_no_sub_models_to_choose_from(small_runs) -> None:
    for run in (small_runs.mae, small_runs.mae_star, small_runs.token_moce):
        for strategy in ("vote", "oracle"):
            with pytest.raises(UserError, match="is one model"):
                found(run, strategy)


def test_predictions_stand_beside_a_result(run: Path, tmp_path: Path) -> None:
    result = found(run, json=str(tmp_path / "result.json"))
    assert len(result["predicted"]) == len(result["labels"]) == result["num_test"]
    right = [p == wanted for p, wanted in zip(result["predicted"], result["labels"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(result["value"])
    text = (tmp_path / "result.json").read_text()
    assert f'"predicted": {result["predicted"]}' in text  # on one line


def test_lists_of_numbers_take_one_line(tmp_path: Path) -> None:
    content = {"a": [1, -2, 3e-05], "b": [[1, 2], []], "c": ["[\n 1\n]", "x"], "d": [None, 1], "e": 0.5}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert moce_json(text) == content
    assert '"a": [1, -2, 3e-05]' in text and "[1, 2]" in text


def moce_json(text: str) -> Any:
    import json

    return json.loads(text)
