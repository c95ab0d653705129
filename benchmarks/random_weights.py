"""Is a pre-trained model better than random weights on every task? A run beside an untrained network of its shape.

    python benchmarks/random_weights.py runs/mae --data-root DATA --tasks all --out results/random-weights.json

Both are evaluated by the same protocols on the same splits. The twin has the shape of the run's dense model (that of
each of its sub-models) and its normalisation, and weights as pre-training starts with them. `z` is the difference over
its standard error, from the test pictures on which one of the two is right and the other wrong (McNemar 1947): beyond 2
chance is an unlikely reason.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moce
from moce.engine.files import write_json
from moce.engine.runs import read_run, source_commit
from moce.errors import run_script
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.weights import read_header, save_model


def untrained(run: Path, folder: Path, seed: int) -> Path:
    """A run folder of random weights in the shape of `run`."""
    header = read_header(run / "model.safetensors")
    torch.manual_seed(seed)
    model = MaskedAutoencoder(AutoencoderShape.from_json(header["shape"]))
    about = {**header["about"], "method": "random weights"}
    folder.mkdir()
    write_json(folder / "config.json", {"verb": "pretrain", "options": {}})
    save_model(folder / "model.safetensors", model, about)
    write_json(folder / "result.json", {})
    return folder


def compared(trained: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    """One row of the result."""
    row = {name: trained[name] for name in ("task", "protocol", "metric", "num_test")}
    row |= {"value": trained["value"], "random": twin["value"], "gain": trained["value"] - twin["value"]}
    if trained["metric"] != "mAP11":
        labels = np.array(trained["labels"])
        right, by_chance = (np.array(result["predicted"]) == labels for result in (trained, twin))
        won, lost = int((right & ~by_chance).sum()), int((by_chance & ~right).sum())
        row |= {"won": won, "lost": lost, "z": (won - lost) / math.sqrt(won + lost) if won + lost else 0.0}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--protocol", default="knn,linear")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    given = parser.parse_args()
    read_run(given.run, ("pretrain", "train-experts")).result()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        twin = untrained(given.run, Path(temporary) / "random", given.seed)
        for task in given.tasks:
            found: list[list[dict[str, Any]]] = []
            for model in (given.run, twin):
                options = {"data_root": given.data_root, "protocol": given.protocol, "seed": given.seed}
                results = moce.evaluate(str(model), task=task, **options)
                found.append(results if isinstance(results, list) else [results])
            rows += [compared(*both) for both in zip(*found, strict=True)]
    result = {
        "run": str(given.run),
        "seed": given.seed,
        "above_everywhere": all(row["gain"] > 0 for row in rows),
        "rows": rows,
        "commit": source_commit(),
    }
    for row in rows:
        z = f"{row['z']:8.1f}" if "z" in row else ""
        print(
            f"{row['task']:<16}{row['protocol']:<8}{row['value']:8.4f}{row['random']:8.4f}{row['gain']:+8.4f}{z}"
        )
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    run_script(main)
