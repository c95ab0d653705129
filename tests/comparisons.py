"""A small comparison: its file, the command again, and when its files were written."""

from pathlib import Path
from typing import Any

import moce

ROOT = "toyworld://?size=32&num=24"


def settings(small_runs: Any, tmp_path: Path, more: str = "", arms: str = "") -> Path:
    """A file of two tasks, one protocol and three arms, on runs that are there."""
    arms = (
        arms
        or """
        [[arms]]
        name = "MAE*"
        options = { gate = "none" }
        [[arms]]
        name = "MoCE"
        options = { gate = "cluster" }
        [[arms]]
        name = "MoCE random"
        options = { gate = "cluster" }
        strategy = "random"
    """
    )
    file = tmp_path / "study.toml"
    file.write_text(
        f"""
        images = "{small_runs.images}"
        data_root = "{ROOT}"
        tasks = ["letters", "plants"]
        protocols = ["knn"]
        mae = "{small_runs.mae}"
        clusters = "{small_runs.clusters}"
        {more}
        [experts]
        epochs = 1
        {arms}
        """
    )
    return file


def again(study: Path, **options: Any) -> dict[str, Any]:
    given = {"out": study / "study", "config": study / "study.toml", "device": "cpu"}
    return moce.study("compare", **{**given, **options})


def times(folder: Path) -> dict[str, int]:
    """When each cell and each run was finished."""
    found = [*folder.glob("cells/*/*.json"), *folder.glob("runs/*/result.json")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}
