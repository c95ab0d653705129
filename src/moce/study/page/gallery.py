"""Pictures: what the dense model fills in, what the clusters hold, and what each expert sees."""

from typing import Any

import torch

from moce.model.weights import load_model
from moce.study import charts, figures
from moce.study.charts import routing_map, routing_overview
from moce.study.contents import ClusterSet, Contents, RunContent
from moce.study.figures import data_uri, sheet

NEAREST = 8  # of a cluster's pictures, the others are drawn at random
CLUSTERS_OPEN = 24  # further ones are folded away
PER_EXPERT = 24  # pictures of an expert
RECONSTRUCTED = 12
MAPPED_IN_FULL = 64  # clusters; of more there is an overview first


def reconstruction_rows(contents: Contents, seed: int) -> list[dict[str, Any]]:
    """What every dense model makes of pictures of which it sees a part."""
    rows = []
    for run in contents.of("pretrain"):
        own = run.result.get("fingerprint")
        fitting = [c for c in contents.cluster_sets if own and c.encoder == own] or contents.cluster_sets
        if not (run.has_model and fitting):
            continue
        model, header = load_model(run.info.path)
        chosen = fitting[0]
        if chosen.images.shape[2] != model.shape.channels:
            continue
        images, indices = some_pictures(chosen)
        about = header["about"]
        shown = figures.reconstructions(
            model, images, indices, tuple(about["mean"]), tuple(about["std"]), seed
        )
        scale = min(1.0, 96 / max(model.shape.image_size))
        rows.append(
            {
                "name": run.name,
                "rows": [data_uri(sheet(part, len(part), scale), quality=88) for part in shown],
                "hidden": model.shape.mask_ratio,
                "normalised": model.shape.norm_target,
                "side": model.shape.image_size[1],
            }
        )
    return rows


def some_pictures(clusters: ClusterSet) -> tuple[torch.Tensor, torch.Tensor]:
    """(pictures, their indices): a random member of up to 12 clusters, evenly chosen; of small clusters the nearest."""
    num = min(RECONSTRUCTED, len(clusters.sizes))
    places = []
    for cluster in torch.linspace(0, len(clusters.sizes) - 1, num).round().long().tolist():
        there = (clusters.indices[cluster] >= 0).nonzero()[:, 0].tolist()
        if there:
            places.append((cluster, NEAREST if NEAREST in there else there[0]))
    rows, columns = (list(part) for part in zip(*places, strict=True))
    return clusters.images[rows, columns], clusters.indices[rows, columns]


def cluster_section(clusters: ClusterSet, scale: float) -> dict[str, Any]:
    """A card per cluster: its nearest pictures above, random ones below."""
    cards = []
    for cluster in range(len(clusters.sizes)):
        nearest, others = clusters.pictures(cluster, 0, NEAREST), clusters.pictures(cluster, NEAREST, None)
        cards.append(
            {
                "number": cluster,
                "size": clusters.sizes[cluster],
                "classes": clusters.classes[cluster] if clusters.classes else [],
                "nearest": data_uri(sheet(nearest, NEAREST, scale)) if len(nearest) else None,
                "others": data_uri(sheet(others, NEAREST, scale)) if len(others) else None,
            }
        )
    return {
        "where": clusters.where,
        "summary": clusters.summary,
        "cards": cards,
        "open": CLUSTERS_OPEN,
        "side": clusters.images.shape[-1],
        "named": clusters.classes is not None,
    }


def expert_section(run: RunContent, scale: float) -> dict[str, Any]:
    """The routing map of a run with cluster gates, and pictures of each expert's clusters."""
    assert run.routing is not None
    layers = []
    for layer, table in run.routing.items():
        order = sorted(range(len(table["expert"])), key=lambda k: (table["expert"][k], k))
        blocks = [
            {"svg": svg, "strip": column_heads(run.clusters, part), "clusters": part}
            for part, svg in routing_map(table["gate"], order)
        ]
        experts = [expert_card(run.clusters, e, table["expert"], scale) for e in range(len(table["gate"][0]))]
        overview = routing_overview(table["gate"], order) if len(order) > MAPPED_IN_FULL else None
        layers.append(
            {"layer": layer, "num": len(order), "overview": overview, "blocks": blocks, "experts": experts}
        )
    return {"name": run.name, "layers": layers, "cell": charts.CELL}


def column_heads(clusters: ClusterSet | None, part: list[int]) -> str | None:
    """The most typical picture of each cluster, side by side, as wide as the map's columns."""
    if clusters is None:
        return None
    side = charts.CELL * 2  # drawn at twice the size, for sharp screens
    images = clusters.images[part, 0].float()
    resized = torch.nn.functional.interpolate(images, (side, side), mode="bicubic", antialias=True)
    return data_uri(sheet(resized.round().clamp(0, 255).byte(), len(part), gap=0))


def expert_card(clusters: ClusterSet | None, expert: int, chosen: list[int], scale: float) -> dict[str, Any]:
    """The clusters of an expert, and their most typical pictures in turn."""
    own = [k for k, e in enumerate(chosen) if e == expert]
    card: dict[str, Any] = {"number": expert, "clusters": own, "share": None, "strip": None}
    if clusters is not None and own:
        card["share"] = sum(clusters.sizes[k] for k in own) / sum(clusters.sizes)
        turns = [(k, place) for place in range(NEAREST) for k in own if clusters.indices[k, place] >= 0][
            :PER_EXPERT
        ]
        if turns:
            rows, columns = (list(part) for part in zip(*turns, strict=True))
            card["strip"] = data_uri(sheet(clusters.images[rows, columns], NEAREST, scale))
    return card
