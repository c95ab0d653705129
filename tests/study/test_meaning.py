"""What a study says of its clusters: which its runs read, and whether they mean anything."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from comparisons import again

from moce.engine.files import read_json
from moce.study.meaning import meaning_notes


def test_a_study_names_the_clusters_that_its_runs_read(study: Path, small_runs: Any) -> None:
    known = read_json(Path(small_runs.clusters) / "clusters.json")
    (found,) = read_json(study / "study" / "result.json")["clusters"]
    assert found == {
        "name": "clusters", **{name: known[name] for name in ("num_clusters", "nmi", "nmi_raw")}
    }  # fmt: skip
    assert f"{known['nmi']:.3f} (clusters, 8), of raw pixels" in (study / "study" / "table.md").read_text()
    dense = read_json(study / "study" / "cells" / "mae-star" / "plants-knn-seed0.json")
    assert dense["study"]["clusters"] is None  # MAE* reads none


def test_cells_alone_know_their_clusters(study: Path, tmp_path: Path) -> None:
    before = read_json(study / "study" / "result.json")["clusters"]
    for name in ("study.toml", "study/cells"):
        source, target = study / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    assert again(tmp_path, budget_minutes=0, quiet=True)["clusters"] == before


def test_cells_of_an_older_version_ask_the_run(study: Path, tmp_path: Path) -> None:
    before = read_json(study / "study" / "result.json")["clusters"]
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("study/cells/*/*.json"):
        content = json.loads(path.read_text())
        del content["study"]["clusters"]
        path.write_text(json.dumps(content))
    assert again(tmp_path, budget_minutes=0, quiet=True)["clusters"] == before


@pytest.mark.parametrize(
    ("nmi", "raw", "meaningful"), [(0.3, 0.1, True), (0.19, 0.1, False), (None, None, None)]
)
def test_clusters_that_mean_little_are_said_to(nmi: float, raw: float, meaningful: bool | None) -> None:
    own = {"name": "clusters", "num_clusters": 8, "nmi": nmi, "nmi_raw": raw}
    notes = meaning_notes({"clusters": [own]})
    assert len(notes) == {True: 1, False: 2, None: 0}[meaningful]
    assert meaning_notes({}) == []  # a result of an older version
