"""What methods cost: FLOPs and parameters against what can be worked out, and the study from end to end."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import moce
from moce.config import StudyConfig
from moce.engine.files import held
from moce.errors import UserError
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder, ExpertShape
from moce.study import efficiency
from moce.study.bench import turns
from moce.study.bench.costs import costs_of
from moce.study.bench.timing import Variant
from moce.study.budget import Budget, Spent
from moce.study.efficiency_tables import cost_tables, markdown
from moce.verbs import resolve

IMAGES = 2
SHAPE = AutoencoderShape("test_vit", (32, 32), (8, 8), decoder_depth=1, decoder_width=16, decoder_heads=2)


def test_costs_are_those_that_can_be_worked_out() -> None:
    dense = MaskedAutoencoder(SHAPE).requires_grad_(False)
    pictures = torch.randn(32, 3, 32, 32)  # so many that rows need no filling up
    found = costs_of(dense, lambda: dense.features(pictures), len(pictures))
    every = sum(p.numel() for p in dense.parameters())
    assert (found.parameters, found.active_parameters) == (every, every)
    assert found.flops == found.active_flops == dense.encoder_flops(SHAPE.num_patches)

    shape = ExpertShape(layers=(1, 3), num_experts=4, gate="cluster", num_clusters=5, cluster_width=64)
    model = ExpertAutoencoder.from_dense(dense, shape).requires_grad_(False)
    labels = torch.zeros(len(pictures), dtype=torch.int64)
    routed = costs_of(model, lambda: model.features(pictures, model.router(labels)), len(pictures))
    mlp = dense.encoder.blocks[1].mlp
    weights = sum(p.numel() for p in mlp.parameters())
    gate = model.gate.weight_LED.numel()
    assert routed.parameters == every + 2 * 3 * weights + gate
    assert routed.active_parameters == every + gate
    gating = 2 * 5 * gate / len(pictures)  # the gates of all clusters, once for the batch
    tokens, products = SHAPE.num_patches + 1, mlp.fc1.weight.numel() + mlp.fc2.weight.numel()
    assert routed.active_flops == pytest.approx(found.flops + gating, abs=1)
    assert routed.flops == pytest.approx(found.flops + gating + 2 * 3 * 2 * tokens * products, abs=1)
    assert model.encoder.blocks[1].mlp.dispatch == "sorted"  # as it was


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, small_runs: Any) -> Path:
    """The smallest sizes, and a search in a run that is there."""
    file = tmp_path_factory.mktemp("efficiency") / "small.toml"
    task = "toyworld://creatures?size=32&num=24"
    file.write_text(f'quick = true\nmoce = "{small_runs.moce}"\ntask = "{task}"\n')
    return file


@pytest.fixture(scope="module")
def study(config: Path) -> dict[str, Any]:
    """The study, whole."""
    return moce.study("efficiency", out=config.parent / "study", config=config, quiet=True, device="cpu")


def test_every_method_is_there_in_every_phase(study: dict[str, Any]) -> None:
    rows = {(row["part"], row["name"]): row for row in study["rows"]}
    assert study["finished"] and study["left_out"] == [] and study["cells"] == {"there": 3, "left": 0}
    assert [name for part, name in rows if part == "training"] == [m.row for m in efficiency.TRAINING]
    assert [name for part, name in rows if part == "inference"] == list(efficiency.INFERENCE)
    assert [name for part, name in rows if part == "search"] == list(efficiency.SEARCH)
    for row in rows.values():
        assert row["seconds_median"] > 0 and row["peak_bytes"] >= 0
    dense = rows["inference", "infer-dense"]
    for name in ("infer-sub-model", "infer-sub-net"):  # of the dense model's shape
        own = rows["inference", name]
        assert all(own[what] == dense[what] for what in ("parameters", "flops", "active_flops"))
    assert rows["inference", "infer-experts"]["parameters"] > dense["parameters"]
    step, star = rows["training", "step-dense"], rows["training", "step-mae-star"]
    assert star["parameters"] == step["parameters"] and star["flops"] > step["flops"]  # its teacher
    whole, nets = rows["training", "step-sdr-whole"], rows["training", "step-sdr"]
    assert whole["parameters"] == nets["parameters"] > nets["active_parameters"]
    assert rows["search", "search-vote"]["tried"] == 1 < rows["search", "search-knn"]["tried"]
    assert rows["search", "search-oracle"]["setting"]["num_clusters"] == 8


def test_tables_and_what_is_on_disk(study: dict[str, Any], config: Path) -> None:
    folder = config.parent / "study"
    assert json.loads((folder / "result.json").read_text())["rows"] == json.loads(json.dumps(study["rows"]))
    text = (folder / "table.md").read_text("utf-8")
    assert markdown(cost_tables(study["rows"])) in text and study["notes"][0] in text
    assert text.count("### ") == 3 and "| MoCE, the sub-model of a task |" in text
    assert "test_vit" in text.partition("### The search")[2].splitlines()[0]


def test_the_page_shows_the_tables(study: dict[str, Any], config: Path, tmp_path: Path) -> None:
    found = moce.report([config.parent / "study"], out=tmp_path / "p.html", quiet=True)
    assert found["sections"] == ["costs"]
    text = (tmp_path / "p.html").read_text("utf-8")
    assert text.count("<h3>") == 3 and "SDR, sub-nets" in text and efficiency.QUICK in text
    seen = moce.inspect(config.parent / "study", quiet=True)
    assert seen["summary"] == "study (efficiency), finished"


def test_what_was_measured_is_not_measured_again(
    study: dict[str, Any], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficiency, "MEASURE", {})
    options = {"out": config.parent / "study", "config": config, "quiet": True, "device": "cpu"}
    assert moce.study("efficiency", **options)["rows"] == json.loads(json.dumps(study["rows"]))


def test_other_conditions_are_another_measurement(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = efficiency.options_of(
        resolve(StudyConfig, {"kind": "efficiency", "out": "x", "config": str(config)})
    )
    device = torch.device("cpu")
    before = efficiency.conditions_of(options, "search", device)
    assert before["run"] == json.loads((Path(options.moce) / "result.json").read_text())["fingerprint"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert efficiency.conditions_of(options, "search", device) == {**before, "threads": 77}
    other = replace(options, task="textures", data_root="toyworld://?size=32&num=24")
    assert efficiency.conditions_of(other, "search", device)["pictures"] != before.get("pictures")
    assert "run" not in efficiency.conditions_of(options, "training", device)


def test_two_at_a_time_would_time_each_other(study: dict[str, Any], config: Path) -> None:
    folder = config.parent / "study"
    with held(folder / ".lock"), pytest.raises(UserError, match="Another process is working in"):
        moce.study("efficiency", out=folder, config=config, quiet=True, device="cpu")
    assert list(study["machines"]) == ["vit-ti/8: training", "vit-ti/8: inference", "vit-ti/8: search"]


class Spare(Budget):
    """A budget of so many looks at it."""

    def __init__(self, looks: int) -> None:
        super().__init__(None)
        self.looks = looks

    def require(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise Spent


def test_when_the_time_is_up_a_part_ends_after_a_row_and_goes_on_there(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "c.toml").write_text(config.read_text() + 'parts = ["search"]\n')
    options = {"out": tmp_path / "s", "config": tmp_path / "c.toml", "device": "cpu"}
    with monkeypatch.context() as patched:
        patched.setattr(efficiency, "Budget", lambda minutes: Spare(3))  # the part, and two of its rows
        found = moce.study("efficiency", **options, budget_minutes=1)
    assert [row["name"] for row in found["rows"]] == ["search-vote", "search-per-layer"]
    left = ["vit-ti/8: search, search-knn", "vit-ti/8: search, search-oracle"]
    assert found["left_out"] == left and found["cells"] == {"there": 0, "left": 1} and not found["finished"]
    said = capsys.readouterr().err
    assert f"not measured within 1 minutes: {', '.join(left)}; the same command continues" in said
    monkeypatch.setattr(turns, "LONG", 0.0)
    whole = moce.study("efficiency", **options)
    assert "search-oracle: 2 runs, about " in capsys.readouterr().err
    assert [row["name"] for row in whole["rows"]] == list(efficiency.SEARCH) and whole["finished"]
    assert json.loads(json.dumps(whole["rows"][:2])) == json.loads(json.dumps(found["rows"]))
    file = json.loads((tmp_path / "s" / "cells" / "vit-ti-8-search.json").read_text())
    assert set(file) == {"options", "machine", "commits", "seconds", "rows"} and len(file["rows"]) == 4
    assert (
        whole["seconds"] == file["seconds"] > found["seconds"] and whole["commits"] == file["commits"] != []
    )


def test_turns_go_on_where_they_ended() -> None:
    done: list[str] = []

    class Job:
        flops_per_image = 2.0

        def __init__(self, name: str) -> None:
            self.name = name
            done.append(f"build {name}")

        def seconds(self) -> float:
            done.append(self.name)
            return float(len(done))

    def row(name: str) -> turns.Row:
        setting = dict.fromkeys(("model", "image_size", "batch_size", "device"), "x") | {"precision": "fp32"}
        variant = Variant(name, setting, 1, lambda: Job(name), "a")
        return turns.Row(variant, lambda timed: {"said": timed.variant.name.upper()})

    kept: dict[str, Any] = {}
    saved: list[int] = []

    def taken(looks: int) -> list[str]:
        done.clear()
        own = turns.Turns([row("a"), row("b")], 2, torch.device("cpu"), kept)
        with contextlib.suppress(Spent):
            own.take("rows", True, Spare(looks).require, lambda: saved.append(len(kept)))
        return [found["said"] for found in own.finished()]

    assert taken(0) == [] and done == [] and not kept
    assert taken(1) == [] and done == ["build a", "a", "build a", "a", "a"]  # the first loads libraries
    assert taken(2) == ["A"] and done == ["build a", "a", "build b", "b", "b", "build a", "a", "a"]
    before = kept["a"]["seconds"]
    assert taken(9) == ["A", "B"] and done == ["build b", "b", "b"]
    assert kept["a"]["seconds"] == before and [len(own["seconds"]) for own in kept.values()] == [2, 2]
    assert saved == [1, 2, 2, 2]
    assert taken(9) == ["A", "B"] and done == []


def test_without_time_it_says_what_is_missing(tmp_path: Path, config: Path, capsys: Any) -> None:
    found = moce.study("efficiency", out=tmp_path / "s", config=config, budget_minutes=0, device="cpu")
    assert found["rows"] == [] and not found["finished"]
    assert found["left_out"] == ["vit-ti/8: training", "vit-ti/8: inference", "vit-ti/8: search"]
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("repeat = 3", "there is no key 'repeat'. Did you mean 'repeats'"),
        ("repeats = 0", "--repeats must be at least 1"),
        ('parts = ["train"]', "--parts cannot be 'train'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(content)
    with pytest.raises(UserError, match=said):
        moce.study("efficiency", out=tmp_path / "out", config=tmp_path / "c.toml", quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"options": {}, "rows": 3}'])
def test_a_part_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "cells" / "vit-ti-8-training.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(UserError, match="vit-ti-8-training.json is no part of a study of costs; delete it"):
        moce.study("efficiency", out=tmp_path, quiet=True, budget_minutes=0)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="holds no study"):
        moce.study("efficiency", out=tmp_path, quiet=True)
