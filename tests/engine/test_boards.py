"""Where a run's numbers are drawn: TensorBoard always, Weights & Biases when asked."""

import importlib.util
import json
from pathlib import Path

import pytest

from moce.engine.boards import Boards
from moce.engine.runs import open_run
from moce.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"verb": "pretrain", "options": {"epochs": 2}}))
    return tmp_path


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard_gets_every_number_of_a_line(folder: Path) -> None:
    boards = Boards(folder, None)
    boards.add({"step": 20, "loss": 0.5, "load": [0.1, 0.9]})
    boards.add({"step": 40, "loss": 0.25})
    boards.close()
    assert drawn(folder) == {"loss": [(20, 0.5), (40, 0.25)]}
    assert not (folder / "wandb.json").exists()


def test_steps_that_are_computed_again_are_drawn_once(folder: Path) -> None:
    # Killed before there was a checkpoint, then behind that of step 40.
    for after, steps in ((0, (10, 30)), (0, (20, 40, 60)), (40, (60, 80))):
        boards = Boards(folder, None)
        boards.start(after)
        for step in steps:
            boards.add({"step": step, "loss": 1 / step})
        boards.close()
    assert drawn(folder)["loss"] == [(step, round(1 / step, 4)) for step in (20, 40, 60, 80)]


def test_a_continued_run_goes_on_in_the_same_run_of_weights_and_biases(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (20, 10):  # a killed run computes steps again
        boards = Boards(folder, "birds")
        boards.start(after=0)
        boards.add({"step": step, "loss": 0.5})
        boards.close()
    number = json.loads((folder / "wandb.json").read_text())["id"]
    written = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert written and {path.name for path in written} == {f"run-{number}.wandb"}
    assert all(path.stat().st_size > 0 for path in written)


def test_a_missing_login_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    wandb.teardown()  # it keeps the mode of an earlier test
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="run `wandb login`, or set WANDB_MODE=offline"):
        Boards(folder, "birds").start(after=0)


def test_without_the_package_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moce.config import PretrainConfig
    from moce.verbs import resolve

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    out = tmp_path / "run"
    config = resolve(PretrainConfig, {"images": "-", "out": str(out), "preset": "debug", "wandb": "birds"})
    with pytest.raises(UserError, match="install moce\\[wandb\\]"):
        open_run(out, "pretrain", config)
    assert not out.exists()
