"""Cells of a study as evaluations would leave them, plans and arms around them, and a small study of both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moce.study.plan import Arm, Plan, Stage, slug

LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


def arm(name: str, seeds: Sequence[int] = (0, 1), one: bool = False, **more: Any) -> Arm:
    """An arm with a model for each seed, or one for all."""
    stages = {seed: Stage(f"runs/{slug(name)}-seed{seed}") for seed in seeds}
    return Arm(name, dict.fromkeys(seeds, stages[seeds[0]]) if one else stages, **more)


def plan(
    arms: list[Arm], tasks: Sequence[str] = ("a", "b"), seeds: Sequence[int] = (0, 1), **more: Any
) -> Plan:
    return Plan(
        "compare", Path("study"), arms, list(tasks), None, ["linear"], list(seeds), "data/photos", **more
    )


def cell(name: str, task: str, right: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A cell whose test pictures were named right (1) or not (0), of four pictures of each of two classes."""
    predicted = [label if mark == "1" else 1 - label for label, mark in zip(LABELS, right, strict=True)]
    study = {"arm": name, "run": f"{name} {seed}", "options": {}, "seconds": 2.0}
    study["cost"] = {"seconds": 60.0, "parameters": 1_000_000, "cluster_seconds": 5.0, "dense_seconds": 100.0}
    fixed = {
        "schema": 1,
        "protocol": "linear",
        "metric": "top1",
        "num_test": 8,
        "model": "m",
        "commit": "c" * 40,
    }
    value = right.count("1") / 8
    settings = {"val_score": 0.5}
    return {
        **fixed, "task": task, "method": name, "value": value, "seed": seed, "predicted": predicted,
        "labels": LABELS, "settings": settings, "study": study, **more,
    }  # fmt: skip


ARMS = [arm("MAE", one=True), arm("MAE*"), arm("MoCE"), arm("MoCE oracle", strategy="oracle")]
RESULTS = [
    cell("MAE", "a", "11000000"),
    cell("MAE", "b", "11110000"),
    cell("MAE*", "a", "11110000", 0),
    cell("MAE*", "a", "11110000", 1),
    cell("MAE*", "b", "11111000", 0),
    cell("MAE*", "b", "11111000", 1),
    cell("MoCE", "a", "11111000", 0),
    cell("MoCE", "a", "11111110", 1),
    cell("MoCE", "b", "11111000", 0),
    cell("MoCE", "b", "11110000", 1),
    cell("MoCE oracle", "a", "11111111", 0),
    cell("MoCE oracle", "b", "11111111", 0),
]
