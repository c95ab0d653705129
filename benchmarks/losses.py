"""How one run's reconstruction loss lies beside that of another, trained on the same pictures with the same masks.

    python benchmarks/losses.py runs/moce --against runs/mae-star --out results/losses.json

For each part of the training, by the steps that were logged: how much larger the run's mean loss is, in per cent.
"""

import argparse
import dataclasses
import json
from itertools import pairwise
from typing import Any

from moce.config import ExpertsConfig
from moce.engine.files import write_json
from moce.engine.runs import RunInfo, read_run, source_commit
from moce.errors import UserError, run_script

INPUTS = ("images", "dense model")
OPTIONS = ("seed", "batch_size", "epochs", "steps", "order", "min_crop", "flip", "only_clusters")
DEFAULTS = {field.name: field.default for field in dataclasses.fields(ExpertsConfig)}


def seen(run: RunInfo) -> dict[str, Any]:
    """What decides which pictures, crops and masks a run saw, and from where it began."""
    inputs = {f"input '{name}'": run.inputs.get(name) for name in INPUTS}
    return {**inputs, **{f"option '{name}'": run.config.get(name, DEFAULTS[name]) for name in OPTIONS}}


def losses(run: str, like: str) -> dict[int, float]:
    """The logged reconstruction loss by step. UserError for a run that saw other pictures than `like`."""
    own, other = (read_run(path, "train-experts") for path in (run, like))
    own.result()
    ours, theirs = seen(own), seen(other)
    for what in ours:
        if ours[what] != theirs[what]:
            raise UserError(
                f"{run} and {like} differ in the {what} ({ours[what]} and {theirs[what]}), so they did not see "
                "the same."
            )
    lines = (own.path / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["reconstruction"] for line in map(json.loads, lines)}


def larger(own: dict[int, float], other: dict[int, float], parts: int) -> list[float]:
    """Per cent by which the mean loss of each part is larger than the other's."""
    steps = sorted(own)
    if parts < 1:
        raise UserError(f"--parts must be at least 1, not {parts}.")
    if own.keys() != other.keys():  # a line is the mean since the line before
        raise UserError("The runs logged other steps: give runs of the same --log-steps.")
    if len(steps) < parts:
        raise UserError(f"The runs logged {len(steps)} steps, fewer than --parts {parts}.")
    cuts = [len(steps) * i // parts for i in range(parts + 1)]
    of = [steps[a:b] for a, b in pairwise(cuts)]
    return [
        round(100 * (sum(own[s] for s in part) / sum(other[s] for s in part) - 1), 3) + 0.0 for part in of
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="+")
    parser.add_argument("--against", nargs="+", required=True, help="one run for all, or one for each")
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--out")
    given = parser.parse_args()
    against = given.against * len(given.run) if len(given.against) == 1 else given.against
    if len(against) != len(given.run):
        raise UserError(
            f"--against names {len(against)} runs for {len(given.run)}: give one, or one for each."
        )
    rows = []
    for run, other in zip(given.run, against, strict=True):
        found = larger(losses(run, other), losses(other, other), given.parts)
        rows.append({"run": run, "against": other, "larger_by_percent": found})
        print(rows[-1])
    if given.out:
        write_json(given.out, {"rows": rows, "commit": source_commit()})


if __name__ == "__main__":
    run_script(main)
