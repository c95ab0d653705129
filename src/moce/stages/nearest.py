"""A task's pictures beside the pre-training pictures most like them, kept small in the customised folder.

The experts' run has 16 pictures of every cluster with their features (thumbs.py). For a few of the task's pictures the
nearest of those are looked up by cosine, so that people can judge a choice by eye where no pre-training picture is at
hand any more. `nearest.webp` is one sheet of equal cells, COLUMNS across:

    a row per picture of the task      the picture, then its nearest ones, most similar first
    a row per cluster                  its most typical pictures; the clusters with most votes, and the chosen one

What lies where, and how similar it is, stands in choice.json under "pictures".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from moce.engine.files import write_whole
from moce.images.loader import centred_batches
from moce.images.sources import Source
from moce.model.assigner import Assigner
from moce.model.weights import read_tensors
from moce.stages.patches import smaller
from moce.stages.thumbs import sheet

SHEET = "nearest.webp"
NUM_TASK, COLUMNS, NUM_CLUSTERS = 8, 5, 6
QUALITY = 88  # of the sheet, which is 100 to 300 KB

Pictures = UInt8[Tensor, "pictures channels rows columns"]


def nearest_pictures(
    thumbs: Path,
    assigner: Assigner,
    source: Source | None,
    votes_K: Int64[Tensor, " clusters"] | None,
    cluster: int | None,
) -> tuple[dict[str, Any], Image.Image] | None:
    """(what lies on the sheet, the sheet); None where the experts' run has no small pictures.

    Without `source` there are only rows of clusters.
    """
    if not thumbs.is_file():
        return None
    known = read_tensors(thumbs)
    numbers = known["indices"].flatten()
    there = (numbers >= 0).nonzero()[:, 0]
    places = known["indices"].shape[1]
    kept: Pictures = known["images"].flatten(0, 1)
    rows: list[Tensor] = []
    task = []
    for index, picture, own, cosine_M in _of_task(source, assigner, known["features"].flatten(0, 1)[there]):
        best = cosine_M.topk(min(COLUMNS - 1, len(there)))
        found = there[best.indices]
        rows.append(torch.cat([smaller(picture[None], max(kept.shape[-2:])), kept[found]]))
        near = zip(numbers[found].tolist(), (found // places).tolist(), best.values.tolist(), strict=True)
        assert source is not None
        task.append(
            {
                "index": index,
                "name": source.name(index),
                "cluster": own,
                "nearest": [{"index": i, "cluster": k, "cosine": round(c, 4)} for i, k, c in near],
            }
        )
    clusters = []
    for k in leading(votes_K, cluster):
        own_places = (known["indices"][k, :COLUMNS] >= 0).nonzero()[:, 0]
        rows.append(known["images"][k, own_places])
        clusters.append({"cluster": k, "indices": known["indices"][k, own_places].tolist()})
    cells = torch.zeros(len(rows), COLUMNS, *kept.shape[1:], dtype=torch.uint8)
    for place, row in enumerate(rows):
        cells[place, : len(row)] = row
    height, width = kept.shape[-2:]
    about = {"file": SHEET, "cell": [height, width], "columns": COLUMNS, "task": task, "clusters": clusters}
    return about, sheet(cells.flatten(0, 1), across=COLUMNS, gap=0)


def _of_task(
    source: Source | None, assigner: Assigner, known: Float[Tensor, "kept width"]
) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """(index, picture, its cluster, cosine to each `known` feature) of a few pictures, evenly chosen."""
    if source is None:
        return
    wanted = torch.linspace(0, len(source) - 1, min(NUM_TASK, len(source))).round().long().unique()
    for found, images in centred_batches(
        source, assigner.image_size, NUM_TASK, 0, assigner.crop_pct, quiet=True, indices=wanted
    ):
        features = assigner.features(images)
        labels, cosines = assigner.assign(features), assigner.embed(features) @ known.float().T
        yield from zip(found.tolist(), images, labels.tolist(), cosines, strict=True)


def leading(votes_K: Int64[Tensor, " clusters"] | None, cluster: int | None) -> list[int]:
    """The clusters with most votes, most first; the chosen one is always among them."""
    first = [] if votes_K is None else votes_K.argsort(descending=True, stable=True)[:NUM_CLUSTERS].tolist()
    first = [k for k in first if votes_K is not None and votes_K[k] > 0]
    return first if cluster is None or cluster in first else [cluster, *first[: NUM_CLUSTERS - 1]]


def write_sheet(path: Path, made: Image.Image) -> None:
    """Write the sheet, whole."""
    with write_whole(path) as temporary:
        made.save(temporary, format="WEBP", quality=QUALITY, method=4)
