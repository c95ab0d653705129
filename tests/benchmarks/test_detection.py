"""The script that compares models on a set of objects: a table of what was asked for, and of nothing older."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from drawn_coco import draw_set

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "detection.py"
OPTIONS = "--image-size 64 --epochs 1 --batch-size 2 --num-workers 0 --quiet"
Compare = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("detection", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def said() -> list[str]:
    """What the evaluations said on stderr."""
    return []


@pytest.fixture
def compare(
    script: ModuleType, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> Compare:
    """What the script writes; the command line that it starts runs in this process."""

    def started(words: list[str], check: bool) -> subprocess.CompletedProcess:
        assert words[:3] == [sys.executable, "-m", "moce"] and not check
        done = command(*words[3:])
        said.append(done.stderr)
        return subprocess.CompletedProcess(words, done.code)

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=started))
    monkeypatch.chdir(tmp_path)

    def run(*arms: str, options: str = OPTIONS, **more: object) -> dict[str, Any]:
        words = [f"--options={options}", "--out", "found", "--runs", "made"]
        for arm in arms:
            words += ["--arm", arm]
        for name, value in {"task": "shapes", **more}.items():
            words += [f"--{name}", str(value)]
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *words])
        script.main()
        return json.loads(Path("found.json").read_text())

    return run


def test_a_table_holds_what_was_asked_for_and_nothing_older(
    compare: Compare, small_runs, tmp_path: Path, said: list[str]
) -> None:
    for name in ("shapes", "others"):
        draw_set(tmp_path / name, num_train=2, num_val=2, side=64 if name == "shapes" else 72)
    arms = [f"MAE={small_runs.mae}", f"MAE*={small_runs.mae_star}"]
    found = compare(*arms, random=small_runs.mae)
    results = {arm["name"]: arm["result"] for arm in found["arms"]}
    assert list(results) == ["random weights", "MAE", "MAE*"]
    for name, folder in zip(results, ("random-weights", "mae", "mae-star")):
        own = json.loads((tmp_path / "made" / f"{folder}-detect-seed0" / "result.json").read_text())
        assert {**own, "model": None, "folder": None} == {**results[name], "model": None, "folder": None}
    # The set is given by its bare name, and numbers have their dots; where anything lies is not said.
    assert (results["MAE"]["task"], results["MAE"]["model"]) == ("shapes", "mae")
    assert results["random weights"]["model"] == "RUNS/random-weights-seed0"
    assert results["MAE*"]["folder"] == "RUNS/mae-star-detect-seed0"
    text = Path("found.json").read_text() + Path("found.md").read_text()
    assert str(tmp_path) not in text and str(small_runs.mae.parent) not in text
    assert Path("found.md").read_text().count("\n| MAE") == 2
    # What is finished is returned as it is; whatever differs from it is refused.
    assert compare(*arms, random=small_runs.mae) == found
    for given, options, words in [
        ([f"MAE={small_runs.mae_star}"], {}, "not the same model"),
        (arms, {"task": "others"}, "not the same task"),
        (arms, {"options": OPTIONS.replace("--epochs 1", "--epochs 2")}, "--epochs was 1 and is now 2"),
    ]:
        with pytest.raises(SystemExit) as stop:
            compare(*given, **options)
        assert stop.value.code == 2 and words in said[-1]
    assert json.loads(Path("found.json").read_text()) == found


def test_fresh_weights_are_those_of_the_run_that_is_given_now(
    script: ModuleType, small_runs, tmp_path: Path
) -> None:
    for run in (small_runs.mae, small_runs.token_moce):
        made = script.random_weights(run, tmp_path / "fresh", 0)
        own, given = (script.read_header(folder / "model.safetensors") for folder in (made, run))
        assert own["kind"] == given["kind"] and own["shape"] == given["shape"]
        assert own["about"]["method"] == "random weights"
        assert (made / "config.json").read_bytes() == (run / "config.json").read_bytes()


def test_arms_that_were_trained_otherwise_stand_in_no_table(script: ModuleType) -> None:
    settings = {"epochs": 1, "strategy": "vote"}
    result = {"task": "shapes", "num_train": 2, "num_test": 2, "settings": settings}
    alike = {**result, "settings": {"epochs": 1}}
    script.require_alike([{"name": "MAE", "result": alike}, {"name": "MoCE", "result": result}])
    for other in ({"task": "others"}, {"num_test": 3}, {"settings": {"epochs": 2}}):
        arms = [{"name": "MAE", "result": result}, {"name": "MoCE", "result": {**result, **other}}]
        with pytest.raises(SystemExit, match=f"MoCE and MAE differ in {next(iter(other))}"):
            script.require_alike(arms)


def test_two_arms_with_one_folder_are_refused(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    for arms in (["MAE*=a", "mae-star=b"], ["MAE"], []):
        with pytest.raises(SystemExit) as stop:
            compare(*arms)
        assert stop.value.code == 2
    assert "names must differ" in capsys.readouterr().err
