"""Which expert every patch of some pictures goes to, and what explains it: the patch's colour or something else.

The paper's reason for gates that read the cluster is that gates which read the token follow low-level colour (its
figure 1b). Here that is a number. With E the expert of a patch and X what may explain it,

    explained(X) = (I(E; X) - chance) / (H(E) - chance)

is 0 where knowing X says nothing about the expert and 1 where it says everything: mutual information over the entropy
of the choice, corrected for chance as the adjusted mutual information is (Vinh et al. 2010). `chance` is the mean
mutual information after the pictures' values of X were shuffled; it is not 0, since a few hundred pictures of many
clusters agree with anything by accident. X is one of

    colour    which of 16 colours (k-means of all patches' mean pixels) is nearest to the patch's mean pixel
    place     where in the picture the patch lies (shuffled within each picture)
    cluster   the cluster of the picture
    class     the class of the picture, where there are labels; they are used for nothing else

For a gate that reads the cluster, explained(cluster) is 1 by construction.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moce.images.augment import finish
from moce.images.loader import centred_batches
from moce.images.sources import Source
from moce.model.experts import ExpertAutoencoder
from moce.model.weights import write_tensors
from moce.stages.agreement import contingency, entropy
from moce.stages.routing import Patches, routing_of
from moce.stages.thumbs import LARGEST_SIDE

PATCHES_FILE = "patches.safetensors"
NUM_PICTURES = 256  # evenly chosen; 16,000 patches of 8 x 8, and seconds of work
NUM_COLOURS = 16
NUM_SHOWN = 8  # pictures that the file keeps
NUM_SHUFFLES = 10


@torch.no_grad()
def experts_of_patches(
    model: ExpertAutoencoder,
    images: Float[Tensor, "images channels rows columns"],
    labels: Int64[Tensor, " images"],
) -> Int64[Tensor, "layers images patches"]:
    """The (first) expert that the clean gate picks for each patch of normalised pictures, nothing masked."""
    shape = model.expert_shape
    if shape.gate != "token":
        router = model.router(labels.to(images.device))
        chosen = [router.choices[layer].expert_NC[:, :1] for layer in shape.layers]
        return torch.stack(chosen).expand(-1, -1, model.shape.num_patches).cpu()
    router = model.router()
    model.tokens(images, router)
    chosen = [router.choices[layer].expert_NC[:, 0].reshape(len(images), -1) for layer in shape.layers]
    return torch.stack(chosen)[:, :, 1:].cpu()  # without the class token


def mean_colours(model: ExpertAutoencoder, images: Tensor) -> Float[Tensor, "images patches channels"]:
    """The mean pixel of every patch of uint8 pictures."""
    pixels = model.patchify(images.float())
    return pixels.reshape(*pixels.shape[:2], images.shape[1], -1).mean(dim=3)


def quantised(
    colours: Float[Tensor, "images patches channels"], seed: int
) -> tuple[Patches, Float[np.ndarray, "bins channels"]]:
    """(which of at most 16 colours each patch has, these colours from dark to bright), by k-means."""
    from sklearn.cluster import KMeans  # a second to import

    flat = colours.flatten(0, 1).double().numpy()
    num_bins = min(NUM_COLOURS, len(np.unique(flat, axis=0)))
    found = KMeans(num_bins, n_init=1, random_state=seed % 2**32).fit(flat)
    order = found.cluster_centers_.mean(axis=1).argsort(kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(num_bins)
    return place[found.labels_].reshape(colours.shape[:2]), found.cluster_centers_[order]


def mutual_information(experts: Patches, by: Patches) -> float:
    """I(experts; by) in nats."""
    joint = contingency(experts.ravel(), by.ravel()) / experts.size
    return max(entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0)) - entropy(joint.ravel()), 0.0)


def explained(experts: Patches, by: Patches, shuffled: Callable[[], Patches]) -> float | None:
    """The share of the experts' entropy that `by` explains beyond chance; None where there is only one expert."""
    whole = entropy(np.bincount(experts.ravel()) / experts.size)
    chance = float(np.mean([mutual_information(experts, shuffled()) for _ in range(NUM_SHUFFLES)]))
    if whole - chance < 1e-9:
        return None
    return (mutual_information(experts, by) - chance) / (whole - chance)


def explanations(
    experts: Patches,
    colours: Patches,
    clusters: Int64[np.ndarray, "images"],
    classes: Int64[np.ndarray, "images"] | None,
    seed: int,
) -> dict[str, float | None]:
    """{colour, place, cluster, class}: what explains the experts of one layer."""
    draw, num_patches = np.random.default_rng(seed), experts.shape[1]
    place = np.broadcast_to(np.arange(num_patches), experts.shape)

    def of_picture(values: Int64[np.ndarray, "images"] | None) -> float | None:
        if values is None:
            return None
        spread = np.broadcast_to(values[:, None], experts.shape)
        return explained(experts, spread, lambda: spread[draw.permutation(len(spread))])

    return {
        "colour": explained(experts, colours, lambda: colours[draw.permutation(len(colours))]),
        "place": explained(experts, place, lambda: draw.permuted(place, axis=1)),
        "cluster": of_picture(clusters),
        "class": of_picture(classes),
    }


def write_patches(
    path: Path,
    model: ExpertAutoencoder,
    source: Source,
    labels: Int64[Tensor, " pictures"],
    about: dict[str, Any],
    crop_pct: float,
    seed: int,
    num_workers: int = 0,
    num_pictures: int = NUM_PICTURES,
) -> dict[str, Any]:
    """Look at evenly chosen pictures of `source` and write what docs/formats.md says; returns the file's header.

    `labels` are the clusters by index, `about` has the pixels' mean and std. Labels of the source are used only to
    say how the experts agree with them.
    """
    device = model.mask_token.device
    wanted = torch.linspace(0, len(source) - 1, min(num_pictures, len(source))).round().long().unique()
    indices, pictures, experts = [], [], []
    for found, images in centred_batches(
        source, model.shape.image_size, 64, num_workers, crop_pct, quiet=True, indices=wanted
    ):
        normalised = finish(images.to(device), None, tuple(about["mean"]), tuple(about["std"]))
        indices.append(found)
        pictures.append(images)
        experts.append(experts_of_patches(model, normalised, labels[found]))
    index, images, experts_LIP = torch.cat(indices), torch.cat(pictures), torch.cat(experts, dim=1)
    colours, bins = quantised(mean_colours(model, images), seed)
    classes = None if source.labels is None else source.labels[index.numpy()]
    header = {
        "kind": "patches",
        "gate": model.expert_shape.gate,
        "num_pictures": len(index),
        "num_experts": model.expert_shape.num_experts,
        "num_clusters": len(labels[index].unique()),
        "num_classes": None if classes is None else len(np.unique(classes)),
        "explained": {
            str(layer): explanations(chosen.numpy(), colours, labels[index].numpy(), classes, seed)
            for layer, chosen in zip(model.expert_shape.layers, experts_LIP, strict=True)
        },
        "routing": {
            str(layer): routing_of(chosen.numpy(), model.expert_shape.num_experts, classes, seed)
            for layer, chosen in zip(model.expert_shape.layers, experts_LIP, strict=True)
        },
    }
    shown = torch.linspace(0, len(index) - 1, min(NUM_SHOWN, len(index))).round().long()
    content = {
        "images": smaller(images[shown]),
        "indices": index[shown],
        "experts": experts_LIP[:, shown].reshape(-1, len(shown), *model.shape.grid),
        "colours": torch.from_numpy(bins).float(),
        "counts": torch.stack(
            [counts(chosen.numpy(), colours, model.expert_shape.num_experts, len(bins)) for chosen in experts_LIP]
        ),
    }  # fmt: skip
    write_tensors(path, content, header)
    return header


def counts(
    experts: Patches, colours: Patches, num_experts: int, num_colours: int
) -> Int64[Tensor, "experts colours"]:
    """How many patches of each colour go to each expert."""
    flat = np.bincount((experts * num_colours + colours).ravel(), minlength=num_experts * num_colours)
    return torch.from_numpy(flat.reshape(num_experts, num_colours).astype(np.int64))


def smaller(images: Tensor, largest: int = LARGEST_SIDE) -> Tensor:
    """uint8 pictures of at most `largest` pixels a side."""
    shrink = largest / max(images.shape[-2:])
    if shrink >= 1:
        return images
    size: Sequence[int] = [max(round(side * shrink), 1) for side in images.shape[-2:]]
    resized = torch.nn.functional.interpolate(images.float(), tuple(size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).byte()
