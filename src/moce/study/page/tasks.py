"""Customised models: how a task's pictures voted, how well the clusters fit, what was kept, and pictures of both."""

import math
from typing import Any

from PIL import Image

from moce.stages.customize import LEAST_PERCENTILE, MOST_ENTROPY, NUM_SUBSETS
from moce.study.charts import colour
from moce.study.contents import TaskModel
from moce.study.figures import GAP, data_uri
from moce.study.gauges import gauge, share_bar, vote_chart

LEADERS = 6  # clusters that are named


def task_section(task: TaskModel) -> dict[str, Any]:
    """Everything that the page says about one customised folder."""
    choice = task.choice
    total, about = sum(choice["votes"]), choice.get("pictures") or {}
    shares = [votes / total for votes in choice["votes"]] if total else []
    strips = cluster_strips(task)
    leaders = sorted(range(len(shares)), key=lambda k: -shares[k])[:LEADERS]
    classes = task.source.clusters.classes if task.source and task.source.clusters else None
    return {
        "name": task.name,
        "path": str(task.info.path),
        "choice": choice,
        "kind": "cluster:K" if choice["strategy"].startswith("cluster:") else choice["strategy"],
        "cut_from": task.info.config.get("moce"),
        "images": task.info.config.get("images"),
        "architecture": task.config.get("architecture"),
        "side": task.config["pretrained_cfg"]["input_size"][1:],
        "votes": [
            {
                "cluster": k,
                "share": shares[k],
                "strip": strips.get(k),
                "classes": classes[k] if classes else [],
            }
            for k in leaders
            if shares[k]
        ],
        "own": own_strip(task),
        "chosen_strip": strips.get(choice["cluster"]),
        "vote_chart": vote_chart(shares, choice["cluster"]) if shares else None,
        "spread": spread(choice) if shares else None,
        "fit": fit(choice) if choice["fit"] else None,
        "layers": [layer_row(choice, layer, kept) for layer, kept in choice["experts"].items()],
        "compared": compared(task),
        "columns": about.get("columns", 1) - 1,
        "small": about.get("cell", [0, 0])[1] <= 40,
    }


def cells(task: TaskModel, row: int, first: int, last: int) -> str | None:
    """Some cells of a row of the sheet, as a picture."""
    about = task.choice.get("pictures")
    if task.sheet is None or about is None or first == last:
        return None
    return strip(task.sheet, about["cell"], [(row, column) for column in range(first, last)])


def strip(sheet: Image.Image, cell: list[int], places: list[tuple[int, int]]) -> str:
    """The cells at these (row, column) side by side."""
    height, width = cell
    made = Image.new("RGBA", (len(places) * (width + GAP) - GAP, height), (0, 0, 0, 0))
    for number, (row, column) in enumerate(places):
        box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
        made.paste(sheet.crop(box), (number * (width + GAP), 0))
    return data_uri(made, quality=90)


def own_strip(task: TaskModel) -> str | None:
    """The task's pictures side by side."""
    about = task.choice.get("pictures")
    if task.sheet is None or about is None or not about["task"]:
        return None
    return strip(task.sheet, about["cell"], [(row, 0) for row in range(len(about["task"]))])


def cluster_strips(task: TaskModel) -> dict[int, str | None]:
    """The most typical pictures of the clusters that the sheet holds."""
    about = task.choice.get("pictures") or {"task": [], "clusters": []}
    first = len(about["task"])
    return {
        c["cluster"]: cells(task, first + r, 0, len(c["indices"])) for r, c in enumerate(about["clusters"])
    }


def compared(task: TaskModel) -> list[dict[str, Any]]:
    """The task's pictures, each beside the pre-training pictures nearest to it."""
    rows = (task.choice.get("pictures") or {"task": []})["task"] if task.sheet is not None else []
    return [
        {**row, "own": cells(task, r, 0, 1), "strip": cells(task, r, 1, 1 + len(row["nearest"]))}
        for r, row in enumerate(rows)
    ]


def spread(choice: dict[str, Any]) -> dict[str, Any]:
    """How far the votes spread: entropy as a share of its maximum, and how many clusters that is."""
    most = math.log(max(len(choice["votes"]), 2))
    share = choice["entropy"] / most
    return {
        "share": share,
        "clusters": math.exp(choice["entropy"]),
        "warns": share > MOST_ENTROPY,
        "gauge": gauge(share, (0.0, 1.0), (MOST_ENTROPY, 1.0), said="entropy of the votes"),
        "limit": MOST_ENTROPY,
    }


def fit(choice: dict[str, Any]) -> dict[str, Any]:
    """How near the task's pictures lie to their clusters, beside random sets of pre-training pictures."""
    cosine, percentile = choice["fit"]["mean_cosine"], choice["fit"]["percentile"]
    found: dict[str, Any] = {"cosine": cosine, "percentile": percentile, "gauge": None}
    found |= {"warns": percentile < LEAST_PERCENTILE, "limit": LEAST_PERCENTILE, "num_subsets": NUM_SUBSETS}
    if subsets := choice["fit"].get("subsets"):
        low, middle, high = subsets
        room = max(0.35 * (max(high, cosine) - min(low, cosine)), 0.01)
        scale = (min(low, cosine) - room, max(high, cosine) + room)
        said = "mean cosine of the pictures to their clusters"
        found |= {"middle": middle, "gauge": gauge(cosine, scale, (scale[0], low), (low, high), said)}
    return found


def layer_row(choice: dict[str, Any], layer: str, kept: int | list[float]) -> dict[str, Any]:
    """A layer: which expert is kept, and which share of the task's pictures would go to each."""
    shares = choice.get("shares", {}).get(layer) or (kept if isinstance(kept, list) else None)
    row: dict[str, Any] = {"layer": layer, "kept": None if isinstance(kept, list) else kept, "bar": None}
    row["weights"] = [(e, w) for e, w in enumerate(kept) if w > 0] if isinstance(kept, list) else []
    if shares:
        paints = [colour(e) for e in range(len(shares))]
        row["bar"] = share_bar(shares, paints, row["kept"], f"experts of block {layer}")
        row["share"] = None if row["kept"] is None else shares[row["kept"]]
    return row
