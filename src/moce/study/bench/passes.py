"""Rows of everything behind training: a pass of the frozen encoder, customising, and the clusters of features."""

import shutil
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from moce.config import ClusterConfig
from moce.errors import UserError
from moce.images.normalise import IMAGENET
from moce.images.reading import forget
from moce.images.sources import open_images
from moce.model.weights import load_model
from moce.stages.balance import chunk_rows
from moce.stages.cluster import cluster, find_clusters
from moce.stages.customize import customize
from moce.stages.experts import train_experts
from moce.stages.features import ON_DISK_FROM, embed_in_place, look_at_all, room_for
from moce.stages.pretrain import pretrain
from moce.study.bench.settings import WIDTH, Setting
from moce.study.bench.timing import Call, Variant, wait_for
from moce.verbs import resolve

PATTERNS_PER_CLUSTER = 4  # synthetic features are noise around so many points for each cluster
CHUNK = 16_384


@dataclass
class Passes:
    """A model with experts, made by the verbs from a few built-in pictures, and the files that it looks at."""

    setting: Setting
    gate_start: str = "random"  # takes no time; what gates choose is another matter

    @property
    def batch_size(self) -> int:
        """Pictures per pass of the encoder: what the verbs take by default, unless another number is asked for."""
        return self.setting.options.batch_size or resolve(ClusterConfig, self._looking).batch_size

    @property
    def _looking(self) -> dict[str, Any]:
        shared = {"num_workers": self.setting.options.num_workers, "device": str(self.setting.device)}
        return {"enc": "-", "images": "-", "out": "-", "quiet": True, **shared}

    @cached_property
    def runs(self) -> Path:
        """A folder with runs mae, clusters and moce; one epoch, for what the weights are does not change the time."""
        amounts, folder, recipe = self.setting.amounts, self.setting.folder, self.setting.recipe
        side = min(self.setting.dense.image_size, 256)
        pictures = f"toyworld://all?split=train&num={amounts.pipeline_images}&size={side}"
        pretrain(images=pictures, out=folder / "mae", epochs=1, **recipe)
        shared = {name: recipe[name] for name in ("device", "num_workers", "seed", "quiet")}
        cluster(
            folder / "mae",
            images=pictures,
            out=folder / "clusters",
            num_clusters=amounts.pipeline_clusters,
            **shared,
        )
        runs = (folder / "mae", folder / "clusters")
        options = {"gate": "cluster", "gate_start": self.gate_start, "epochs": 1, **recipe}
        train_experts(*runs, images=pictures, out=folder / "moce", **options)
        return folder

    def features(self) -> Call:
        """One pass of the frozen encoder over all files, decoding included."""
        setting = self.setting
        model, _ = load_model(self.runs / "mae", setting.device)
        config = resolve(ClusterConfig, {**self._looking, "batch_size": self.batch_size})

        def look() -> None:
            forget()  # what an earlier pass decoded
            source = open_images(str(setting.files))
            look_at_all(source, model, *IMAGENET, config, setting.folder)

        return Call(look, model.encoder_flops(model.shape.num_patches), setting.device)

    def customize(self) -> Call:
        """`moce customize` from reading the model to the folder that it leaves."""
        setting, runs = self.setting, self.runs
        model, _ = load_model(runs / "mae")
        options = {name: self._looking[name] for name in ("num_workers", "device", "quiet")}

        def slice_out() -> None:
            forget()
            customize(
                runs / "moce",
                images=str(setting.files),
                out=setting.folder / "customised",
                overwrite=True,
                batch_size=self.batch_size,
                **options,
            )

        return Call(slice_out, model.encoder_flops(model.shape.num_patches), setting.device)


@dataclass
class Clustering:
    """Balanced clusters of synthetic features that fall into more patterns than there are clusters."""

    setting: Setting
    flops_per_image: float = 0.0

    def __post_init__(self) -> None:
        number, width = self.setting.amounts.cluster_images, WIDTH[self.setting.model]
        refuse_too_large(number, width, self.setting.folder)
        self.features = room_for(number, width, self.setting.folder)
        generator = torch.Generator().manual_seed(self.setting.options.seed)
        patterns = torch.randn(PATTERNS_PER_CLUSTER * self.setting.num_clusters, width, generator=generator)
        for chunk in self.features.split(CHUNK):
            kind = torch.randint(len(patterns), (len(chunk),), generator=generator)
            chunk.copy_(patterns[kind] + torch.randn(chunk.shape, generator=generator))
        embed_in_place(self.features)

    def seconds(self) -> float:
        """Of all of it: k-means, plans and one label per picture."""
        clusters, ticks = self.setting.num_clusters, 0
        shared = {"device": str(self.setting.device), "seed": self.setting.options.seed}
        config = resolve(
            ClusterConfig, {"enc": "-", "images": "-", "out": "-", "num_clusters": clusters, **shared}
        )

        def tick() -> None:
            nonlocal ticks
            ticks += 1

        wait_for(self.setting.device)
        started = time.perf_counter()
        found = find_clusters(self.features, config, self.setting.device, tick)
        wait_for(self.setting.device)
        took = time.perf_counter() - started
        width = self.features.shape[1]
        products = 2 * width * clusters  # features by centroids
        iterations, plans = ticks - found.rounds, found.passes - found.rounds
        self.flops_per_image = products * (iterations + 2 * found.rounds + plans) + 2 * clusters**2 * plans
        return took


def refuse_too_large(number: int, width: int, folder: Path) -> None:
    """UserError when the synthetic features do not fit on the disk of temporary files."""
    folder.mkdir(parents=True, exist_ok=True)
    if number * width * 4 >= ON_DISK_FROM and shutil.disk_usage(folder).free < number * width * 4:
        raise UserError(
            f"--cluster-images {number} needs {number * width * 4 / 2**20:,.0f} MiB for temporary files, more than "
            f"is free in {folder.parent.parent}; give fewer, or name another place in TMPDIR."
        )


def pass_variants(setting: Setting) -> list[Variant]:
    """The rows over all files, which take turns."""
    passes = Passes(setting)
    about = setting.about("fp32", passes.batch_size, pictures=setting.about_files())
    images = setting.amounts.num_files

    def prepare() -> None:
        passes.runs, setting.files  # noqa: B018 - made here, used by both

    return [
        Variant("features", about, images, passes.features, prepare=prepare),
        Variant("customize", about, images, passes.customize, "features", prepare),
    ]


def cluster_variants(setting: Setting) -> list[Variant]:
    """The row of clusters; its batch is the chunk of pictures that is scored at a time."""
    images, clusters = setting.amounts.cluster_images, setting.num_clusters
    width = WIDTH[setting.model]
    rows = chunk_rows(clusters, width, setting.device)
    about = setting.about("fp32", rows, num_images=images, width=width, num_clusters=clusters)
    return [Variant("clusters", about, images, partial(Clustering, setting))]
