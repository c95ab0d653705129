"""Stage 1: balanced clusters of a dense model's features, kept as an assigner.

    pictures -> features of the frozen dense model -> centred, scaled, length 1 -> k-means -> balanced plan -> labels

The pass over the pictures is in features.py, the solvers in balance.py and rounding.py; this file runs them and writes
what they found. Where the pictures have classes it also clusters raw 8 x 8 pixels in the same way: clusters of features
should agree better with the classes than those do.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moce.config import ClusterConfig
from moce.engine.devices import num_workers_of, pick_device
from moce.engine.files import write_whole
from moce.engine.processes import group
from moce.engine.progress import say, track
from moce.engine.runs import Run, open_run, read_run
from moce.errors import UserError
from moce.images.loader import survey
from moce.images.sources import Source, open_images, require_apart
from moce.model.assigner import Assigner, adjusted_scores, cosines, quantiles
from moce.model.weights import fingerprint, load_model
from moce.stages.agreement import leading_classes, normalised_mutual_information, purity
from moce.stages.balance import balanced_clusters, chunk_rows
from moce.stages.features import CROP_PCT, Features, embed_in_place, look_at_all
from moce.stages.feed import list_unreadable
from moce.stages.membership import CLUSTERS_FILE
from moce.stages.pictures import with_bytes
from moce.stages.rounding import best_and_regret, capacity_labels, even_capacities
from moce.stages.thumbs import choose_members, write_thumbs
from moce.verbs import verb


class Found(NamedTuple):
    """Clusters of embedded features; labels of the pictures of all processes."""

    centroids: Float[Tensor, "clusters width"]
    potentials: Float[Tensor, "clusters"]
    labels: Int64[Tensor, "all"]
    argmax_labels: Int64[Tensor, "all"]
    marginal_error: float
    rounds: int
    passes: int


def find_clusters(
    embedded: Float[Tensor, "images width"],
    config: ClusterConfig,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> Found:
    """Balanced clusters of embedded features, and one label per picture as `config.rounding` says.

    `embedded` are the pictures of this process; what comes out is of all.
    """
    processes = group()
    fits = device.type == "cuda" and embedded.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    solved = balanced_clusters(
        embedded.to(device) if fits else embedded,
        config.num_clusters,
        config.seed,
        config.eps,
        config.rounds,
        config.kmeans_iterations,
        config.tolerance,
        device=device,
        tick=tick,
        processes=processes,
    )
    # Labels come from exactly the numbers that the assigner's file will hold.
    centroids, potentials = solved.centroids.cpu(), solved.potentials.float().cpu()
    scores = partial(adjusted_scores, centroids=centroids, potentials=potentials, eps=config.eps)
    rows = chunk_rows(len(centroids), centroids.shape[1], embedded.device)
    labels, regrets = (processes.gather(own) for own in best_and_regret(embedded, scores, rows))
    argmax_labels = labels
    if config.rounding == "capacity":
        capacities = even_capacities(argmax_labels.bincount(minlength=config.num_clusters))
        labels = capacity_labels(embedded, scores, labels, regrets, capacities, rows, processes)
    return Found(
        centroids, potentials, labels, argmax_labels, solved.marginal_error, solved.rounds, solved.passes
    )


@verb(ClusterConfig)
def cluster(config: ClusterConfig) -> dict[str, Any]:
    """Cluster pictures into balanced clusters of a dense model's features; the run folder holds the assigner.

    Returns the content of clusters.json (num_images, num_clusters, marginal_error, sizes, moved, nmi, purity, ...),
    with verb, out and seed.
    """
    device = pick_device(config.device)
    dense_run = read_run(config.enc, "pretrain")
    dense_run.result()
    model, header = load_model(dense_run.path, device)
    source = open_images(config.images, model.shape.channels)
    require_apart(source, config.out, below=False)
    refuse_too_few(len(source), config, "pictures")
    inputs = {"images": source.fingerprint(), "dense model": fingerprint(model)}
    inputs = with_bytes(inputs, source, "cluster", config, config.out)
    refuse_too_few(len(source) - len(survey(source, config.quiet).unreadable), config)
    with open_run(config.out, "cluster", config, inputs) as run:
        if run.finished:
            say(f"{run.path} is finished; --overwrite makes the clusters again", config.quiet)
            return run.result()
        started = time.monotonic()
        pixels = tuple(header["about"]["mean"]), tuple(header["about"]["std"])
        looked = look_at_all(source, model, *pixels, config, run.path)
        refuse_too_few(len(looked.indices), config)
        seconds = {"features": time.monotonic() - started}

        with track(config.kmeans_iterations + config.rounds, "clusters", "rounds", config.quiet) as progress:
            embedding = embed_in_place(looked.features, processes=group(), whiten=config.whiten)
            found = find_clusters(looked.features, config, device, progress.advance)
        seconds["clusters"] = time.monotonic() - started - seconds["features"]
        fit = fit_of_all(looked.features, found.centroids, found.argmax_labels)
        assigner = Assigner(
            encoder=model,
            centroids=found.centroids,
            potentials=found.potentials,
            mean=embedding.mean,
            scaling=embedding.scaling,
            eps=config.eps,
            crop_pct=CROP_PCT,
            pixel_mean=pixels[0],
            pixel_std=pixels[1],
            images_fingerprint=inputs["images"],
            encoder_fingerprint=inputs["dense model"],
            cosine_quantiles=quantiles(fit),
            sizes=found.labels.bincount(minlength=config.num_clusters),
        )
        run.once(lambda: assigner.save(run.path / CLUSTERS_FILE))
        write_labels(run, source, looked, found, assigner.image_size, config)
        summary = {
            **balance_of(len(source), found, config),
            **agreement_of(source, looked, found, config, device),
            "classes": classes_of(source, looked, found, config),
            "mean_cosine": float(fit.double().mean()),
            "unreadable": len(source) - len(looked.indices),
            "rounds": found.rounds,
            "passes": found.passes,
            "seconds": {name: round(took, 3) for name, took in seconds.items()},
        }
        run.write_json("clusters.json", summary)
        tell(summary, config)
        return run.finish({"verb": "cluster", "out": str(run.path), "seed": config.seed, **summary})


def refuse_too_few(num_images: int, config: ClusterConfig, what: str = "readable pictures") -> None:
    """UserError when there are more clusters than pictures."""
    if config.num_clusters > num_images:
        raise UserError(
            f"--num-clusters {config.num_clusters} is more than the {num_images} {what} in "
            f"'{config.images}'; ask for at most {num_images}, or better a tenth of that."
        )


def fit_of_all(
    embedded: Float[Tensor, "images width"],
    centroids: Float[Tensor, "clusters width"],
    labels: Int64[Tensor, "all"],
) -> Float[Tensor, "all"]:
    """Cosine of every picture of all processes to the centroid of its label."""
    first, _ = group().span(len(embedded))
    return group().gather(cosines(embedded, centroids, labels[first : first + len(embedded)]))


def write_labels(
    run: Run,
    source: Source,
    looked: Features,
    found: Found,
    image_size: tuple[int, int],
    config: ClusterConfig,
) -> None:
    """labels.npy by the picture's index (-1 where it cannot be read), unreadable.txt, and the thumbs."""
    labels = np.full(len(source), -1, dtype=np.int64)
    labels[looked.indices.numpy()] = found.labels.numpy()
    fit = fit_of_all(looked.features, found.centroids, found.labels)
    chosen = choose_members(found.labels, fit, config.num_clusters, config.seed)
    features = group().take(looked.features, chosen.clamp_min(0))

    def write() -> None:
        with write_whole(run.path / "labels.npy") as path, open(path, "wb") as file:
            np.save(file, labels)
        list_unreadable(run.path, source, np.flatnonzero(labels < 0).tolist(), config.quiet)
        workers = num_workers_of(config.num_workers)
        write_thumbs(run.path / "thumbs", source, chosen, looked.indices, features, image_size, workers)

    run.once(write)


def balance_of(num_images: int, found: Found, config: ClusterConfig) -> dict[str, Any]:
    """How even the clusters are: of the plan, of its argmax, and of the labels that were kept."""
    sizes, argmax_sizes = (
        labels.bincount(minlength=config.num_clusters) for labels in (found.labels, found.argmax_labels)
    )
    return {
        "num_images": num_images,
        "num_clusters": config.num_clusters,
        "marginal_error": found.marginal_error,
        "size_min": int(sizes.min()),
        "size_max": int(sizes.max()),
        "size_min_argmax": int(argmax_sizes.min()),
        "size_max_argmax": int(argmax_sizes.max()),
        "moved": float((found.labels != found.argmax_labels).double().mean()),
    }


def agreement_of(
    source: Source, looked: Features, found: Found, config: ClusterConfig, device: torch.device
) -> dict[str, float | None]:
    """Agreement of the labels with the classes, and that of clusters of raw pixels; None without classes.

    The raw pixels in `looked` are overwritten by their embedding.
    """
    if looked.raw is None or source.labels is None:
        return dict.fromkeys(("nmi", "purity", "nmi_raw", "purity_raw"))
    steps = config.kmeans_iterations + config.rounds
    with track(steps, "clusters of raw pixels", "rounds", config.quiet) as progress:
        embed_in_place(looked.raw, processes=group())
        raw = find_clusters(looked.raw, config, device, progress.advance)
    classes = source.labels[looked.indices.numpy()]
    return {
        "nmi": normalised_mutual_information(found.labels.numpy(), classes),
        "purity": purity(found.labels.numpy(), classes),
        "nmi_raw": normalised_mutual_information(raw.labels.numpy(), classes),
        "purity_raw": purity(raw.labels.numpy(), classes),
    }


def classes_of(
    source: Source, looked: Features, found: Found, config: ClusterConfig
) -> list[list[list[Any]]] | None:
    """The most frequent classes of every cluster, for people; None where the classes have no names."""
    if source.labels is None or source.classes is None:
        return None
    classes = source.labels[looked.indices.numpy()]
    return leading_classes(found.labels.numpy(), classes, source.classes, config.num_clusters)


def tell(summary: dict[str, Any], config: ClusterConfig) -> None:
    """What a person wants to know, on stderr."""
    s = summary
    say(
        f"{s['num_images'] - s['unreadable']:,} pictures in {s['num_clusters']} clusters of {s['size_min']} to "
        f"{s['size_max']} (plain argmax: {s['size_min_argmax']} to {s['size_max_argmax']}; {s['moved']:.1%} moved), "
        f"error of the plan's marginals {s['marginal_error']:.1e}",
        config.quiet,
    )
    if s["marginal_error"] > config.tolerance:
        say(
            f"warning: that error is above --tolerance {config.tolerance}; a larger --eps balances more easily",
            config.quiet,
        )
    if s["nmi"] is not None:
        say(
            f"agreement with the classes: NMI {s['nmi']:.3f}, purity {s['purity']:.3f}; clusters of raw 8 x 8 pixels: "
            f"NMI {s['nmi_raw']:.3f}, purity {s['purity_raw']:.3f}",
            config.quiet,
        )
