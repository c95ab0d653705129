import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import moce
from moce.errors import UserError
from moce.transfer.encoder import load_encoder
from moce.transfer.segment.augment import Crops

TIMES = ("seconds", "peak_rss_bytes", "training")


def run(model: Path | str, task: Path, **options: Any) -> dict[str, Any]:
    options = {"image_size": 32, "steps": 3, "num_workers": 0, "quiet": True, **options}
    found = moce.evaluate(str(model), task=str(task), protocol="segment", **options)
    assert isinstance(found, dict)
    return found


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in TIMES}


def test_it_learns_to_tell_shapes_apart(model: Path, tiny_ade: Path, tmp_path: Path) -> None:
    result = run(model, tiny_ade, steps=40, lrs=(3e-3,), json=tmp_path / "tiny.json")
    share = [s["pixels"] for s in result["scores"]]
    constant = max(share) / sum(share) / 3  # what the best constant prediction gets
    assert constant < 0.3
    assert result["value"] > 0.6
    assert result["value"] == pytest.approx(sum(result["per_class"]) / 3)
    assert result["pixel_accuracy"] > 0.85
    assert [s["class"] for s in result["scores"]] == ["meadow", "ball", "box"]
    assert (result["metric"], result["protocol"], result["task"]) == ("miou", "segment", "tiny-ade")
    assert (result["num_train"], result["num_val"], result["num_test"]) == (16, 0, 6)
    assert result["settings"]["steps"] == 40 and result["settings"]["image_size"] == [32, 32]
    assert json.loads((tmp_path / "tiny.json").read_text()) == result
    assert result["folder"] == str(tmp_path / "tiny")
    assert result["pictures"] == [f"predictions-{i:05d}.png" for i in range(6)]
    with Image.open(tmp_path / "tiny" / result["pictures"][0]) as drawn:
        with Image.open(tiny_ade / "images" / "validation" / "ADE_00001000.jpg") as picture:
            assert drawn.size == (3 * picture.width + 4, picture.height)


def test_the_page_shows_the_number_and_the_predictions(model: Path, tiny_ade: Path, tmp_path: Path) -> None:
    run(model, tiny_ade, steps=1, json=tmp_path / "tiny.json")
    for number, given in enumerate((tmp_path / "tiny.json", tmp_path / "tiny")):
        made = moce.report([str(given)], out=str(tmp_path / f"{number}.html"), quiet=True)
        assert made["sections"] == ["results", "predictions"]
        page = (tmp_path / f"{number}.html").read_text()
        assert page.count("a test picture as annotated and as predicted") == 6
        assert "Segmentation: the whole model learns the class of every pixel" in page


def test_the_same_seed_gives_the_same_number(model: Path, tiny_ade: Path) -> None:
    first, second = (run(model, tiny_ade, seed=3) for _ in range(2))
    assert without_times(first) == without_times(second)
    assert first["pictures"] == []
    assert run(model, tiny_ade, seed=4)["pixel_accuracy"] != first["pixel_accuracy"]


def test_an_interrupted_training_continues_exactly(
    model: Path, tiny_ade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, tiny_ade, steps=6, json=tmp_path / "whole.json")
    batch = Crops.__getitem__
    cut: list[int] = []

    def interrupted(self: Crops, step: int) -> Any:
        cut.append(step)
        if len(cut) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    monkeypatch.setattr(Crops, "__getitem__", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(model, tiny_ade, steps=6, json=tmp_path / "cut.json")
    assert stopped.value.code == 143 and not (tmp_path / "cut.json").exists()
    again = run(model, tiny_ade, steps=6, json=tmp_path / "cut.json")
    assert cut == [0, 1, 2, 3, 4, 5]
    changed = ("folder",)
    assert {k: v for k, v in without_times(again).items() if k not in changed} == {
        k: v for k, v in without_times(whole).items() if k not in changed
    }
    assert again["training"]["loss"] == whole["training"]["loss"]
    for one, other in zip(again["pictures"], whole["pictures"], strict=True):
        assert (tmp_path / "cut" / one).read_bytes() == (tmp_path / "whole" / other).read_bytes()
    with pytest.raises(UserError, match="--steps was 6 and is now 7"):
        run(model, tiny_ade, steps=7, json=tmp_path / "cut.json")
    cut.clear()
    (tmp_path / "cut" / "result.json").unlink()  # as if it had been interrupted while it was being tested
    assert without_times(run(model, tiny_ade, steps=6, json=tmp_path / "cut.json")) == without_times(again)
    assert without_times(run(model, tiny_ade, steps=6, json=tmp_path / "cut.json")) == without_times(again)
    assert not cut  # it was finished


def test_a_task_s_slice_of_the_experts_and_token_gates_are_trained_too(
    small_runs: Any, tiny_ade: Path
) -> None:
    sliced = run(small_runs.moce, tiny_ade)
    assert (
        sliced["method"] == "MoCE"
        and sliced["choice"]["strategy"] == sliced["settings"]["strategy"] == "vote"
    )
    whole = run(small_runs.token_moce, tiny_ade)
    assert whole["method"] == "TokenMoE" and 0 < whole["pixel_accuracy"] < 1


def test_somebody_else_s_vit_is_trained_too(tiny_ade: Path) -> None:
    result = run("timm:test_vit?pretrained=false", tiny_ade, image_size=64, steps=1)
    assert result["weights"] == "random" and result["settings"]["image_size"] == [64, 64]


def test_maps_of_blocks_are_what_timm_calls_intermediates(model: Path) -> None:
    network = (
        load_encoder(str(model), torch.device("cpu"), quiet=True, image_size=(32, 48)).trainable().eval()
    )
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = network.block_maps(images, [0, 2, len(network.vit.blocks) - 1])
        theirs = network.vit.forward_intermediates(
            images, indices=[0, 2, len(network.vit.blocks) - 1], intermediates_only=True
        )
    assert [tuple(one.shape) for one in ours] == [(2, network.vit.embed_dim, 8, 12)] * 3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_sentences_about_what_cannot_be_segmented(model: Path, tiny_ade: Path, small_runs: Any) -> None:
    for options, sentence in {
        (
            "preset",
            "smal",
        ): r"segment has no preset 'smal': choose one of small, ade20k. Did you mean 'small'\?",
        ("lrs", (1e-3, 2e-3)): "segment trains once: give one learning rate as --lrs",
        ("batch_size", 1): "needs a --batch-size of at least 2",
        ("strategy", "vote"): "is one model",
        ("image_size", 30): "not a multiple",
    }.items():
        with pytest.raises(UserError, match=sentence):
            run(model, tiny_ade, **{options[0]: options[1]})
    with pytest.raises(
        UserError, match="compares pictures by their class, and those of --protocol segment have none"
    ):
        run(small_runs.moce, tiny_ade, strategy="knn")
    with pytest.raises(UserError, match="gives no map of patches, which --protocol segment needs"):
        run("timm:test_resnet?pretrained=false", tiny_ade)
    with pytest.raises(UserError, match="segment goes alone"):
        moce.evaluate(str(model), task=str(tiny_ade), protocol="knn,segment", quiet=True)
    with pytest.raises(UserError, match="only those by detect and segment have presets, not knn"):
        moce.evaluate(str(model), task=str(tiny_ade), protocol="knn", preset="small", quiet=True)
    with pytest.raises(UserError, match="name one task of masks for --protocol segment"):
        run(model, Path("all"))
