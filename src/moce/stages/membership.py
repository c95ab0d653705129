"""Which cluster the pictures of pre-training belong to: as stage 1 found it, dealt out anew, or some clusters alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from moce.engine.files import sha256_of
from moce.engine.randomness import uniform
from moce.engine.runs import read_run
from moce.errors import UserError
from moce.images.loader import readable_substitute
from moce.model.assigner import Assigner
from moce.model.autoencoder import MaskedAutoencoder
from moce.model.weights import fingerprint

CLUSTERS_FILE, LABELS_FILE = "clusters.safetensors", "labels.npy"


@dataclass(frozen=True)
class Clusters:
    """What stage 1 left: the assigner and the cluster of every picture, -1 where one could not be read."""

    assigner: Assigner
    found: Int64[Tensor, " pictures"]
    folder: Path

    @property
    def labels(self) -> Int64[Tensor, " pictures"]:
        """A cluster for every picture: an unreadable one has that of the picture that takes its place in training."""
        return substituted(self.found)

    def fingerprint(self) -> str:
        """What tells these clusters of the pictures from others."""
        return clusters_fingerprint(self.found)

    def shuffled(self, seed: int) -> "Clusters":
        """The same clusters dealt out to the readable pictures at random: every size stays, and nothing else."""
        readable = (self.found >= 0).nonzero().flatten()
        order = uniform(seed, "shuffled clusters", 0, readable, 1)[:, 0].argsort(stable=True)
        found = self.found.clone()
        found[readable] = self.found[readable[order]]
        return Clusters(self.assigner, found, self.folder)

    def as_trained(self, options: Mapping[str, Any]) -> "Clusters":
        """The clusters that a run of `moce train-experts` with these options trains on: these, or shuffled."""
        return self.shuffled(options["seed"]) if options.get("shuffle_clusters") else self

    def members(self, numbers: tuple[int, ...]) -> Int64[Tensor, " members"]:
        """Indices of the pictures of these clusters. UserError for a cluster that is not there or has no picture."""
        for number in numbers:
            if number >= self.assigner.num_clusters:
                raise UserError(
                    f"--only-clusters {number}: {self.folder} has {self.assigner.num_clusters} clusters; name some "
                    f"from 0 to {self.assigner.num_clusters - 1}."
                )
        chosen = torch.isin(self.found, torch.tensor(numbers)).nonzero().flatten()
        if not len(chosen):
            raise UserError(
                f"--only-clusters {','.join(map(str, numbers))}: no picture is in these clusters."
            )
        return chosen


def substituted(found: Int64[Tensor, " pictures"]) -> Int64[Tensor, " pictures"]:
    """The same, where an unreadable picture has the cluster of the one that takes its place in training."""
    unreadable = (found < 0).nonzero().flatten().tolist()
    return found[readable_substitute(unreadable, len(found))]


def clusters_fingerprint(found: Int64[Tensor, " pictures"]) -> str:
    """What tells these clusters of the pictures from others."""
    return sha256_of(substituted(found).numpy().tobytes())


def read_clusters(folder: str, dense: MaskedAutoencoder, images_fingerprint: str) -> Clusters:
    """The clusters of a run folder; UserError when they are of another encoder or of other pictures."""
    info = read_run(folder, "cluster")
    info.result()
    clusters = clusters_in(info.path)
    assigner = clusters.assigner
    if assigner.encoder_fingerprint != fingerprint(dense):
        raise UserError(
            f"The clusters in {folder} are of another encoder; run `moce cluster` on this dense model."
        )
    if assigner.images_fingerprint != images_fingerprint:
        raise UserError(
            f"The clusters in {folder} are of other pictures; give --images as they were for `moce cluster`."
        )
    return clusters


def found_in(folder: Path) -> Int64[Tensor, " pictures"]:
    """The cluster of every picture as a run of `moce cluster` left it; UserError when it cannot be read."""
    try:
        return torch.from_numpy(np.load(folder / LABELS_FILE))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{folder / LABELS_FILE} cannot be read ({error}); run `moce cluster` again."
        ) from None


def clusters_in(folder: Path) -> Clusters:
    """The clusters of a run folder, of whatever encoder and pictures."""
    return Clusters(Assigner.load(folder / CLUSTERS_FILE), found_in(folder), folder)
