"""What could specialising be worth at most? The dense model trained on with one task's own pictures, and probed on it.

    python benchmarks/ceiling.py runs/mae --tasks eurosat gtsrb --data-root DATA --updates 670 --work runs/ceiling \
        --out results/ceiling.json

An expert can hardly know a task better than a model all of whose weights go on learning from the task's training
pictures and from nothing else. For each task that model gets `--updates` steps (as many as an expert of the run that it
is compared with has seen, say; rounded to whole passes), with the dense run's crops and batches and with `--base-lr`;
then nearest neighbours and a linear probe measure it and the model that it started from. Finished runs are left alone,
so that it can be interrupted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import moce
from moce.engine.files import write_json
from moce.engine.runs import read_run, source_commit
from moce.errors import run_script
from moce.images.sources import open_images

SHAPE = (
    "preset", "model", "image_size", "patch_size", "channels", "decoder_depth", "decoder_width", "decoder_heads",
    "mask_ratio", "norm_target", "min_crop", "flip", "batch_size",
)  # fmt: skip


def loss_of(run: Path) -> tuple[float, float]:
    """(mean loss of the first tenth of a run's lines of metrics, of the last)."""
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    part = max(1, len(losses) // 10)
    return sum(losses[:part]) / part, sum(losses[-part:]) / part


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mae", type=Path, help="run folder of the dense model")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--data-root", type=Path, required=True, help="folder of NAME/train.parquet")
    parser.add_argument("--updates", type=int, required=True, help="steps on each task's pictures")
    parser.add_argument("--base-lr", type=float, default=1e-3)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-workers", type=int, default=-1)
    given = parser.parse_args()
    dense = read_run(given.mae, "pretrain")
    shape = {name: dense.config[name] for name in SHAPE}
    rows: list[dict[str, Any]] = []
    for task in given.tasks:
        images = given.data_root / task / "train.parquet"
        epochs = max(1, round(given.updates * shape["batch_size"] / len(open_images(str(images)))))
        run = given.work / task
        moce.pretrain(
            **shape,
            init=dense.path,
            images=images,
            out=run,
            epochs=epochs,
            base_lr=given.base_lr,
            num_workers=given.num_workers,
            quiet=True,
        )
        row: dict[str, Any] = {"task": task, "epochs": epochs, "loss": loss_of(run)}
        for name, model in (("before", dense.path), ("after", run)):
            found = moce.evaluate(
                model, task=task, data_root=given.data_root, protocol="knn,linear", num_workers=0, quiet=True
            )
            row[name] = {result["protocol"]: result["value"] for result in found}
        print(task, row, flush=True)
        rows.append(row)
        write_json(given.out, {"rows": rows, "updates": given.updates, "commit": source_commit()})


if __name__ == "__main__":
    run_script(main)
