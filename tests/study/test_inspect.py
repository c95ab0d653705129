"""`moce inspect` on everything that we write."""

import json
import shutil
from pathlib import Path

import pytest

import moce
from moce.errors import UserError
from moce.study.inspect import identify


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("mae", "run", ["a run of `moce pretrain` (MAE), finished", "--preset debug", "parameters", "loss"]),
        ("clusters", "run", ["a run of `moce cluster`, finished", "clusters of", "NMI"]),
        ("moce", "run", ["(MoCE), finished", "active", "max_gate"]),
        ("tokenmoe", "run", ["(TokenMoE), finished", "--gate token"]),
        ("mae-star", "run", ["(MAE*), finished", "--gate none", "distill"]),
        ("mae/model.safetensors", "model", ["a masked autoencoder (MAE): test_vit", "decoder 1 x 32"]),
        ("moce/model.safetensors", "model", ["4 experts in blocks 1, 3; the gate reads the picture's cluster of 8"]),
        ("tokenmoe/model.safetensors", "model", ["the gate reads each token"]),
        ("clusters/clusters.safetensors", "clusters", ["an assigner: 8 clusters of", "test_vit"]),
        ("clusters/thumbs/thumbs.safetensors", "thumbs", ["small pictures of 8 clusters: 16 each, 32x32"]),
        ("tokenmoe/patches.safetensors", "patches", ["of 4 experts the patches of 256", "explained beyond chance"]),
        ("moce/patches.safetensors", "patches", ["cluster 100.0 %"]),
        ("custom/letters", "customised", ["test_vit for pictures of 32x32", "by vote", 'create_model("local-dir:']),
        ("custom/letters/model.safetensors", "customised", ["test_vit for pictures of 32x32"]),
        ("evaluations/letters-MoCE-knn.json", "evaluations", ["1 result of `moce evaluate`", "MoCE", "(knn, 48"]),
    ],
)  # fmt: skip
def test_every_kind_is_told(
    demonstration: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str, words: list[str]
) -> None:
    found = moce.inspect(demonstration / name)
    printed = capsys.readouterr().out
    assert found["kind"] == kind
    assert found["summary"] in printed
    json.dumps(found)  # what --json writes
    for word in words:
        assert word in printed


def test_a_checkpoint_is_told(
    demonstration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # checkpoint_steps is no method option, so the run may write checkpoints and still be the same run
    options = json.loads((demonstration / "mae" / "config.json").read_text())["options"]
    options |= {
        "out": str(tmp_path / "mae"),
        "checkpoint_steps": 5,
        "epochs": 1,
        "quiet": True,
        "num_workers": 0,
    }
    moce.pretrain(**options)
    checkpoint = next((tmp_path / "mae" / "checkpoints").iterdir())
    found = moce.inspect(checkpoint)
    assert found["kind"] == "checkpoint"
    assert found["step"] == 5
    assert "of `moce pretrain` in" in capsys.readouterr().out


def test_a_run_that_is_not_finished(
    demonstration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demonstration / "moce", tmp_path / "half")
    (tmp_path / "half" / "result.json").unlink()
    found = moce.inspect(tmp_path / "half")
    assert found["finished"] is False
    assert "not finished" in capsys.readouterr().out


def test_quiet_prints_nothing(demonstration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moce.inspect(demonstration / "mae", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_sentences_about_what_is_not_ours(demonstration: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    cases = {
        "broken.safetensors": "not a readable safetensors file",
        "list.json": "not the result of `moce evaluate`",
        "broken.json": "cannot be read as JSON",
        ".": "not a run folder",
        str(demonstration / "ma"): "Did you mean 'mae'",
        str(demonstration): "holds runs: name them",
        str(demonstration / "mae" / "metrics.jsonl"): "no file of moce",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            moce.inspect(tmp_path / name)


def test_a_damaged_or_incomplete_folder_is_told(demonstration: Path, tmp_path: Path) -> None:
    for name, file in (
        ("custom/letters", "model.safetensors"),
        ("clusters", "clusters.safetensors"),
        ("mae", "model.safetensors"),
    ):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(demonstration / name, copy)
        whole = (copy / file).read_bytes()
        (copy / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="not a readable safetensors file"):
            identify(copy)
        (copy / file).unlink()
        with pytest.raises(UserError, match=f"lacks its {file}"):
            identify(copy)
