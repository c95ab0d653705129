"""What explains which expert a patch goes to, in finished runs: its colour, its place, the picture's cluster or class.

    python benchmarks/gate_colours.py runs/tokenmoe runs/moce --clusters runs/clusters --images DATA --out FILE

`moce train-experts` leaves the same numbers in each run's patches.safetensors, for 256 pictures; here it is --pictures
of them, several times. With --write they go into runs that have no such file yet.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from moce.engine.devices import pick_device
from moce.engine.files import write_json
from moce.engine.runs import read_run, source_commit
from moce.errors import UserError, run_script
from moce.images.sources import open_images
from moce.methods import experts_method
from moce.model.experts import ExpertAutoencoder
from moce.model.weights import load_model
from moce.stages.membership import read_clusters
from moce.stages.patches import PATCHES_FILE, write_patches


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--clusters", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out")
    given = parser.parse_args()
    device, source = pick_device(given.device), open_images(given.images)
    dense, _ = load_model(read_run(read_run(given.clusters, "cluster").config["enc"], "pretrain").path)
    clusters = read_clusters(given.clusters, dense, source.fingerprint())
    rows: list[dict[str, Any]] = []
    for path in given.runs:
        info = read_run(path, "train-experts")
        model, header = load_model(info.path, device)
        if not isinstance(model, ExpertAutoencoder):
            raise UserError(f"{path} has no experts: give runs of --gate cluster or token.")
        labels = clusters.as_trained(info.config).labels
        found, seconds = [], []
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as scratch:
                target = info.path if given.write and not seed else Path(scratch)
                start = time.perf_counter()
                look = (labels, header["about"], clusters.assigner.crop_pct, seed)
                found.append(
                    write_patches(target / PATCHES_FILE, model, source, *look, num_pictures=given.pictures)
                )
                seconds.append(time.perf_counter() - start)
        for layer in found[0]["explained"]:
            each = {x: [f["explained"][layer][x] for f in found] for x in found[0]["explained"][layer]}
            means = {x: None if None in v else round(statistics.mean(v), 4) for x, v in each.items()}
            row = {"run": path, "method": experts_method(info.config), "layer": int(layer), **means}
            rows.append({**row, "seconds": round(statistics.median(seconds), 2)})
            print(rows[-1], flush=True)
    if given.out:
        about = {"pictures": given.pictures, "seeds": given.seeds, "commit": source_commit()}
        write_json(given.out, {**about, "rows": rows})


if __name__ == "__main__":
    run_script(main)
