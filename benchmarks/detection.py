"""Detection with several models on one set: box and mask mAP, and what each training took.

    python benchmarks/detection.py --task packs/pennfudan --random runs/mae --out results/detection \\
        --arm MAE=runs/mae --arm 'MAE*=runs/mae-star' --arm MoCE=runs/moce

Runs `moce evaluate --protocol detect` once for each arm and seed, as processes of their own, each in a folder of RUNS,
and writes OUT.json and OUT.md. An arm is a run folder, a customised folder or timm:NAME; a run with clusters is sliced
for the set by its votes. `--random RUN` adds the architecture of that run with fresh weights, which says what
pre-training is worth at all. Finished arms are left alone, so that it can be interrupted.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from moce.model.weights import build_model, read_header, save_model

SCORES = ("box_map", "box_map_50", "box_map_75", "mask_map", "mask_map_50", "mask_map_75")


def random_weights(run: Path, folder: Path, seed: int) -> Path:
    """A run folder like `run` with the weights that training would have started from."""
    if not (folder / "result.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        header = read_header(run / "model.safetensors")
        torch.manual_seed(seed)
        about = {**header["about"], "method": "random weights"}
        save_model(folder / "model.safetensors", build_model(header), about)
        for name in ("config.json", "result.json"):
            shutil.copy(run / name, folder / name)
    return folder


def evaluated(model: str, task: str, folder: Path, seed: int, options: list[str]) -> dict[str, Any]:
    """The result of one arm; exit with the command's code where it fails."""
    command = [
        "evaluate",
        model,
        "--task",
        task,
        "--protocol",
        "detect",
        "--out",
        str(folder),
        "--seed",
        str(seed),
    ]
    if not (folder / "result.json").is_file():
        print("moce " + shlex.join([*command, *options]), file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", "moce", *command, *options], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
    return json.loads((folder / "result.json").read_text())


def table(content: dict[str, Any]) -> str:
    """Arms by scores."""
    first = content["arms"][0]["result"]
    settings = ", ".join(f"{name} {value}" for name, value in first["settings"].items() if name != "strategy")
    lines = [
        f"{first['task']}: {first['num_train']} pictures to learn from, {first['num_test']} tested "
        f"({settings}; {content['cores']} cores).",
        "",
        f"| model | seed | {' | '.join(name.replace('_', ' ') for name in SCORES)} | minutes |",
        "|---|---:|" + "---:|" * (len(SCORES) + 1),
    ]
    for arm in content["arms"]:
        result = arm["result"]
        scores = (result["scores"][name] for name in SCORES)
        shown = " | ".join("–" if score is None else f"{100 * score:.2f}" for score in scores)
        lines.append(f"| {arm['name']} | {result['seed']} | {shown} | {result['seconds'] / 60:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=MODEL")
    parser.add_argument("--random", type=Path, metavar="RUN")
    parser.add_argument("--runs", type=Path, default=Path("runs/detection"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--options", default="", help="further options of evaluate, in one text")
    given = parser.parse_args()
    content: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "arms": []}
    for seed in map(int, given.seeds.split(",")):
        arms = dict(arm.split("=", 1) for arm in given.arm)
        if given.random:
            fresh = random_weights(given.random, given.runs / f"random-weights-seed{seed}", seed)
            arms = {"random weights": str(fresh), **arms}
        for name, model in arms.items():
            folder = (
                given.runs
                / f"{re.sub(r'[^a-z0-9]+', '-', name.lower().replace('*', '-star'))}-detect-seed{seed}"
            )
            result = evaluated(model, given.task, folder, seed, given.options.split())
            content["arms"].append({"name": name, "result": result})
    for suffix, text in ((".json", json.dumps(content, indent=1)), (".md", table(content))):
        for path, name in ((str(given.runs), "RUNS"), (str(Path(given.task).parent), "DATA")):
            text = text.replace(path, name)  # where they lie on this machine is nobody else's business
        Path(given.out + suffix).write_text(text + "\n", encoding="utf-8")
    print(table(content))


if __name__ == "__main__":
    main()
