"""Customising: a slice is exact, timm loads it, votes and strategies do what they say."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moce
from moce.errors import UserError
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder, ExpertShape
from moce.stages.customize import Selection, Votes, kept_experts, slice_encoder, subset_means

SHAPE = AutoencoderShape("test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
TASK = "toyworld://letters?split=train&num=48&size=32"


def trained_apart(layers: tuple[int, ...], num_experts: int, scale: str, seed: int) -> ExpertAutoencoder:
    """A model whose experts and gates differ, as after training."""
    torch.manual_seed(seed)
    dense = MaskedAutoencoder(SHAPE)
    shape = ExpertShape(layers, num_experts, "cluster", num_clusters=5, cluster_width=64, output_scale=scale)
    model = ExpertAutoencoder.from_dense(dense, shape).eval()
    with torch.no_grad():
        model.gate.weight_LED.normal_(std=2.0)
        model.gate.centroids_KD.copy_(torch.nn.functional.normalize(torch.randn(5, 64)))
        for layer in layers:
            for parameter in model.encoder.blocks[layer].mlp.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def selection_of(model: ExpertAutoencoder, cluster: int) -> Selection:
    chosen = model.gate.logits()[:, cluster].argmax(dim=1)
    weights = torch.nn.functional.one_hot(chosen, model.expert_shape.num_experts).float()
    return Selection("vote", cluster, weights)


@given(
    layers=st.sets(st.integers(0, 5), min_size=1, max_size=4),
    num_experts=st.integers(2, 6),
    cluster=st.integers(0, 4),
    scale=st.sampled_from(["straight-through", "raw"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_a_slice_equals_the_routed_model(
    layers: set[int], num_experts: int, cluster: int, scale: str, seed: int
) -> None:
    model = trained_apart(tuple(sorted(layers)), num_experts, scale, seed)
    vit = slice_encoder(model, selection_of(model, cluster))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        routed = model.tokens(images, model.router(torch.full((3,), cluster)))
        assert (vit.forward_features(images) - routed).abs().max() <= 1e-5
    assert sum(p.numel() for p in vit.parameters()) == sum(
        p.numel() for p in MaskedAutoencoder(SHAPE).encoder.parameters()
    )


def test_another_cluster_gives_another_slice() -> None:
    model = trained_apart((1, 3), 4, "straight-through", 0)
    choices = {tuple(model.gate.logits()[:, k].argmax(dim=1).tolist()) for k in range(5)}
    assert len(choices) > 1
    images = torch.randn(1, 3, 16, 16)
    outs = [slice_encoder(model, selection_of(model, k)).forward_features(images) for k in range(5)]
    assert any((outs[0] - out).abs().max() > 1e-3 for out in outs[1:])


def test_average_is_the_weighted_mean_of_experts() -> None:
    model = trained_apart((2,), 3, "straight-through", 1)
    weights = torch.tensor([[0.5, 0.5, 0.0]])
    vit = slice_encoder(model, Selection("average", None, weights))
    stacked = model.encoder.blocks[2].mlp
    wanted = (stacked.w1_EDF[0] + stacked.w1_EDF[1]).T / 2
    assert torch.allclose(vit.blocks[2].mlp.fc1.weight, wanted, atol=1e-6)


# Votes


def votes(histogram: list[int], percentile: float = 50.0) -> Votes:
    return Votes(torch.tensor(histogram), torch.zeros(4), 0.5, percentile)


def test_margin_and_entropy_by_hand() -> None:
    seen = votes([6, 2, 0, 0])
    assert seen.margin == pytest.approx(0.5)
    assert seen.entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert seen.warning is None


def test_warnings() -> None:
    assert "spread over the clusters" in votes([2, 2, 2, 2]).warning
    assert "further from their clusters" in votes([8, 0, 0, 0], percentile=1.0).warning


def test_means_of_random_subsets() -> None:
    quantiles = np.linspace(0, 1, 1001)  # cosines even between 0 and 1
    for num_images in (10, 100, 5000):
        means, spread = subset_means(num_images, quantiles, 0), 1 / math.sqrt(12 * num_images)
        assert np.mean(means <= 0.5) == pytest.approx(0.5, abs=0.06)
        assert np.mean(means <= 0.5 + 1.645 * spread) == pytest.approx(0.95, abs=0.03)


# The stage


def test_kept_experts_are_told_in_a_line() -> None:
    experts = {"9": 6, "11": [0.375, 0.0, 0.625]}
    assert kept_experts({"experts": experts}) == "block 9: 6, block 11: a mean (2: 62 %, 0: 38 %)"


def test_the_folder_loads_in_timm_at_other_sizes_and_class_counts(small_runs, tmp_path: Path) -> None:
    out = tmp_path / "letters"
    result = moce.customize(small_runs.moce, images=TASK, out=out, quiet=True)
    plain = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    strict = timm.create_model(
        "test_vit", img_size=32, patch_size=8, num_classes=0, checkpoint_path=out / "model.safetensors"
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.forward_features(images), strict.forward_features(images))
        other = timm.create_model(
            f"local-dir:{out}", pretrained=True, num_classes=7, img_size=(48, 64)
        ).eval()
        assert other(torch.randn(2, 3, 48, 64)).shape == (2, 7)
    same = torch.equal(other.blocks[0].attn.qkv.weight, plain.blocks[0].attn.qkv.weight)
    assert same, "timm loaded other weights for another class count"
    content = json.loads((out / "config.json").read_text())
    assert content["architecture"] == "test_vit" and content["num_classes"] == 0
    assert content["model_args"] == {"img_size": 32, "patch_size": 8, "global_pool": "avg", "fc_norm": False}
    choice = json.loads((out / "choice.json").read_text())
    assert set(choice) >= {"strategy", "cluster", "votes", "margin", "entropy", "experts", "fit", "warning"}
    assert sum(choice["votes"]) == 48 and choice["votes"][choice["cluster"]] == max(choice["votes"])
    assert result["cluster"] == choice["cluster"]


def test_the_written_slice_equals_the_routed_model(small_runs, tmp_path: Path) -> None:
    from moce.model.weights import load_model

    out = tmp_path / "letters"
    choice = moce.customize(small_runs.moce, images=TASK, out=out, quiet=True)
    model, _ = load_model(small_runs.moce)
    plain = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        routed = model.tokens(images, model.router(torch.full((4,), choice["cluster"])))
        assert (plain.forward_features(images) - routed).abs().max() <= 1e-5


@pytest.mark.parametrize("strategy", ["per-layer", "average", "nearest", "cluster:3"])
def test_other_strategies_write_a_model(small_runs, tmp_path: Path, strategy: str) -> None:
    images = None if strategy.startswith("cluster") else TASK
    choice = moce.customize(small_runs.moce, images=images, out=tmp_path / "m", strategy=strategy, quiet=True)
    assert choice["strategy"] == strategy and set(choice["experts"]) == {"1", "3"}
    timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)


@pytest.mark.parametrize("strategy", ["cluster:3", "random"])
def test_pictures_vote_even_where_they_do_not_choose(
    small_runs, tmp_path: Path, strategy: str, monkeypatch
) -> None:
    """So a cluster that somebody names can be seen beside those that the pictures fall into."""
    common = {"strategy": strategy, "quiet": True}
    blind = moce.customize(small_runs.moce, out=tmp_path / "blind", **common)
    seeing = moce.customize(small_runs.moce, images=TASK, out=tmp_path / "seeing", **common)
    voted = moce.customize(small_runs.moce, images=TASK, out=tmp_path / "voted", quiet=True)
    for name in ("votes", "margin", "entropy", "fit", "shares", "num_images"):
        assert seeing[name] == voted[name] != blind[name], name
    assert seeing["experts"] == blind["experts"] and seeing["fingerprint"] == blind["fingerprint"]
    monkeypatch.setattr("moce.stages.customize.MOST_ENTROPY", 0.0)
    with pytest.raises(UserError, match="No cluster fits"):
        moce.customize(small_runs.moce, images=TASK, out=tmp_path / "strict", strict=True, **common)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "vot"}, "Did you mean 'vote'"),
        ({"strategy": "cluster:99"}, "name a cluster from 0 to 7"),
        ({"images": None}, "give --images"),
    ],
)
def test_bad_options_are_refused(small_runs, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        moce.customize(
            **{"moce": small_runs.moce, "images": TASK, "out": tmp_path / "m", "quiet": True, **changes}
        )
    assert not (tmp_path / "m").exists()


def test_only_experts_with_a_cluster_gate_are_sliced(small_runs, tmp_path: Path) -> None:
    for run, words in [(small_runs.token_moce, "--gate token"), (small_runs.mae, "a run of `moce pretrain`")]:
        with pytest.raises(UserError, match=words):
            moce.customize(run, images=TASK, out=tmp_path / "m", quiet=True)


def test_strict_writes_nothing_where_no_cluster_fits(small_runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("moce.stages.customize.MOST_ENTROPY", 0.0)
    with pytest.raises(UserError, match="No cluster fits"):
        moce.customize(small_runs.moce, images=TASK, out=tmp_path / "m", strict=True, quiet=True)
    assert not (tmp_path / "m").exists()
    assert moce.customize(small_runs.moce, images=TASK, out=tmp_path / "m", quiet=True)["warning"]


def test_what_is_finished_or_taken_is_known_before_the_vote(
    small_runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"images": "toyworld://plants?size=32&num=24", "out": tmp_path / "vit", "quiet": True}
    first = moce.customize(small_runs.moce, **options)
    monkeypatch.setattr("moce.stages.customize.customised", lambda *_, **__: pytest.fail("voted"))
    assert moce.customize(small_runs.moce, **options) == first
    with pytest.raises(UserError, match="holds a run with other options: not the same images"):
        moce.customize(small_runs.moce, **{**options, "images": "toyworld://letters?size=32&num=24"})


def test_pictures_of_a_test_split_do_not_vote_unnoticed(
    small_runs, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        shutil.copytree(tiny_folder, tmp_path / "task" / split)
    moce.customize(small_runs.moce, images=tmp_path / "task", out=tmp_path / "out", strategy="nearest")
    assert f"name {tmp_path / 'task' / 'train'} to leave them out" in capsys.readouterr().err
