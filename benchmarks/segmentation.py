"""What is pre-training worth for segmentation? UperNet on random weights, the dense control and a customised model.

    python benchmarks/segmentation.py --task DATA/camvid --mae-star runs/mae-star --moce runs/moce \
        --out results/segmentation

Every model is trained and tested by `moce evaluate --protocol segment` with the same options, one after the other;
the random weights have the shape of --mae-star. A run that was interrupted goes on when the command is repeated.
Written are OUT.json, the list of results, OUT.md, the table, and a folder per model with its predictions.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import moce
from moce.engine.files import write_json, write_whole
from moce.engine.runs import read_run
from moce.errors import run_script
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.weights import read_header, save_model


def random_weights(like: Path, folder: Path, seed: int) -> Path:
    """A run folder with a model of the shape of that in `like`, as it is before any training."""
    header = read_header(read_run(like).path / "model.safetensors")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = MaskedAutoencoder(AutoencoderShape.from_json(header["shape"]))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model.safetensors", model, {**header["about"], "method": "random weights"})
    write_json(folder / "config.json", {"verb": "pretrain", "options": {}})
    write_json(folder / "result.json", {})
    return folder


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a row per model, then the intersection over union of every class."""
    rows = ["| model | mean IoU | pixel accuracy | seconds |", "|---|---|---|---|"]
    for r in results:
        value, accuracy = (f"{100 * r[name]:.1f}" for name in ("value", "pixel_accuracy"))
        rows.append(f"| {r['method']} | {value} | {accuracy} | {r['seconds']:.0f} |")
    names = [r["method"] for r in results]
    rows += ["", f"| IoU of | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for place, score in enumerate(results[0]["scores"]):
        values = [r["per_class"][place] for r in results]
        shown = " | ".join("–" if value is None else f"{100 * value:.1f}" for value in values)
        rows.append(f"| {score['class']} | {shown} |")
    one = results[0]
    how = ", ".join(
        f"{name} {one['settings'][name]}" for name in ("preset", "steps", "batch_size", "image_size")
    )
    counts = f"{one['num_train']} + {one['num_val']} pictures to learn from, {one['num_test']} to test on"
    return "\n".join([f"{one['task']}: {counts}; {how}; seed {one['seed']}.", "", *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True)
    parser.add_argument("--mae-star", required=True, help="run folder; also the shape of the random weights")
    parser.add_argument("--moce", required=True, help="run folder of train-experts, or a customised model")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", required=True, help="path without an ending")
    given = parser.parse_args()
    out = Path(given.out)
    options = {"task": given.task, "protocol": "segment", "preset": given.preset, "seed": given.seed}
    options |= {"device": given.device, **({"steps": given.steps} if given.steps else {})}
    results = []
    random = random_weights(Path(given.mae_star), Path(f"{out}-random-weights"), given.seed)
    for name, model in {"random": random, "mae-star": given.mae_star, "moce": given.moce}.items():
        result = moce.evaluate(str(model), out=f"{out}-{name}", **options)
        assert isinstance(result, dict)
        results.append(result)
    write_json(f"{out}.json", results)
    with write_whole(f"{out}.md") as path:
        path.write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    run_script(main)
