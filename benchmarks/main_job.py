"""The main job on real pictures, command by command: what it gives, what each command took.

    python benchmarks/main_job.py --images train.parquet --data-root packs --runs runs/main-job --out results/main-job

Runs pretrain, cluster, train-experts (cluster, token, none) and evaluate (all tasks; knn and linear; MAE, MAE*,
TokenMoE, MoCE) as processes of their own and writes OUT.json and OUT.md. With --jobs 2 the three trainings of experts,
and then the evaluations, run two at a time, each with half of the cores. Finished runs are left alone, so that it can
be interrupted; their seconds are then those that the run itself counted.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moce.errors import run_script

METHODS = {"MAE": "mae", "MAE*": "mae-star", "TokenMoE": "tokenmoe", "MoCE": "moce"}
PROTOCOLS = ("knn", "linear")


def run(command: list[str], result: Path, threads: int | None = None) -> dict[str, Any]:
    """Run one `moce` command unless its result is there; what it took."""
    shown = "moce " + shlex.join(command)
    counted = result.with_suffix(".cost.json")
    if result.exists() and counted.exists():
        return json.loads(counted.read_text())
    print(shown, file=sys.stderr, flush=True)
    started = time.monotonic()
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    whole = [sys.executable, "-m", "moce", *command, "--json", str(result)]
    process = subprocess.Popen(whole, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise SystemExit(f"{shown} ended with exit code {code}")
    content = json.loads(result.read_text())
    wall = time.monotonic() - started
    counts = content if isinstance(content, dict) else {}
    earlier = counts.get("seconds", 0) if isinstance(counts.get("seconds", 0), (int, float)) else 0
    cost = {
        "command": shown,
        "threads": threads or os.cpu_count(),
        "wall_seconds": max(wall, earlier),  # a run that was finished before counted its own seconds
        # Of a run that was finished before, what it counted itself; None where it did not.
        "cpu_seconds": usage.ru_utime + usage.ru_stime if wall >= earlier else counts.get("cpu_seconds"),
        "peak_rss_bytes": max(usage.ru_maxrss * 1024, counts.get("peak_rss_bytes") or 0),
        "images_per_second": counts.get("images_per_second"),
    }
    counted.write_text(json.dumps(cost))
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--images", "--data-root", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/main-job"))
    parser.add_argument("--preset", default="tiny-imagenet")
    parser.add_argument("--seed", default="0")
    parser.add_argument(
        "--jobs", type=int, default=1, help="commands at a time, where they do not build on each other"
    )
    parser.add_argument("--experts-options", default="", help="further options of train-experts, in one text")
    given = parser.parse_args()
    runs: Path = given.runs
    (runs / "json").mkdir(parents=True, exist_ok=True)
    pictures = ["--images", given.images, "--seed", given.seed]
    mae, clusters = str(runs / "mae"), str(runs / "clusters")
    costs = [
        run(["pretrain", *pictures, "--preset", given.preset, "--out", mae], runs / "json" / "mae.json"),
        run(["cluster", mae, *pictures, "--out", clusters], runs / "json" / "clusters.json"),
    ]
    threads = max((os.cpu_count() or 1) // given.jobs, 1) if given.jobs > 1 else None
    trainings, evaluations = [], []
    for gate, name in (("cluster", "moce"), ("token", "tokenmoe"), ("none", "mae-star")):
        options = ["--gate", gate, "--out", str(runs / name), *given.experts_options.split()]
        trainings.append(
            (["train-experts", mae, clusters, *pictures, *options], runs / "json" / f"{name}.json")
        )
    for name in METHODS.values():
        task = ["--task", "all", "--data-root", given.data_root, "--protocol", ",".join(PROTOCOLS)]
        command = ["evaluate", str(runs / name), *task, "--seed", given.seed]
        evaluations.append((command, runs / "json" / f"{name}-evaluation.json"))
    with ThreadPoolExecutor(given.jobs) as pool:
        for group in (trainings, evaluations):
            costs += pool.map(lambda job: run(*job, threads), group)
    content = {
        "about": "one dense model, one seed: a demonstration, not evidence",
        "costs": costs,
        "machine": {"cores": os.cpu_count(), "jobs": given.jobs},
        "clusters": json.loads((runs / "json" / "clusters.json").read_text()),
        "training": {n: json.loads((runs / "json" / f"{n}.json").read_text()) for n in METHODS.values()},
        "curves": {n: curve(runs / n / "metrics.jsonl") for n in METHODS.values()},
        "evaluations": [e for _, path in evaluations for e in json.loads(path.read_text())],
    }
    for suffix, text in ((".json", json.dumps(content, indent=1)), (".md", table(content))):
        # Where the data and the runs lie on this machine is nobody else's business.
        text = text.replace(str(runs), "RUNS").replace(given.data_root, "DATA")
        Path(given.out + suffix).write_text(text + "\n", encoding="utf-8")
        if suffix == ".md":
            print(text)


def curve(path: Path, passes: tuple[float, ...] = (0.1, 0.5, 1, 2, 5, 10, 20)) -> list[dict[str, float]]:
    """The metrics lines at these passes over the pictures: reconstruction error, and the loss as a whole."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    found = [next((line for line in lines if line["epoch"] >= wanted), None) for wanted in passes]
    return [
        {
            "epoch": line["epoch"],
            "reconstruction": line.get("reconstruction", line["loss"]),
            "loss": line["loss"],
        }
        for line in found
        if line is not None
    ]


def table(content: dict[str, Any]) -> str:
    """Tasks x methods for each protocol, then what the commands took."""
    lines = [f"{content['about'].capitalize()}."]
    for protocol in PROTOCOLS:
        cells = {
            (e["task"], e["method"]): e["value"] for e in content["evaluations"] if e["protocol"] == protocol
        }
        tasks = sorted({task for task, _ in cells})
        lines += ["", f"### {protocol}, per cent on the test split", ""]
        lines += ["| task | " + " | ".join(METHODS) + " |", "|---|" + "---:|" * len(METHODS)]
        for task in tasks:
            lines.append(f"| {task} | " + " | ".join(f"{100 * cells[task, m]:.2f}" for m in METHODS) + " |")
        means = [sum(cells[t, m] for t in tasks) / len(tasks) for m in METHODS]
        lines.append("| **mean** | " + " | ".join(f"{100 * mean:.2f}" for mean in means) + " |")
    lines += [
        "",
        "### What the commands took",
        "",
        "| command | threads | minutes | CPU minutes | peak MiB |",
    ]
    lines.append("|---|---:|---:|---:|---:|")
    for cost in content["costs"]:
        cpu = "" if cost["cpu_seconds"] is None else f"{cost['cpu_seconds'] / 60:.1f}"
        peak = cost["peak_rss_bytes"] / 2**20
        lines.append(
            f"| `{cost['command']}` | {cost['threads']} | {cost['wall_seconds'] / 60:.1f} | {cpu} | {peak:.0f} |"
        )
    cpu = sum(c["cpu_seconds"] or 0 for c in content["costs"]) / 60
    lines.append(f"| all | | | {cpu:.1f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
