"""A task's pictures beside the nearest of pre-training, in the customised folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moce
from moce.images.sources import open_images
from moce.model.assigner import Assigner
from moce.model.weights import read_tensors
from moce.stages.nearest import COLUMNS, leading

TASK = "toyworld://letters?split=train&num=48&size=32"


def customised(small_runs, out: Path, **options: object) -> dict:
    moce.customize(small_runs.moce, **{"images": TASK, **options}, out=out, quiet=True)
    return json.loads((out / "choice.json").read_text())


def test_the_nearest_are_the_nearest(small_runs, tmp_path: Path) -> None:
    choice = customised(small_runs, tmp_path / "m")
    about = choice["pictures"]
    assigner = Assigner.load(small_runs.moce / "clusters.safetensors")
    thumbs = read_tensors(small_runs.moce / "thumbs" / "thumbs.safetensors")
    known = thumbs["features"].flatten(0, 1)[thumbs["indices"].flatten() >= 0].float()
    source = open_images(TASK)
    assert [row["index"] for row in about["task"]] == np.linspace(0, 47, 8).round().astype(int).tolist()
    for row in about["task"]:
        features = assigner.features(source.get(row["index"])[0][None])
        cosines = assigner.embed(features)[0] @ known.T
        found = [n["cosine"] for n in row["nearest"]]
        assert found == pytest.approx(cosines.topk(COLUMNS - 1).values.tolist(), abs=1e-3)
        assert row["cluster"] == int(assigner.assign(features))
        for n in row["nearest"]:
            assert n["index"] in thumbs["indices"][n["cluster"]]
        assert row["name"]


def test_the_sheet_holds_what_is_said(small_runs, tmp_path: Path) -> None:
    choice = customised(small_runs, tmp_path / "m")
    about = choice["pictures"]
    rows = len(about["task"]) + len(about["clusters"])
    with Image.open(tmp_path / "m" / about["file"]) as sheet:
        assert sheet.size == (COLUMNS * 32, rows * 32)
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    own = open_images(TASK).get(about["task"][3]["index"])[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels[96:128, :32] - own).mean() < 12  # WebP is not exact
    thumbs = read_tensors(small_runs.moce / "thumbs" / "thumbs.safetensors")
    first = about["clusters"][0]
    assert first["cluster"] == choice["cluster"]
    typical = thumbs["images"][choice["cluster"], 0].permute(1, 2, 0).numpy()
    top = 32 * len(about["task"])
    assert np.abs(pixels[top : top + 32, :32] - typical).mean() < 12
    assert (tmp_path / "m" / about["file"]).stat().st_size < 300_000


def test_a_pre_training_picture_is_nearest_to_itself(small_runs, tmp_path: Path) -> None:
    choice = customised(small_runs, tmp_path / "m", images=small_runs.images)
    kept = read_tensors(small_runs.moce / "thumbs" / "thumbs.safetensors")["indices"]
    rows = [row for row in choice["pictures"]["task"] if (kept == row["index"]).any()]
    assert rows, "half of 256 pictures are kept as small ones"
    for row in rows:
        assert row["nearest"][0]["index"] == row["index"]
        assert row["nearest"][0]["cosine"] == pytest.approx(1, abs=2e-3)


def test_a_cluster_named_by_hand_shows_that_cluster_alone(small_runs, tmp_path: Path) -> None:
    choice = customised(small_runs, tmp_path / "m", images=None, strategy="cluster:3")
    assert choice["pictures"]["task"] == []
    assert [c["cluster"] for c in choice["pictures"]["clusters"]] == [3]
    assert choice["shares"] == {}


def test_the_chosen_cluster_is_always_shown() -> None:
    votes = torch.tensor([5, 0, 9, 1, 1, 1, 1, 1, 1])
    assert leading(votes, 2) == [2, 0, 3, 4, 5, 6]
    assert leading(votes, 8) == [8, 2, 0, 3, 4, 5]
    assert leading(torch.tensor([3, 0, 0]), None) == [0]
    assert leading(None, 4) == [4]


def test_shares_of_the_experts_add_up(small_runs, tmp_path: Path) -> None:
    choice = customised(small_runs, tmp_path / "m", strategy="per-layer")
    for layer, shares in choice["shares"].items():
        assert sum(shares) == pytest.approx(1)
        assert max(shares) == shares[choice["experts"][layer]]
    low, middle, high = choice["fit"]["subsets"]
    assert low <= middle <= high


def test_an_experts_run_without_small_pictures_can_be_customised(small_runs, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(small_runs.moce, tmp_path / "run", ignore=shutil.ignore_patterns("thumbs", ".lock"))
    moce.customize(tmp_path / "run", images=TASK, out=tmp_path / "m", quiet=True)
    assert "pictures" not in json.loads((tmp_path / "m" / "choice.json").read_text())
    assert not (tmp_path / "m" / "nearest.webp").exists()
