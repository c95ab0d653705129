"""Clusters dealt out at random, and the pictures of some clusters alone."""

from pathlib import Path

import pytest
import torch

from moce.config import ExpertsConfig
from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.images.loader import survey
from moce.images.sources import open_images
from moce.model.assigner import Assigner
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.stages.feed import open_feed
from moce.stages.membership import Clusters
from moce.verbs import resolve

FOUND = torch.tensor([0, 0, 0, 1, 1, 2, -1, 2, 3, 1] * 5)


def clusters() -> Clusters:
    """Five clusters, the last of them empty."""
    shape = AutoencoderShape("test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
    assigner = Assigner(
        encoder=MaskedAutoencoder(shape), centroids=torch.eye(64)[:5], potentials=torch.zeros(5),
        mean=torch.zeros(64), eps=0.05, crop_pct=1.0, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD,
        images_fingerprint="0" * 16, encoder_fingerprint="1" * 16, cosine_quantiles=torch.zeros(1001),
        sizes=torch.tensor([15, 15, 10, 5, 0]),
    )  # fmt: skip
    return Clusters(assigner, FOUND, Path("runs/clusters"))


def test_shuffled_clusters_keep_their_sizes_and_leave_unreadable_pictures_alone() -> None:
    dealt = clusters().shuffled(0)
    assert torch.equal((dealt.found < 0), (FOUND < 0))
    assert torch.equal(dealt.found[FOUND >= 0].bincount(), FOUND[FOUND >= 0].bincount())
    assert (dealt.found != FOUND).sum() > 10
    assert torch.equal(dealt.found, clusters().shuffled(0).found)
    assert not torch.equal(dealt.found, clusters().shuffled(1).found)


def test_every_picture_has_a_cluster_in_training() -> None:
    labels = clusters().labels
    assert (labels >= 0).all() and labels[6] == FOUND[7]
    assert torch.equal(labels[FOUND >= 0], FOUND[FOUND >= 0])


def test_members_of_some_clusters() -> None:
    assert clusters().members((2, 3))[:4].tolist() == [5, 7, 8, 15]
    with pytest.raises(
        UserError, match="--only-clusters 5: runs/clusters has 5 clusters; name some from 0 to 4"
    ):
        clusters().members((0, 5))
    with pytest.raises(UserError, match="--only-clusters 4: no picture is in these clusters"):
        clusters().members((4,))


def test_selected_pictures_alone_are_seen_for_as_many_steps_as_all(tiny_folder: Path) -> None:
    source = open_images(str(tiny_folder))
    options = {"mae": "m", "clusters": "c", "images": "x", "out": "y", "preset": "debug", "num_workers": 0}
    config = resolve(ExpertsConfig, {**options, "batch_size": 7, "epochs": 4, "quiet": True})
    selected = torch.tensor([3, 8, 9, 17, 20])
    seen, steps = {}, {}
    for name, chosen in (("all", None), ("selected", selected)):
        feed = open_feed(source, survey(source, quiet=True), (16, 16), config, chosen)
        batches = list(feed.batches(0, 0, 1))
        seen[name] = set(torch.cat([batch.indices for batch in batches]).tolist())
        steps[name] = (feed.plan.num_steps, len(batches), len(feed.order))
    assert seen == {"all": set(range(24)), "selected": set(selected.tolist())}
    assert steps == {"all": (14, 14, 24), "selected": (14, 14, 5)}
