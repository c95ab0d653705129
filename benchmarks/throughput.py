"""Does `moce pretrain` slow down, or grow, with the number of pictures? Real runs on files of 10,000 and 200,000.

    python benchmarks/throughput.py --images pictures.parquet --work runs/throughput --out results/throughput.json

The files repeat the pictures of --images, whose labels are left out, so that only their number differs. Each run is a
process of its own, ended after --steps steps by SIGTERM as a scheduler does it; runs of different sizes take turns.
`images_per_second` is the median of what the run itself wrote into metrics.jsonl, its first third left out;
`anonymous_mib` is the memory of the process and its workers that no file backs, when it ended. The encoder is small
so that loading counts. Pictures of one size are decoded once and kept (--cache-gib of `pretrain`), so `cached` grows
with the set by design and `mapped`, the same pictures after `moce prepare --format array`, does not.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from moce.engine.files import write_json, write_whole
from moce.engine.runs import source_commit
from moce.errors import run_script

MODEL = ("--model", "test_vit", "--decoder-depth", "2", "--decoder-width", "96", "--decoder-heads", "3")
ROWS = 2048  # of a row group
LOG_STEPS = 20


def repeated(images: Path, num: int, path: Path) -> None:
    """Write the pictures of a parquet file, again and again, until there are `num`."""
    column = pq.read_table(images, columns=["image"])["image"].combine_chunks()
    rows = pa.array([index % len(column) for index in range(num)])
    with (
        write_whole(path) as temporary,
        pq.ParquetWriter(temporary, pa.schema([("image", column.type)])) as to,
    ):
        for start in range(0, num, ROWS):
            to.write_table(pa.table({"image": column.take(rows[start : start + ROWS])}), row_group_size=ROWS)


def processes(parent: int) -> list[int]:
    """A process and those that it started."""
    found = [parent]
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += processes(int(child))
    return found


def anonymous_mib(parent: int) -> float:
    """Memory of a process and its children that is not of files or shared, in MiB."""
    total = 0
    for pid in processes(parent):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return total / 1024


def run(images: Path, out: Path, steps: int, seed: int) -> dict[str, float]:
    """{images_per_second, anonymous_mib, first_line_seconds} of a run of `moce pretrain` ended after `steps`."""
    command = [
        sys.executable,
        "-m",
        "moce",
        "pretrain",
        "--images",
        str(images),
        "--out",
        str(out),
        "--quiet",
    ]
    options = ["--preset", "tiny-imagenet", "--epochs", "100", "--log-steps", str(LOG_STEPS), "--overwrite"]
    process = subprocess.Popen([*command, *options, "--seed", str(seed), *MODEL])
    metrics, lines, start = out / "metrics.jsonl", [""], time.perf_counter()
    metrics.unlink(missing_ok=True)
    first = 0.0
    while len(lines) - 1 < steps // LOG_STEPS:
        if process.poll() is not None:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        time.sleep(0.2)
        lines = metrics.read_text().split("\n") if metrics.is_file() else [""]
        first = first or (time.perf_counter() - start if len(lines) > 1 else 0)
    memory = anonymous_mib(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait()
    speeds = [json.loads(line)["images_per_second"] for line in lines[:-1]]
    return {
        "images_per_second": statistics.median(speeds[len(speeds) // 3 :]),
        "anonymous_mib": memory,
        "first_line_seconds": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="parquet file with pictures of one size")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--numbers", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    sources = {}
    for num in given.numbers:
        cached, mapped = given.work / f"{num}.parquet", given.work / f"{num}"
        if not cached.is_file():
            repeated(given.images, num, cached)
        words = [
            "--images",
            str(cached),
            "--format",
            "array",
            "--short-side",
            "64",
            "--out",
            str(mapped),
            "--quiet",
        ]
        subprocess.run([sys.executable, "-m", "moce", "prepare", *words], check=True)
        sources["cached", num], sources["mapped", num] = cached, mapped
    found: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in sources}
    for turn in range(given.repeats):
        for key, images in sources.items():
            found[key].append(run(images, given.work / "run", given.steps, turn))
            print(*key, *(f"{name} {value:.1f}" for name, value in found[key][-1].items()), flush=True)
    rows: list[dict[str, Any]] = []
    for (kind, num), runs in found.items():
        row = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        rows.append({"kind": kind, "num_images": num, **row, "runs": runs})
    content = {
        "rows": rows,
        "steps": given.steps,
        "model": " ".join(MODEL),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "commit": source_commit(),
    }
    write_json(given.out, content)


if __name__ == "__main__":
    run_script(main)
