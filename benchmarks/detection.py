"""Detection with several models on one set: box and mask mAP, and what each training took.

    python benchmarks/detection.py --task packs/pennfudan --random runs/mae --out results/detection \\
        --arm MAE=runs/mae --arm 'MAE*=runs/mae-star' --arm MoCE=runs/moce

Runs `moce evaluate --protocol detect` once for each arm and seed, as processes of their own, each in a folder of RUNS,
and writes OUT.json and OUT.md. An arm is a run folder, a customised folder or timm:NAME; a run with clusters is sliced
for the set by its votes. `--random RUN` adds the architecture of that run with fresh weights, which says what
pre-training is worth at all. It can be interrupted: `moce evaluate` goes on where it was and returns what is
finished. A folder of RUNS that holds another model, set or options is refused; name other --runs, or write
--options="... --overwrite".
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from moce.engine.files import read_json, write_json, write_whole
from moce.errors import run_script
from moce.model.weights import build_model, read_header, save_model

SCORES = ("box_map", "box_map_50", "box_map_75", "mask_map", "mask_map_50", "mask_map_75")
ALIKE = ("task", "settings", "num_train", "num_test")  # fields of a result that all arms have to share
PATHS = ("model", "folder")  # fields of a result that say where something lies


def random_weights(run: Path, folder: Path, seed: int) -> Path:
    """A run folder like `run` with the weights that training would have started from."""
    folder.mkdir(parents=True, exist_ok=True)
    header = read_header(run / "model.safetensors")
    torch.manual_seed(seed)
    about = {**header["about"], "method": "random weights"}
    save_model(folder / "model.safetensors", build_model(header), about)
    for name in ("config.json", "result.json"):
        shutil.copy(run / name, folder / name)
    return folder


def folder_of(runs: Path, name: str, seed: int) -> Path:
    """Where the evaluation of an arm lies."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("*", "-star"))
    return runs / f"{plain}-detect-seed{seed}"


def evaluated(model: str, task: str, folder: Path, seed: int, options: list[str]) -> dict[str, Any]:
    """The result of one arm; exit with the command's code where it fails."""
    command = ["evaluate", model, "--task", task, "--protocol", "detect"]
    command += ["--out", str(folder), "--seed", str(seed), *options]
    print("moce " + shlex.join(command), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "moce", *command], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return read_json(folder / "result.json")


def require_alike(arms: list[dict[str, Any]]) -> None:
    """Exit where two arms were not trained and tested in the same way."""

    def shared(arm: dict[str, Any]) -> dict[str, Any]:
        found = {field: arm["result"][field] for field in ALIKE}
        # How a model with experts came to be one is its own affair.
        return {**found, "settings": {k: v for k, v in found["settings"].items() if k != "strategy"}}

    for arm in arms[1:]:
        first, own = shared(arms[0]), shared(arm)
        if different := [field for field in ALIKE if first[field] != own[field]]:
            field = different[0]
            raise SystemExit(
                f"{arm['name']} and {arms[0]['name']} differ in {field}: {own[field]} and {first[field]}; they cannot "
                "stand in one table."
            )


def without_places(result: dict[str, Any], runs: Path) -> dict[str, Any]:
    """A result that does not say where things lie on this machine: RUNS, and of other absolute paths the name."""
    kept = dict(result)
    for field in PATHS:
        path = Path(result[field])
        if path.exists() and path.resolve().is_relative_to(runs.resolve()):  # and no timm:NAME
            kept[field] = str("RUNS" / path.resolve().relative_to(runs.resolve()))
        elif path.is_absolute():
            kept[field] = path.name
    return kept


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
    named = [tuple(arm.split("=", 1)) for arm in given.arm]
    if not named and not given.random:
        parser.error("give at least one --arm, or --random")
    names = [name for name, *_ in named] + ["random weights"] * bool(given.random)
    if any(len(arm) == 1 for arm in named) or len({folder_of(given.runs, n, 0) for n in names}) < len(names):
        parser.error("every --arm is NAME=MODEL, and names must differ in letters or digits")
    arms = []
    for seed in map(int, given.seeds.split(",")):
        models = dict(named)
        if given.random:
            fresh = random_weights(given.random, given.runs / f"random-weights-seed{seed}", seed)
            models = {"random weights": str(fresh), **models}
        for name, model in models.items():
            options = given.options.split()
            result = evaluated(model, given.task, folder_of(given.runs, name, seed), seed, options)
            arms.append({"name": name, "result": without_places(result, given.runs)})
    require_alike(arms)
    content = {"cores": len(os.sched_getaffinity(0)), "arms": arms}
    write_json(Path(given.out + ".json"), content)
    with write_whole(Path(given.out + ".md")) as temporary:
        temporary.write_text(table(content) + "\n", encoding="utf-8")
    print(table(content))


if __name__ == "__main__":
    run_script(main)
