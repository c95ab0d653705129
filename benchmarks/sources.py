"""Reading speed: the same pictures as parquet, tar, folder, hub and torchvision, before the same frozen encoder.

    python benchmarks/sources.py --images pictures.parquet --out results/sources
    python benchmarks/sources.py --opening --out results/opening

Two rows a source: `features` is the pass of stage 1 (decode, central crop, ViT-Ti/8 with random weights), `get` is
reading and decoding alone. The sources take turns, so that a machine whose speed drifts slows all of them alike.
Writes OUT.json: medians over the repeats of pictures per second of wall time and of CPU time, and of the ratio to the
folder in the same turn. With --opening: the seconds that opening a folder of many files and tars of many pictures
takes, of files written just before.
"""

import argparse
import io
import json
import os
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from PIL import Image

from moce.config import ClusterConfig, PretrainConfig
from moce.engine.devices import num_workers_of
from moce.engine.runs import source_commit
from moce.errors import run_script
from moce.images.reading import forget
from moce.images.sources import Source, open_images
from moce.images.tarindex import SETTLED
from moce.stages.features import look_at_all
from moce.stages.pretrain import new_model
from moce.verbs import resolve

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SHARD = 500  # pictures in a tar and in a row group


def written(folder: Path, source: Source, num: int) -> dict[str, str]:
    """The same JPEG files in every layout: {name: uri}."""
    (folder / "hub").mkdir()
    (folder / "tar").mkdir()
    data, labels = [], []
    tars = webdataset.ShardWriter(str(folder / "tar" / "%03d.tar"), maxcount=SHARD, verbose=0)
    for index in range(num):
        image, label = source.get(index * len(source) // num)
        path = folder / "files" / f"{label:04d}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=90)
        data.append({"bytes": path.read_bytes(), "path": path.name})
        labels.append(label)
        tars.write({"__key__": path.stem, "jpg": data[-1]["bytes"], "cls": label})
    tars.close()
    table = pa.table({"image": data, "label": labels})
    pq.write_table(table, folder / "train.parquet", row_group_size=SHARD)
    names = [str(number) for number in range(max(labels) + 1)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = datasets.Dataset.from_dict({"image": data, "label": labels}, features=features)
    rows.to_parquet(folder / "hub" / "train.parquet")
    return {
        "parquet": str(folder / "train.parquet"),
        "tar": f"wds:{folder}/tar/*.tar",
        "folder": str(folder / "files"),
        "hub": f"hf://{folder}/hub",
        "torchvision": f"torchvision://ImageFolder?root={folder}/files",
    }


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds; CPU time covers this process and the workers that ended within."""
    wall, cpu = time.perf_counter(), _cpu()
    work()
    return time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def opening(
    folder: Path, num_files: int, num_tars: int, num_members: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each repeat: listing a folder, asking for its fingerprint, tars gone through and by their index."""
    for number in range(num_files):
        path = folder / "files" / f"{number // 1000:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (folder / "tar").mkdir()
    for tar in range(num_tars):
        with tarfile.open(folder / "tar" / f"{tar:03d}.tar", "w") as archive:
            for number in range(num_members):
                for extension, data in (("jpg", bytes(2000)), ("cls", b"%d" % (number % 100))):
                    member = tarfile.TarInfo(f"{number:06d}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    time.sleep(SETTLED)  # newer tars get no index
    found: dict[str, list[float]] = {"folder": [], "fingerprint": [], "tars": [], "tars again": []}
    for repeat in range(repeats):
        os.environ["MOCE_CACHE"] = str(folder / f"cache-{repeat}")
        start = time.perf_counter()
        source = open_images(str(folder / "files"))
        listed = time.perf_counter()
        source.fingerprint()
        found["folder"].append(listed - start)
        found["fingerprint"].append(time.perf_counter() - listed)
        for name in ("tars", "tars again"):
            start = time.perf_counter()
            open_images(f"wds:{folder}/tar/*.tar")
            found[name].append(time.perf_counter() - start)
    return {name: [round(seconds, 3) for seconds in times] for name, times in found.items()}


def tell_opening(folder: Path, out: str) -> None:
    """Measure it, print it and write it down."""
    setting = {"num_files": 200_000, "num_tars": 10, "num_members": 10_000, "repeats": 5}
    seconds = opening(folder, **setting)
    machine = {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    content = {"setting": setting, "machine": machine, "commit": source_commit(), "seconds": seconds}
    Path(out + ".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, times in seconds.items():
        print(f"{name:<12} {min(times):.2f} to {max(times):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="toyworld://all?size=64")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--opening", action="store_true")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    if given.opening:
        with tempfile.TemporaryDirectory(prefix="moce-opening-") as name:
            tell_opening(Path(name), given.out)
        return
    options = {"images": "-", "out": "-", "quiet": True}
    model = new_model(resolve(PretrainConfig, options)).eval()
    config = resolve(ClusterConfig, {**options, "enc": "-", "num_workers": given.num_workers})
    with tempfile.TemporaryDirectory(prefix="moce-sources-") as name:
        folder = Path(name)
        os.environ["MOCE_CACHE"] = str(folder / "cache")
        datasets.config.HF_DATASETS_CACHE = folder / "prepared"
        datasets.disable_progress_bars()
        sources = {
            kind: open_images(uri)
            for kind, uri in written(folder, open_images(given.images), given.num).items()
        }

        def features(source: Source) -> None:
            forget()
            with torch.inference_mode():
                look_at_all(source, model, MEAN, STD, config, folder)

        def get(source: Source) -> None:
            for index in range(len(source)):
                source.get(index)

        works = {"features": features, "get": get}
        times: dict[tuple[str, str], list[tuple[float, float]]] = {
            (work, kind): [] for work in works for kind in sources
        }
        for repeat in range(given.repeats + 1):  # the first warms up
            for work, run in works.items():
                turn = list(sources.items())
                for kind, source in turn[repeat % len(turn) :] + turn[: repeat % len(turn)]:
                    seconds = timed(lambda: run(source))  # noqa: B023
                    if repeat:
                        times[work, kind].append(seconds)
    rows = []
    for (work, kind), seconds in times.items():
        against = times[work, "folder"]
        rows.append(
            {
                "name": work,
                "source": kind,
                "images_per_second": given.num / statistics.median(wall for wall, _ in seconds),
                "images_per_cpu_second": given.num / statistics.median(cpu for _, cpu in seconds),
                "seconds_min": min(wall for wall, _ in seconds),
                "seconds_max": max(wall for wall, _ in seconds),
                "ratio": statistics.median(b[0] / a[0] for a, b in zip(seconds, against)),
                "cpu_ratio": statistics.median(b[1] / a[1] for a, b in zip(seconds, against)),
                "against": "folder",
            }
        )
    setting = {
        "model": "vit-ti/8",
        "image_size": 64,
        "batch_size": config.batch_size,
        "num_images": given.num,
        "num_workers": num_workers_of(given.num_workers),
        "repeats": given.repeats,
        "images": given.images if "://" in given.images else Path(given.images).name,
    }
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }
    content = {"setting": setting, "machine": machine, "torch": torch.__version__, "commit": source_commit()}
    Path(given.out + ".json").write_text(
        json.dumps({**content, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    for row in rows:
        print(
            f"{row['name']:<10}{row['source']:<13}{row['images_per_second']:8.0f} images/s, "
            f"{row['images_per_cpu_second']:8.0f} per CPU second, {row['ratio']:.3f} of the folder "
            f"({row['cpu_ratio']:.3f} by CPU time)"
        )


if __name__ == "__main__":
    run_script(main)
