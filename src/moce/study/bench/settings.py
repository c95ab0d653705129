"""What the rows are measured on: two models, how much of everything, and the files that are made for it."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from moce.config import BenchConfig, ClusterConfig, ExpertsConfig, PretrainConfig
from moce.engine.devices import multiplies_in_bf16, num_workers_of
from moce.images.augment import centre_crop
from moce.images.shrink import jpeg
from moce.images.sources import open_images
from moce.verbs import resolve

PRESET = {"vit-ti/8": "tiny-imagenet", "vit-b/16": "paper-vit-b"}
WIDTH = {"vit-ti/8": 192, "vit-b/16": 768}  # of features
# (height, width) of the JPEG files, in turn: of one size, which is kept decoded in memory, or of two as photographs
# are, which worker processes decode anew for every crop.
FILE_SIZES = {"vit-ti/8": [(64, 64)], "vit-b/16": [(375, 500), (375, 500), (500, 375)]}
QUALITY = 90
KEYS = ("model", "image_size", "batch_size", "precision", "device")  # of a setting that is "the same"


@dataclass(frozen=True)
class Amounts:
    """How much work a turn is: enough to be timed well, little enough for all rows to take minutes."""

    batch_size: int
    num_files: int
    step_calls: int  # steps that are timed together
    train_steps: int  # of a training run, the first quarter untimed
    load_batches: int
    cluster_images: int
    pipeline_images: int = 128  # that the model to customise is trained and clustered on
    pipeline_clusters: int = 64


AMOUNTS = {
    ("vit-ti/8", "cpu"): Amounts(128, 1024, 3, 16, 16, 200_000),
    ("vit-ti/8", "cuda"): Amounts(512, 4096, 20, 64, 32, 1_000_000),
    ("vit-b/16", "cpu"): Amounts(16, 64, 1, 4, 16, 20_000, pipeline_images=32, pipeline_clusters=16),
    ("vit-b/16", "cuda"): Amounts(128, 1024, 10, 16, 16, 200_000),
}
QUICK = Amounts(4, 8, 1, 3, 2, 512, pipeline_images=16, pipeline_clusters=8)


@dataclass(frozen=True)
class Setting:
    """One of the models on one device."""

    model: str
    amounts: Amounts
    device: torch.device
    bf16: bool
    options: BenchConfig
    folder: Path  # for whatever has to be on disk; removed afterwards

    @property
    def num_workers(self) -> int:
        """Processes that decode pictures."""
        return num_workers_of(self.options.num_workers)

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that every training here has."""
        return {
            "preset": PRESET[self.model],
            "batch_size": self.amounts.batch_size,
            "precision": self.options.precision,
            "device": str(self.device),
            "num_workers": self.options.num_workers,
            "seed": self.options.seed,
            "quiet": True,
        }

    @functools.cached_property
    def dense(self) -> PretrainConfig:
        """The config of the dense model."""
        return resolve(PretrainConfig, {"images": "-", "out": "-", **self.recipe})

    def experts(self, gate: str) -> ExpertsConfig:
        """The config of experts, or of a control; with --quick gates are not fitted, which takes seconds."""
        start = {"gate_start": "random"} if self.options.quick else {}
        places = {"mae": "-", "clusters": "-", "images": "-", "out": "-"}
        return resolve(ExpertsConfig, {**places, "gate": gate, **start, **self.recipe})

    @property
    def num_clusters(self) -> int:
        """Clusters of the recipe."""
        return resolve(
            ClusterConfig, {"enc": "-", "images": "-", "out": "-", "preset": PRESET[self.model]}
        ).num_clusters

    def about(
        self, precision: str | None = None, batch_size: int | None = None, **more: Any
    ) -> dict[str, Any]:
        """The `setting` of a row; by default that of training."""
        return {
            "model": self.model,
            "image_size": self.dense.image_size,
            "batch_size": batch_size or self.amounts.batch_size,
            "precision": precision or ("bf16" if self.bf16 else "fp32"),
            "device": str(self.device),
            **more,
        }

    @functools.cached_property
    def files(self) -> Path:
        """A folder of JPEG files of one size, drawn from --images or built in; made when it is first asked for."""
        sizes = FILE_SIZES[self.model]
        side = min(max(sizes[0]), 256)
        default = f"toyworld://all?split=train&num={self.amounts.num_files}&size={side}"
        source = open_images(self.options.images or default)
        path = self.folder / "files"
        path.mkdir(parents=True)
        for number in range(self.amounts.num_files):
            image = centre_crop(source.get(number % len(source))[0], sizes[number % len(sizes)])
            (path / f"{number:06d}.jpg").write_bytes(jpeg(image, QUALITY))
        return path

    def about_files(self) -> str:
        """Which pictures these are, for people."""
        height, width = FILE_SIZES[self.model][0]
        made_of = self.options.images or "toyworld://all"
        return f"{self.amounts.num_files} JPEG files of {width}x{height} from {made_of}"


def settings_of(config: BenchConfig, device: torch.device, folder: Path) -> list[Setting]:
    """The settings that are asked for; by default the large model only where there is a GPU."""
    by_default = list(PRESET) if device.type == "cuda" else ["vit-ti/8"]
    found = []
    for model in dict.fromkeys(config.models or by_default):
        amounts = QUICK if config.quick else AMOUNTS[model, device.type]
        if config.batch_size is not None:
            amounts = replace(amounts, batch_size=config.batch_size)
        if config.cluster_images is not None:
            amounts = replace(amounts, cluster_images=config.cluster_images)
        bf16 = multiplies_in_bf16(device, config.precision)
        found.append(Setting(model, amounts, device, bf16, config, folder / model.replace("/", "-")))
    return found
