"""What stage 1 costs beyond the features: time, memory and quality of the clusters of a million pictures.

    python benchmarks/clusters.py --work runs/clusters --out results/clusters.json

The features are made: a mixture of 1000 classes whose sizes follow a power law, in 40 groups, with a decaying spectrum
and so much noise that classes overlap. They lie in a file, as those of `moce cluster` do from 1 GiB on. Memory is what
the process holds besides that file (RssAnon), sampled 20 times a second, less what it held at the start. With --faiss
the same features also go to faiss's spherical k-means (pip install faiss-cpu), every point in each of its 25 rounds: it
balances nothing, so it is what clusters without a constraint cost.
"""

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moce.config import ClusterConfig
from moce.engine.devices import keep_freed_memory
from moce.errors import run_script
from moce.model.assigner import cosines
from moce.stages import balance, cluster
from moce.stages.agreement import normalised_mutual_information, purity
from moce.stages.features import embed_in_place

CLASSES, GROUPS = 1000, 40


def mixture(path: Path, number: int, width: int) -> tuple[torch.Tensor, np.ndarray]:
    """(features in a file, the class of each); made once, by one seed."""
    draw = torch.Generator().manual_seed(0)
    share = torch.arange(1, CLASSES + 1).float() ** -0.7
    classes = torch.multinomial(share, number, replacement=True, generator=draw)
    spectrum = torch.arange(1, width + 1).float() ** -0.5
    spectrum /= spectrum.norm()
    groups = torch.randn(GROUPS, width, generator=draw)[torch.randint(0, GROUPS, (CLASSES,), generator=draw)]
    centres = 0.8 * spectrum * (groups + torch.randn(CLASSES, width, generator=draw))
    spread = 1.3 * (0.6 + 0.8 * torch.rand(CLASSES, generator=draw))
    made = path.exists() and path.stat().st_size == number * width * 4
    features = np.memmap(path, np.float32, "r+" if made else "w+", shape=(number, width))
    for start in () if made else range(0, number, 8192):
        own = classes[start : start + 8192]
        noise = torch.randn(len(own), width, generator=draw) * spectrum
        features[start : start + 8192] = (centres[own] + noise * spread[own][:, None]).numpy()
    return torch.from_numpy(features), classes.numpy()


class Costs:
    """Wall and CPU seconds of named parts, and the memory that the process holds by itself."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.start = self.peak = anonymous_bytes()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.05)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        wall, busy = time.perf_counter(), time.process_time()
        yield
        part = self.parts.setdefault(name, [0.0, 0.0, 0])
        for i, grown in enumerate((time.perf_counter() - wall, time.process_time() - busy, 1)):
            part[i] += grown

    def watch(self, module: Any, name: str) -> None:
        """Count the calls of a function of a module as a part of its own."""
        function: Callable[..., Any] = getattr(module, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.of(name):
                return function(*arguments, **options)

        setattr(module, name, counted)


def anonymous_bytes() -> int:
    """Memory of this process that belongs to no file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def faiss_kmeans(
    features: np.ndarray, classes: np.ndarray, num_clusters: int, costs: Costs
) -> dict[str, Any]:
    """{rounds, mean_cosine, nmi} of faiss's spherical k-means on all points; its time is a part of `costs`."""
    import faiss  # only here: it brings a second OpenMP

    faiss.omp_set_num_threads(torch.get_num_threads())
    points = np.ascontiguousarray(features)
    with costs.of("faiss"):
        kmeans = faiss.Kmeans(
            points.shape[1],
            num_clusters,
            niter=25,
            spherical=True,
            max_points_per_centroid=len(points),
            seed=0,
        )
        kmeans.train(points)
        scores, labels = kmeans.index.search(points, 1)
    return {
        "version": faiss.__version__,
        "rounds": 25,
        "mean_cosine": round(float(scores.astype(np.float64).mean()), 5),
        "nmi": round(normalised_mutual_information(labels[:, 0], classes), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the features, kept for the next time"
    )
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--number", type=int, default=1_280_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--clusters", type=int, default=256)
    parser.add_argument("--features", type=Path, help=".npy of real features instead of made ones")
    parser.add_argument("--classes", type=Path, help=".npy of their classes")
    parser.add_argument("--faiss", action="store_true", help="compare with faiss's k-means")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()  # as in `moce cluster`
    if given.features:
        features, classes = (
            torch.from_numpy(np.load(given.features).astype(np.float32)),
            np.load(given.classes),
        )
    else:
        drawn = (given.work / "features.f32", given.number, given.width)
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # what drawing them takes is not counted
            apart.submit(mixture, *drawn).result()
        features, classes = mixture(*drawn)
    config = ClusterConfig(enc="", images="", out="", num_clusters=given.clusters)
    costs = Costs()
    for module, name in (
        (balance, "spread_out_centroids"),
        (balance, "spherical_kmeans"),
        (balance, "sinkhorn"),
        (balance, "plan_centroids"),
        (cluster, "balanced_clusters"),
        (cluster, "best_and_regret"),
        (cluster, "capacity_labels"),
    ):
        costs.watch(module, name)
    with costs.of("all"):
        with costs.of("embed_in_place"):
            embed_in_place(features)
        found = cluster.find_clusters(features, config, torch.device("cpu"))
    extra = costs.peak - costs.start
    rival = faiss_kmeans(features.numpy(), classes, given.clusters, costs) if given.faiss else None
    fit = cosines(features, found.centroids, found.argmax_labels)
    content = {
        "about": f"{len(features):,} x {features.shape[1]} features, {given.clusters} clusters",
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "parts": {
            name: {"seconds": round(wall, 1), "cpu_seconds": round(busy, 1), "calls": calls}
            for name, (wall, busy, calls) in costs.parts.items()
        },
        **({"faiss": rival} if rival else {}),
        "extra_bytes": extra,
        "rounds": found.rounds,
        "passes": found.passes,
        "mean_cosine": round(float(fit.double().mean()), 5),
        "nmi": round(normalised_mutual_information(found.labels.numpy(), classes), 4),
        "nmi_argmax": round(normalised_mutual_information(found.argmax_labels.numpy(), classes), 4),
        "purity": round(purity(found.labels.numpy(), classes), 4),
        **cluster.balance_of(len(features), found, config),
    }
    print(json.dumps(content, indent=1))
    if given.out:
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    np.save(given.work / "labels.npy", found.labels.numpy())


if __name__ == "__main__":
    run_script(main)
