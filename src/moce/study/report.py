"""One self-contained page of some runs: what was trained, what came out, and what it is worth.

A section is there when its input is there. The template does the layout and escapes all text; this file turns what
contents.py read into what the template shows.
"""

from pathlib import Path
from typing import Any

import jinja2
import torch

from moce import __version__
from moce.config import ReportConfig, verb
from moce.engine.files import read_json, write_whole
from moce.engine.progress import clock, say
from moce.engine.runs import CONFIG
from moce.errors import UserError
from moce.model.weights import load_model
from moce.study import figures
from moce.study.contents import ClusterSet, Contents, RunContent, TaskModel, gather, own_pictures
from moce.study.figures import (
    PIXEL_BUDGET,
    Line,
    colour,
    data_uri,
    line_chart,
    routing_map,
    scale_for,
    share_chart,
    sheet,
)
from moce.study.inspect import changed_options, spelled
from moce.study.table import percent, tables

GENERATOR = '<meta name="generator" content="moce">'  # in the template; says that a file is a page of ours
LARGEST = 14_000_000  # characters of a page
CLUSTERS_OPEN = 24  # further ones are folded away
NEAREST = 8  # of a cluster's pictures, the others are drawn at random
PER_EXPERT = 24  # pictures of an expert
RECONSTRUCTED = 12
VOTES_SHOWN = 5


@verb(ReportConfig)
def report(config: ReportConfig) -> dict[str, Any]:
    """Write one self-contained HTML page of run folders, customised models and evaluations, given in any order.

    Returns {verb, out, bytes, sections, runs, tasks, evaluations}. Raises UserError for a path that is none of these,
    and for an --out that is somebody else's file.
    """
    out = Path(config.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name an .html file.")
    if out.exists() and not config.overwrite and GENERATOR not in out.read_text("utf-8", "replace")[:2000]:
        raise UserError(
            f"--out {out} is there and is no page of moce; choose another name, or give --overwrite."
        )
    contents = gather(config.runs)
    sections = page_sections(contents, config.seed)
    text = (
        environment()
        .get_template("report.html.j2")
        .render(
            contents=contents,
            sections=sections,
            title=page_title(contents),
            colour=colour,
            version=__version__,
        )
    )
    with write_whole(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    size = out.stat().st_size
    say(f"{out}: {', '.join(sections)} ({size / 2**20:.1f} MiB)", config.quiet)
    return {
        "verb": "report",
        "out": str(out),
        "bytes": size,
        "sections": list(sections),
        "runs": len(contents.runs),
        "tasks": len(contents.tasks),
        "evaluations": len(contents.results),
    }


def environment() -> jinja2.Environment:
    """Templates that escape everything and refuse a name that is not there."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "percent": percent,
        "clock": clock,
        "gib": lambda n: f"{n / 2**30:.1f} GiB",
        "signed": signed,
    }
    return made


def signed(value: float) -> str:
    """A difference of shares in points: '+1.2'."""
    text = f"{100 * value:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def page_title(contents: Contents) -> str:
    """What the page is of."""
    images = dict.fromkeys(run.info.config["images"] for run in contents.runs)
    if contents.built_in:
        return "the built-in toy world"
    return ", ".join(Path(uri).name or uri for uri in images) or "evaluations"


def page_sections(contents: Contents, seed: int, budget: float = PIXEL_BUDGET) -> dict[str, Any]:
    """What each section shows, by its name; empty ones left out. All small pictures have `budget` pixels at most."""
    scale = common_scale(contents, budget)
    made = {
        "results": [result_section(table) for table in tables(contents.results)],
        "runs": [run_row(run) for run in contents.runs],
        "learning": learning(contents),
        "reconstructions": reconstruction_rows(contents, seed),
        "clusters": [cluster_section(c, scale) for c in contents.cluster_sets],
        "gates": gates(contents),
        "experts": [expert_section(run, scale) for run in contents.of("train-experts") if run.routing],
        "tasks": [task_card(task, scale) for task in contents.tasks],
    }
    return {name: content for name, content in made.items() if content}


def common_scale(contents: Contents, budget: float) -> float:
    """How much small pictures are shrunk so that all of them fit the page."""
    numbers = [c.images.shape[0] * (c.images.shape[1] + 1) for c in contents.cluster_sets]
    routed = [run for run in contents.runs if run.routing and run.clusters]
    numbers += [PER_EXPERT * len(t["gate"][0]) for run in routed if run.routing for t in run.routing.values()]
    numbers.append(2 * NEAREST * len(contents.tasks))
    height, width = (
        max((c.images.shape[side] for c in contents.cluster_sets), default=1) for side in (-2, -1)
    )
    return scale_for(sum(numbers), height, width, budget)


# Results and runs --------------------------------------------------------------------------------------------------


def result_section(table: Any) -> dict[str, Any]:
    """A table of evaluations, how large its differences are, and how each number was got."""
    differences = [
        abs(d) for t in table.tasks for m in table.methods if (d := table.difference(t, m)) is not None
    ]
    single, mean = table.standard_errors
    wins = {m: sum(m in table.best(t) for t in table.shared) for m in table.methods}
    return {
        "table": table,
        "largest": max(differences, default=0) or 1,
        "single_error": single,
        "mean_error": mean,
        "wins": wins,
        "metrics": sorted({table.metric(t) for t in table.tasks}),
        "seeds": sorted({r.get("seed") for r in table.results if r.get("seed") is not None}),
        "chosen": [settings(r) for r in table.results],
    }


def settings(result: dict[str, Any]) -> str:
    """The settings of a result that fit on a line."""
    plain = {
        n: v
        for n, v in result.get("settings", {}).items()
        if isinstance(v, (int, float, str)) and n != "val_score"
    }
    return ", ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in plain.items())


STAGES = {"pretrain": "dense model", "cluster": "clusters", "train-experts": "further training"}


def run_row(run: RunContent) -> dict[str, Any]:
    """A run in the table of runs."""
    result, options = run.result, changed_options(run.info)
    seconds = result.get("seconds")
    return {
        "name": run.name,
        "stage": STAGES[run.info.verb],
        "verb": run.info.verb,
        "method": "" if run.info.verb == "cluster" else run.method,
        "finished": run.info.finished,
        "options": spelled(options),
        "versions": versions(run.info.path),
        "images": result.get("num_images"),
        "parameters": result.get("parameters"),
        "active": result.get("active_parameters"),
        "steps": result.get("steps"),
        "seconds": sum(seconds.values()) if isinstance(seconds, dict) else seconds,
        "speed": result.get("images_per_second"),
        "memory": result.get("peak_device_bytes") or result.get("peak_rss_bytes"),
        "machine": ", ".join(
            str(part) for part in (result.get("device"), result.get("precision"), threads(result)) if part
        ),
    }


def versions(folder: Path) -> str:
    """'moce 0.1.0, torch 2.15.0, commit 0123abcd'."""
    content = read_json(folder / CONFIG)
    parts = [f"{name} {number}" for name, number in content.get("versions", {}).items()]
    return ", ".join([*parts, f"commit {content['commit'][:8]}"] if content.get("commit") else parts)


def threads(result: dict[str, Any]) -> str:
    """'1 thread'."""
    number = result.get("threads")
    return f"{number} thread{'s' * (number > 1)}" if number else ""


# Curves ------------------------------------------------------------------------------------------------------------


def learning(contents: Contents) -> list[dict[str, Any]]:
    """Charts of the reconstruction error: of dense training, of what comes after it, and how runs differ from MAE*."""
    charts = []
    for verb_name, title in (("pretrain", "Dense training"), ("train-experts", "Further training")):
        runs = [run for run in contents.of(verb_name) if len(run.metrics) > 1]
        if runs:
            lines = [Line(epochs(run), errors(run), run.colour) for run in runs]
            charts.append(chart(title, runs, lines, [f"ends at {line.y[-1]:.3f}" for line in lines]))
    further = [run for run in contents.of("train-experts") if len(run.metrics) > 1]
    control = next((run for run in further if run.method == "MAE*"), None)
    others = [run for run in further if control and run is not control and epochs(run) == epochs(control)]
    if control and others:
        lines = [
            Line(
                epochs(run),
                [own - its for own, its in zip(errors(run), errors(control), strict=True)],
                run.colour,
            )
            for run in others
        ]
        charts.append(chart("Further training: error less that of MAE*", others, lines, marks=(0.0,)))
    return charts


def epochs(run: RunContent) -> list[float]:
    """Where each line of metrics was written."""
    return [line["epoch"] for line in run.metrics]


def errors(run: RunContent) -> list[float]:
    """The reconstruction error; a dense run's loss is nothing else."""
    return [line.get("reconstruction", line["loss"]) for line in run.metrics]


def chart(
    title: str,
    runs: list[RunContent],
    lines: list[Line],
    said: list[str] | None = None,
    marks: tuple[float, ...] = (),
) -> dict[str, Any]:
    """A line per run, with a legend."""
    texts = said or [""] * len(runs)
    return {
        "title": title,
        "svg": line_chart(lines, ("passes over the pictures", "reconstruction error"), marks=marks),
        "legend": [legend_entry(run, text) for run, text in zip(runs, texts, strict=True)],
    }


def legend_entry(run: RunContent, said: str = "") -> dict[str, Any]:
    """What a colour stands for."""
    return {"colour": run.colour, "name": run.method, "path": run.name, "said": said}


def gates(contents: Contents) -> dict[str, Any]:
    """How sure the gates are of their choice, and which share of the pictures each expert gets."""
    runs = [r for r in contents.of("train-experts") if len(r.metrics) > 1 and "layers" in r.metrics[-1]]
    if not runs:
        return {}
    lines, loads = [], []
    for run in runs:
        for dash, layer in enumerate(run.metrics[-1]["layers"]):
            seen = [m["layers"][layer] for m in run.metrics]
            lines.append(Line(epochs(run), [s["max_gate"] for s in seen], run.colour, dash))
            svg = share_chart(
                epochs(run), [s["load"] for s in seen], ("passes over the pictures", "share of the pictures")
            )
            loads.append(
                {
                    "run": run,
                    "layer": layer,
                    "svg": svg,
                    "dead": seen[-1]["dead"],
                    "num": len(seen[-1]["load"]),
                }
            )
    even = 1 / max(load["num"] for load in loads)
    return {
        "confidence": line_chart(lines, ("passes over the pictures", "largest gate"), (0, 1.02), (even, 0.9)),
        "legend": [legend_entry(run) for run in runs],
        "layers": list(runs[0].metrics[-1]["layers"]),
        "last": [{"name": run.method, "gate": run.metrics[-1]["max_gate"]} for run in runs],
        "even": even,
        "loads": loads,
    }


# Pictures ----------------------------------------------------------------------------------------------------------


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
        layers.append({"layer": layer, "blocks": blocks, "experts": experts})
    return {"name": run.name, "layers": layers, "cell": figures.CELL}


def column_heads(clusters: ClusterSet | None, part: list[int]) -> str | None:
    """The most typical picture of each cluster, side by side, as wide as the map's columns."""
    if clusters is None:
        return None
    side = figures.CELL * 2  # drawn at twice the size, for sharp screens
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


def task_card(task: TaskModel, scale: float) -> dict[str, Any]:
    """What a task was given, and why."""
    choice, clusters = task.choice, task.source.clusters if task.source else None
    votes = sorted(enumerate(choice["votes"]), key=lambda vote: -vote[1])[:VOTES_SHOWN]
    total = max(sum(choice["votes"]), 1)
    own = picture = None
    if clusters is not None:
        height, width = clusters.images.shape[-2:]
        mine = own_pictures(task.info, NEAREST, (height, width))
        own = data_uri(sheet(mine, NEAREST, scale)) if mine is not None else None
    if clusters is not None and choice["cluster"] is not None:
        nearest = clusters.pictures(choice["cluster"], 0, NEAREST)
        picture = data_uri(sheet(nearest, NEAREST, scale)) if len(nearest) else None
    return {
        "name": task.name,
        "path": str(task.info.path),
        "choice": choice,
        "votes": [(k, n / total) for k, n in votes if n],
        "own": own,
        "picture": picture,
        "side": clusters.images.shape[-1] if clusters is not None else 0,
        "classes": clusters.classes[choice["cluster"]] if picture and clusters and clusters.classes else [],
        "images": task.info.config.get("images"),
    }
