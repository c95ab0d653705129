"""How large the page of a large run is, how long it takes to write, and how long Chromium takes to open it.

    python benchmarks/page.py --out page.json --clusters 256 --side 96

Makes a run folder of that many clusters (16 small pictures of `side` pixels each, noise whose spectrum falls as that of
photographs does), a routing map of it and 33 evaluations, and writes its page. Opening is timed inside the browser, in
a copy of the page to which a script was added: from the start of the navigation to the load event, when everything is
parsed and every picture is there (`load`), and until all open parts are laid out and two frames were drawn (`drawn`).
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import moce
from moce.engine.files import write_json
from moce.errors import run_script
from moce.model.assigner import Assigner
from moce.model.weights import write_tensors

TOY = "toyworld://all?split=train&num=256&size=32"
PICTURES = 50_000
SCRIPT = """<script>addEventListener("load", () => { const load = performance.now(); document.body.offsetHeight;
requestAnimationFrame(() => requestAnimationFrame(() => console.log("opened " + load + " " + performance.now()))); });
</script>"""


def photographs(num: int, side: int) -> torch.Tensor:
    """uint8 [num, 3, side, side]: noise of every scale, the coarser the stronger."""
    total = torch.zeros(num, 3, side, side)
    scale = 1
    while scale <= side:
        total += F.interpolate(torch.randn(num, 3, scale, scale), (side, side), mode="bilinear") / scale**0.5
        scale *= 2
    return (127 + 60 * total / total.std()).clamp(0, 255).byte()


def large_run(folder: Path, num_clusters: int, side: int, num_experts: int = 8) -> list[str]:
    """A run with that many clusters and evaluations of it; the paths that `moce report` takes."""
    runs = {name: folder / name for name in ("mae", "clusters", "moce", "tokenmoe")}
    moce.pretrain(images=TOY, out=runs["mae"], preset="debug", quiet=True)
    moce.cluster(runs["mae"], images=TOY, out=runs["clusters"], quiet=True)
    for name, gate in (("moce", "cluster"), ("tokenmoe", "token")):
        moce.train_experts(runs["mae"], runs["clusters"], images=TOY, gate=gate, out=runs[name], quiet=True)
    moce.customize(runs["moce"], images=TOY, out=folder / "task", quiet=True)
    torch.manual_seed(0)
    content = {
        "images": photographs(num_clusters * 16, side).reshape(num_clusters, 16, 3, side, side),
        "indices": torch.arange(num_clusters * 16).reshape(num_clusters, 16),
        "features": torch.zeros(num_clusters, 16, 4, dtype=torch.float16),
    }
    experts = torch.randint(0, num_experts, (num_clusters,))
    gates = (0.02 + 0.9 * F.one_hot(experts, num_experts)).tolist()
    for name in ("clusters", "moce", "tokenmoe"):
        write_tensors(runs[name] / "thumbs" / "thumbs.safetensors", content, {"kind": "thumbs", "nearest": 8})
        assigner = Assigner.load(runs[name] / "clusters.safetensors")
        assigner.centroids, assigner.potentials = torch.randn(num_clusters, 64), torch.zeros(num_clusters)
        assigner.sizes = torch.full((num_clusters,), PICTURES // num_clusters)
        assigner.save(runs[name] / "clusters.safetensors")
        summary = json.loads((runs[name] / "clusters.json").read_text())
        write_json(
            runs[name] / "clusters.json", {**summary, "num_images": PICTURES, "num_clusters": num_clusters}
        )
    table = {"expert": experts.tolist(), "gate": gates}
    write_json(runs["moce"] / "routing.json", {"1": table, "3": table})
    rows = [
        {
            "schema": 1,
            "model": "m",
            "model_fingerprint": "f",
            "method": method,
            "task": f"task {t}",
            "seed": 0,
        }
        | {"protocol": "linear", "metric": "top1", "value": 0.5 + t / 50, "num_test": 500, "settings": {}}
        for t in range(11)
        for method in ("MAE", "MAE*", "MoCE")
    ]
    write_json(folder / "evaluations.json", rows)
    return [str(path) for path in (*runs.values(), folder / "task", folder / "evaluations.json")]


def opened(page: Path, browser: str, folder: Path) -> tuple[float, float]:
    """Seconds until (load event, drawn) in a headless browser of its own."""
    timed = folder / "timed.html"
    timed.write_text(page.read_text("utf-8").replace("</body>", SCRIPT + "</body>"), "utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as profile:
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--v=0",
        ]
        command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
        command += ["--disable-sync", f"--user-data-dir={profile}", "--window-size=1280,1000"]
        command += [f"--screenshot={folder / 'shot.png'}", timed.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = re.search(r"opened ([0-9.]+) ([0-9.]+)", done.stderr)
    assert found, f"the browser did not say when it was done: {done.stderr[-2000:]}"
    return float(found[1]) / 1000, float(found[2]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out")
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", help="leave the page here")
    given = parser.parse_args()
    browser = next(
        path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts, page = large_run(folder, given.clusters, given.side), folder / "page.html"
        start = time.perf_counter()
        size = moce.report(parts, out=page, quiet=True)["bytes"]
        seconds = time.perf_counter() - start
        times = [opened(page, browser, folder) for _ in range(given.repeats)]
        if given.keep:
            shutil.copyfile(page, given.keep)
    loads, drawn = ([round(t[i], 3) for t in times] for i in (0, 1))
    result: dict[str, Any] = {"clusters": given.clusters, "side": given.side, "bytes": size}
    result |= {"seconds_to_write": round(seconds, 2), "seconds_to_load": loads, "seconds_to_draw": drawn}
    result |= {"median_load": statistics.median(loads), "median_drawn": statistics.median(drawn)}
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    run_script(main)
