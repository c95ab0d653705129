"""How fast pictures reach a model at 224, from a folder of 500 x 375 JPEGs and from what `moce prepare` makes of it.

    python benchmarks/prepare.py --work runs/prepare --out results/prepare.json

`plain` is the usual recipe: Pillow's open and convert, torchvision's RandomResizedCrop (bicubic), flip and ToTensor
in DataLoader workers; `decoding alone` is Pillow's work in it. The others are this program's batches, mirrored and
normalised by the main process, as in training. Rounds are interleaved, so that whatever else the machine does hits
all alike; ratios are those of the same round. The pictures are random crops of the two photographs that scikit-learn
brings, unless --images names a folder.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

import moce
from moce.engine.devices import keep_freed_memory
from moce.errors import run_script
from moce.images.augment import finish, flips
from moce.images.loader import training_batches
from moce.images.sampler import Order
from moce.images.sources import open_images

TOLD = ("num_images", "bytes_before", "bytes_after", "decoded_per_second_before", "decoded_per_second_after")
SIDE, BATCH, SCALE = 224, 64, (0.2, 1.0)
WARM, COUNTED = 12, 36  # batches


def photographs(folder: Path, number: int, quality: int) -> Path:
    """`number` JPEGs of 500 x 375, as ImageNet's mostly are, in 4 classes."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for i in range(number):
        path = folder / str(i % 4) / f"{i:05d}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = photos[i % 2]
        left, top = (int(rng.integers(0, room + 1)) for room in (photo.width - 500, photo.height - 375))
        crop = photo.crop((left, top, left + 500, top + 375))
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 3 else crop
        crop.save(path, quality=quality)
    return folder


def plain(folder: Path, workers: int) -> Iterator[int]:
    """The usual recipe; yields the number of pictures of each batch."""
    ways = torchvision.transforms
    data = torchvision.datasets.ImageFolder(
        str(folder),
        ways.Compose(
            [
                ways.RandomResizedCrop(SIDE, SCALE, interpolation=ways.InterpolationMode.BICUBIC),
                ways.RandomHorizontalFlip(),
                ways.ToTensor(),
            ]
        ),
    )
    order = RandomSampler(data, replacement=True, num_samples=1 << 40)  # goes on for as long as one asks
    fork = "fork" if workers else None  # as ours: workers need not import torch anew
    for images, _ in DataLoader(
        data, BATCH, sampler=order, num_workers=workers, multiprocessing_context=fork
    ):
        yield len(images)


def ours(folder: Path, workers: int, cache_gib: float = 0.0) -> Iterator[int]:
    """This program's batches, endlessly; nothing is kept decoded in memory unless `cache_gib` allows it."""
    source = open_images(str(folder))
    order = Order(len(source), BATCH, seed=0)
    for batch in training_batches(
        source, order, SIDE, SCALE[0], 0, 0, 1 << 30, workers, cache_gib=cache_gib, quiet=True
    ):
        yield len(finish(batch.images, flips(0, batch.epochs, batch.indices)))


def decoding(folder: Path, workers: int) -> Iterator[int]:
    """Pillow's decoding alone, in this process: what nothing that decodes all of a picture can do without."""
    assert workers == 0
    paths = sorted(folder.rglob("*.jpg"))
    for number in itertools.count():
        for path in (paths[(number * BATCH + i) % len(paths)] for i in range(BATCH)):
            np.asarray(Image.open(path).convert("RGB"))
        yield BATCH


def measured(recipe: Callable[..., Iterator[int]], arguments: tuple[Any, ...]) -> tuple[float, float]:
    """(pictures a second, CPU milliseconds a picture) over some batches in the middle of an endless stream.

    Before them the workers have started and filled their queues, after them they go on: what is counted is made
    meanwhile. The CPU time is that of this process and its workers.
    """
    keep_freed_memory()  # as in training
    batches = recipe(*arguments)
    for _ in range(WARM):
        next(batches)
    start, busy, count = time.perf_counter(), cpu_seconds(), 0
    for _ in range(COUNTED):
        count += next(batches)
    took, busy = time.perf_counter() - start, cpu_seconds() - busy
    cores = len(os.sched_getaffinity(0))
    assert busy <= 1.02 * took * cores, f"{busy:.1f} s of CPU time in {took:.1f} s on {cores} cores"
    return count / took, 1000 * busy / count


def cpu_seconds() -> float:
    """Of this process and its living children."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            after_name = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(after_name[11]) + int(after_name[12])) / ticks
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the pictures, kept for the next time"
    )
    parser.add_argument("--images", type=Path, help="a folder of JPEGs in classes, instead of made ones")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--number", type=int, default=1536)
    parser.add_argument("--quality", type=int, default=95)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    folder = given.images or photographs(given.work / "folder", given.number, given.quality)
    told = {}
    for kind in ("parquet", "array"):
        told[kind] = moce.prepare(
            images=folder, out=given.work / kind, short_side=SIDE, format=kind, quiet=True
        )
    recipes: dict[str, tuple[Callable[..., Iterator[int]], Any]] = {
        "plain": (plain, (folder, given.workers)),
        "decoding alone, no workers": (decoding, (folder, 0)),
        "folder": (ours, (folder, given.workers)),
        "prepared parquet": (ours, (given.work / "parquet", given.workers)),
        "prepared array": (ours, (given.work / "array", given.workers)),
        "prepared array, no workers": (ours, (given.work / "array", 0, 64.0)),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
    # Each in a process of its own: what an earlier one left in memory would slow down the workers of the next.
    new_process = multiprocessing.get_context("spawn")
    for _ in range(given.rounds):
        for name, recipe in recipes.items():
            with ProcessPoolExecutor(1, new_process) as pool:
                found[name].append(pool.submit(measured, *recipe).result())
    rows = [row(name, runs, found["plain"]) for name, runs in found.items()]
    for r in rows:
        print(
            f"{r['name']:28} {r['images_per_second']:6.0f} images/s, {r['ratio']:.2f} x plain "
            f"({r['ratio_min']:.2f} to {r['ratio_max']:.2f}); CPU {r['cpu_ms']:.2f} ms a picture "
            f"({r['cpu_ms_min']:.2f} to {r['cpu_ms_max']:.2f}), {r['cpu_ratio']:.2f} times less"
        )
    content = {
        "about": f"loader at {SIDE}, {given.workers} workers, batches of {BATCH}, {given.rounds} rounds",
        "machine": {"cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()},
        "prepared": {kind: {name: result[name] for name in TOLD} for kind, result in told.items()},
        "rows": rows,
    }
    if given.out:
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def row(name: str, runs: list[tuple[float, float]], plain_runs: list[tuple[float, float]]) -> dict[str, Any]:
    """One line of the result; ratios are those of the same round, their median, least and largest."""
    rates, costs = zip(*runs)
    ratios = [rate / plain_rate for (rate, _), (plain_rate, _) in zip(runs, plain_runs)]
    savings = [plain_cost / cost for (_, cost), (_, plain_cost) in zip(runs, plain_runs)]
    numbers = {
        "images_per_second": statistics.median(rates),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "cpu_ms": statistics.median(costs),
        "cpu_ms_min": min(costs),
        "cpu_ms_max": max(costs),
        "cpu_ratio": statistics.median(savings),
        "cpu_ratio_min": min(savings),
        "cpu_ratio_max": max(savings),
    }
    return {"name": name, "against": "plain", **{key: round(value, 3) for key, value in numbers.items()}}


if __name__ == "__main__":
    run_script(main)
