"""The table of runs: what was run, how long it took, on what."""

from pathlib import Path
from typing import Any

from moce.engine.files import read_json
from moce.engine.runs import CONFIG
from moce.study.contents import RunContent
from moce.study.inspect import changed_options, spelled

STAGES = {"pretrain": "dense model", "cluster": "clusters", "train-experts": "further training"}


def run_row(run: RunContent) -> dict[str, Any]:
    """A run in the table of runs."""
    result, options = run.result, changed_options(run.info)
    seconds = result.get("seconds")
    return {
        "name": run.name,
        "stage": STAGES[run.info.verb],
        "verb": run.info.verb,
        "method": "" if run.info.verb == "cluster" else run.method,
        "finished": run.info.finished,
        "options": spelled(options),
        "versions": versions(run.info.path),
        "images": result.get("num_images"),
        "parameters": result.get("parameters"),
        "active": result.get("active_parameters"),
        "steps": result.get("steps"),
        "seconds": sum(seconds.values()) if isinstance(seconds, dict) else seconds,
        "speed": result.get("images_per_second"),
        "memory": result.get("peak_device_bytes") or result.get("peak_rss_bytes"),
        "machine": ", ".join(
            str(part) for part in (result.get("device"), result.get("precision"), threads(result)) if part
        ),
    }


def versions(folder: Path) -> str:
    """'moce 0.1.0, torch 2.15.0, commit 0123abcd'."""
    content = read_json(folder / CONFIG)
    parts = [f"{name} {number}" for name, number in content.get("versions", {}).items()]
    return ", ".join([*parts, f"commit {content['commit'][:8]}"] if content.get("commit") else parts)


def threads(result: dict[str, Any]) -> str:
    """'1 thread'."""
    number = result.get("threads")
    return f"{number} thread{'s' * (number > 1)}" if number else ""
