"""A small comparison: its file, the command again, and when its files were written."""

from pathlib import Path
from typing import Any

import moce

ROOT = "toyworld://?size=32&num=24"
MAE, MAE_STAR, MOCE = (
    f'[[arms]]\nname = "{name}"\n{options}\n'
    for name, options in (
        ("MAE", ""),
        ("MAE*", 'options = { gate = "none" }'),
        ("MoCE", 'options = { gate = "cluster" }'),
    )
)
MOCE_RANDOM = MOCE.replace("MoCE", "MoCE random") + 'strategy = "random"\n'


def settings(small_runs: Any, tmp_path: Path, more: str = "", arms: str = "") -> Path:
    """A file of two tasks, one protocol and three arms, on runs that are there."""
    arms = arms or MAE_STAR + MOCE + MOCE_RANDOM
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


def without(text: str, *keys: str) -> str:
    """A file without the lines of these keys."""
    return "\n".join(line for line in text.splitlines() if line.strip().split(" = ")[0] not in keys)


def again(study: Path, **options: Any) -> dict[str, Any]:
    given = {"out": study / "study", "config": study / "study.toml", "device": "cpu"}
    return moce.study("compare", **{**given, **options})


def times(folder: Path) -> dict[str, int]:
    """When each cell and each run was finished."""
    found = [*folder.glob("cells/*/*.json"), *folder.glob("runs/*/result.json")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}
