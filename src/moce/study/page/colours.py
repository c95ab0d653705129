"""What the gates follow: experts of patches beside the patches' colours, and what explains them (figure 1b)."""

from typing import Any

import torch

from moce.images.shown import tint, to_rgb
from moce.study.contents import Contents, PatchSet, RunContent
from moce.study.figures import data_uri, patch_views, sheet
from moce.study.gauges import share_bar

SIDE = 104  # pixels, about, of a picture
EXPLANATIONS = ("colour", "place", "cluster", "class")


def colour_section(contents: Contents) -> dict[str, Any]:
    """A row of numbers for each layer of each run, pictures with their patches' experts, and colours per expert."""
    runs = [run for run in contents.of("train-experts") if run.patches is not None]
    if not runs:
        return {}
    rows: list[dict[str, Any]] = [
        {"run": run, "layer": layer, "first": not number, "explained": explained}
        for run in runs
        if run.patches is not None
        for number, (layer, explained) in enumerate(run.patches.explained.items())
    ]
    shown = [x for x in EXPLANATIONS if any(row["explained"].get(x) is not None for row in rows)]
    return {
        "rows": rows,
        "shown": shown,
        "num_pictures": max(run.patches.num_pictures for run in runs if run.patches is not None),
        "findings": [finding(run) for run in runs],
        "routing": [row for run in runs for row in routing_rows(run)],
        "groups": picture_groups(runs),
        "palettes": [p for run in runs if run.patches is not None for p in palettes(run, run.patches)],
    }


def routing_rows(run: RunContent) -> list[dict[str, Any]]:
    """Per layer how the experts agree with the classes, and how many pictures each has."""
    assert run.patches is not None
    return [
        {
            "run": run,
            "layer": layer,
            "first": not number,
            "classes": found["classes"],
            "main": found["main"],
            "bar": share_bar(
                found["pictures"],
                [css(tint(e)) for e in range(len(found["pictures"]))],
                said=f"pictures per expert of block {layer}",
            ),
        }
        for number, (layer, found) in enumerate((run.patches.routing or {}).items())
    ]


def finding(run: RunContent) -> dict[str, Any]:
    """What explains the experts of a run, as means over its layers, and what explains most."""
    assert run.patches is not None
    means = {}
    for x in EXPLANATIONS:
        found = [layer[x] for layer in run.patches.explained.values()]
        known = [value for value in found if value is not None]
        if known and len(known) == len(found):
            means[x] = sum(known) / len(known)
    return {
        "run": run,
        "token": run.patches.gate == "token",
        "means": means,
        "most": max(means, key=lambda x: means[x]) if means else None,
    }


def picture_groups(runs: list[RunContent]) -> list[dict[str, Any]]:
    """Runs that looked at the same pictures share them: strips of pictures, of mean colours, of experts by layer."""
    groups: list[dict[str, Any]] = []
    for run in runs:
        seen = run.patches
        assert seen is not None
        rows, columns = seen.experts.shape[2:]
        plain, mosaic, *painted = patch_views(seen.images, seen.experts, max(SIDE // max(rows, columns), 2))
        strip = [data_uri(sheet(view, len(view)), quality=88) for view in (plain, mosaic)]
        key = (tuple(seen.indices.tolist()), strip[0])
        group = next((g for g in groups if g["key"] == key), None)
        if group is None:
            group = {"key": key, "plain": strip[0], "mosaic": strip[1], "num": len(plain), "runs": []}
            groups.append(group)
        layers = zip(seen.explained, painted, strict=True)
        group["runs"].append(
            {
                "run": run,
                "token": seen.gate == "token",
                "layers": [(layer, data_uri(sheet(view, len(view)), quality=88)) for layer, view in layers],
                "experts": [css(tint(e)) for e in range(seen.num_experts)],
            }
        )
    return groups


def palettes(run: RunContent, seen: PatchSet) -> list[dict[str, Any]]:
    """Per layer, the colours of all patches and of those that each expert gets."""
    pixels = seen.colours.round().clamp(0, 255).byte()[:, :, None, None]
    paints = [css(tuple(rgb)) for rgb in to_rgb(pixels)[:, 0, 0].tolist()]
    made = []
    for layer, counts in zip(seen.explained, seen.counts, strict=True):
        whole = counts.sum(dim=0)
        experts = [
            {
                "number": e,
                "paint": css(tint(e)),
                "share": float(own.sum() / torch.clamp(whole.sum(), min=1)),
                "bar": share_bar(own.tolist(), paints, said=f"colours of expert {e}") if own.sum() else None,
            }
            for e, own in enumerate(counts)
        ]
        every = share_bar(whole.tolist(), paints, said="colours of all patches")
        made.append({"run": run, "layer": layer, "all": every, "experts": experts})
    return made


def css(rgb: tuple[int, ...]) -> str:
    """'#3b76b8'."""
    return "#" + bytes(rgb).hex()
