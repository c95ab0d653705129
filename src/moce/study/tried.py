"""Every configuration that was ever tried, one line each: what is reported is then seen beside what was not.

A line is an arm, seed and protocol on a set of tasks, written when all its cells are there; a line whose run, strategy,
protocol, seed and tasks are in the file already is not added again.
"""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moce.engine.files import write_whole
from moce.errors import UserError
from moce.study.plan import Plan, task_name
from moce.study.runner import Progress
from moce.study.summary import corpus

COLUMNS = (
    "date", "commit", "study", "corpus", "arm", "options", "strategy", "seed", "protocol", "tasks", "val_score", "test",
    "train_seconds", "fingerprint",
)  # fmt: skip
KEY = ("fingerprint", "strategy", "protocol", "seed", "tasks")


def lines(plan: Plan, progress: Progress) -> Iterator[dict[str, str]]:
    """The lines of a study: of every arm, seed and protocol whose tasks are all there."""
    names = [task_name(task) for task in plan.tasks]
    for arm in plan.arms:
        for protocol in plan.protocols:
            for seed in plan.seeds_of(arm, protocol):
                own = {
                    r["task"]: r
                    for r in progress.results
                    if (r["method"], r["protocol"], r["seed"]) == (arm.name, protocol, seed)
                }
                if all(name in own for name in names):
                    yield line(plan, arm.options, list(own.values()), seed)


def line(plan: Plan, options: Any, cells: list[dict[str, Any]], seed: int) -> dict[str, str]:
    """One line, from the cells of all tasks."""
    first = cells[0]
    scores = [cell["settings"].get("val_score") for cell in cells]
    known = [score for score in scores if score is not None]
    cost = first["study"].get("cost", {})
    values = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": (first.get("commit") or "")[:12],
        "study": plan.kind,
        "corpus": corpus(plan),
        "arm": first["study"]["arm"],
        "options": json.dumps(dict(options), sort_keys=True),
        "strategy": first["settings"].get("strategy", ""),
        "seed": seed,
        "protocol": first["protocol"],
        "tasks": " ".join(sorted(cell["task"] for cell in cells)),
        # Fine-tuning with a given learning rate chooses nothing, so it has no score on validation.
        "val_score": f"{sum(known) / len(known):.5f}" if len(known) == len(cells) else "",
        "test": f"{sum(cell['value'] for cell in cells) / len(cells):.5f}",
        "train_seconds": "" if cost.get("seconds") is None else f"{cost['seconds']:.1f}",
        "fingerprint": first["study"]["run"],
    }
    return {name: str(value) for name, value in values.items()}


def add_to(path: Path, new: list[dict[str, str]]) -> int:
    """Add what is not there yet; how many lines that were. UserError for a file of other columns."""
    there = read(path)
    known = {tuple(row[name] for name in KEY) for row in there}
    added = []
    for row in new:
        if (key := tuple(row[name] for name in KEY)) not in known:
            known.add(key)
            added.append(row)
    if added or not path.exists():
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*there, *added])
        with write_whole(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    return len(added)


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a file; none where there is no file. UserError for a file of other columns."""
    if not path.exists():
        return []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        header, rows = reader.fieldnames or (), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}.") from None
    if tuple(header) != COLUMNS:
        raise UserError(
            f"{path} has other columns than a list of what was tried; name another file for --tried."
        )
    return rows
