"""How one run's reconstruction loss lies beside that of another, trained on the same pictures with the same masks.

    python benchmarks/losses.py runs/moce --against runs/mae-star --out results/losses.json

For each part of the training, by the steps that both logged: how much larger the run's mean loss is, in per cent.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

from moce.engine.files import write_json
from moce.engine.runs import read_run, source_commit
from moce.errors import UserError


def losses(run: str) -> dict[int, float]:
    """The logged reconstruction loss by step."""
    read_run(run, "train-experts").result()
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["reconstruction"] for line in map(json.loads, lines)}


def larger(own: dict[int, float], other: dict[int, float], parts: int) -> list[float]:
    """Per cent by which the mean loss of each part is larger than the other's."""
    steps = sorted(own.keys() & other.keys())
    if len(steps) < parts:
        raise UserError(f"The runs logged {len(steps)} steps in common, fewer than --parts {parts}.")
    cuts = [len(steps) * i // parts for i in range(parts + 1)]
    of = [steps[a:b] for a, b in pairwise(cuts)]
    return [round(100 * (sum(own[s] for s in part) / sum(other[s] for s in part) - 1), 3) for part in of]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="+")
    parser.add_argument("--against", required=True)
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--out")
    given = parser.parse_args()
    other = losses(given.against)
    rows = [{"run": run, "larger_by_percent": larger(losses(run), other, given.parts)} for run in given.run]
    for row in rows:
        print(row)
    if given.out:
        write_json(given.out, {"against": given.against, "rows": rows, "commit": source_commit()})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
