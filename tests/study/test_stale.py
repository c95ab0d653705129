"""A small comparison whose runs, pictures or settings are others than those of its cells: what still counts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import ROOT, again, settings, times

import moce
from moce.errors import UserError
from moce.study.cells import fingerprints, other_pictures


def test_runs_count_whose_dense_model_lies_here_no_more(tmp_path: Path) -> None:
    text = f"""
        images = "toyworld://all?split=train&num=64&size=32"
        data_root = "{ROOT}"
        tasks = ["letters"]
        protocols = ["knn"]
        %s
        [[arms]]
        name = "MoCE"
        options = {{ gate = "cluster" }}
    """
    file = tmp_path / "study.toml"
    file.write_text(text % 'preset = "debug"')
    assert again(tmp_path, quiet=True)["finished"]
    shutil.rmtree(tmp_path / "study" / "runs" / "mae")
    before = times(tmp_path / "study")
    assert again(tmp_path, quiet=True)["finished"] and times(tmp_path / "study") == before
    more = text.replace('["letters"]', '["letters", "plants"]')
    file.write_text(more % 'preset = "debug"')  # a cell says what it was
    assert again(tmp_path, quiet=True)["finished"] and not (tmp_path / "study" / "runs" / "mae").exists()
    file.write_text(text % 'preset = "debug"\n[pretrain]\nepochs = 3')
    found = again(tmp_path, quiet=True, budget_minutes=0)
    assert found["cells"] == {"there": 0, "left": 1}
    file.write_text(text % 'preset = "debug"\n[experts]\nepochs = 5')
    with pytest.raises(
        UserError, match="moce-seed0 holds a run with other options: --epochs was 2 and is now 5"
    ):
        again(tmp_path, quiet=True, budget_minutes=0)


def test_other_settings_make_cells_stale(
    study: Path, small_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "study", tmp_path / "study")
    before = times(tmp_path / "study")
    file = settings(small_runs, tmp_path, arms="""
        [[arms]]
        name = "MoCE"
        options = { gate = "cluster" }
        [evaluate.knn]
        k = [3]
    """)  # fmt: skip
    found = moce.study("compare", out=tmp_path / "study", config=file, device="cpu")
    assert "letters-knn-seed0.json is stale (k was None and is now [3])" in capsys.readouterr().err
    changed = {name for name, when in times(tmp_path / "study").items() if before[name] != when}
    assert changed == {f"cells/moce/{task}-knn-seed0.json" for task in ("letters", "plants")}
    assert found["finished"] and found["primary"] is None


def test_cells_of_another_run_are_stale(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "study", tmp_path / "study")
    file = tmp_path / "study" / "cells" / "moce" / "letters-knn-seed0.json"
    cell = json.loads(file.read_text())
    cell["study"]["run"] = "0" * 16
    file.write_text(json.dumps(cell))
    assert again(study, out=tmp_path / "study")["finished"]
    assert "is stale (it measured another run than the one that is there now)" in capsys.readouterr().err
    assert json.loads(file.read_text())["study"]["run"] != "0" * 16


def test_cells_of_other_pictures_are_stale(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "study", tmp_path / "study")
    text = (study / "study.toml").read_text().replace("num=24", "num=30")
    (tmp_path / "study.toml").write_text(text)
    file = tmp_path / "study" / "cells" / "moce" / "letters-knn-seed0.json"
    old = json.loads(file.read_text())
    assert set(old["study"].pop("pictures")) == {"task", "data_root", "train", "val", "test"}
    file.write_text(json.dumps(old))  # an older version did not say of which pictures a cell is
    found = again(tmp_path, budget_minutes=0)
    said = capsys.readouterr().err
    assert "mae-star/letters-knn-seed0.json is stale (the train pictures of its task are others now)" in said
    assert found["cells"] == {"there": 1, "left": 5}


def test_pictures_that_are_not_here_are_told_by_their_names() -> None:
    known = {"task": "a", "data_root": "old", "train": "1", "val": None, "test": "2"}
    named = {"task": "a", "data_root": "old"}
    assert other_pictures(known, named) is None  # no data here
    assert other_pictures(known, {**known, "data_root": "moved"}) is None  # the same data elsewhere
    assert other_pictures(known, {**known, "test": "3"}) == "the test pictures of its task are others now"
    assert other_pictures(known, {**named, "data_root": "b"}) == "data_root was old and is now b"
    assert fingerprints("a", "nowhere") == {}


def test_runs_of_other_options_are_no_part_of_it(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "study", tmp_path / "study")
    text = (study / "study.toml").read_text().replace("epochs = 1", "epochs = 2")
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(
        UserError, match="mae-star-seed0 holds a run with other options: --epochs was 1 and is now 2"
    ):
        again(tmp_path, quiet=True)


def test_experts_of_earlier_clusters_are_no_part_of_it(study: Path, small_runs: Any, tmp_path: Path) -> None:
    shutil.copytree(study / "study", tmp_path / "study")
    shutil.copytree(small_runs.clusters, tmp_path / "clusters")
    text = (study / "study.toml").read_text().replace(str(small_runs.clusters), str(tmp_path / "clusters"))
    (tmp_path / "study.toml").write_text(text)
    assert again(tmp_path, quiet=True)["finished"]  # the same clusters, elsewhere
    labels = np.load(tmp_path / "clusters" / "labels.npy")
    np.save(tmp_path / "clusters" / "labels.npy", labels[::-1])
    with pytest.raises(
        UserError, match="mae-star-seed0 holds a run with other options: not the same clusters"
    ):
        again(tmp_path, quiet=True)


def test_cells_without_their_runs_are_of_the_training_that_they_say(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study / "study" / "cells", tmp_path / "study" / "cells")
    text = (study / "study.toml").read_text().replace("epochs = 1", "epochs = 2")
    (tmp_path / "study.toml").write_text(text)
    found = again(tmp_path, budget_minutes=0)
    assert "is stale (it is of a run with other options of training)" in capsys.readouterr().err
    assert found["cells"] == {"there": 0, "left": 6} and found["runs_left"] == 2
