"""What was logged while training: errors, how sure the gates are, and who does the work."""

from typing import Any

from moce.study.charts import Line, line_chart, share_chart
from moce.study.contents import Contents, RunContent


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
    return {"colour": run.colour, "name": run.label, "path": run.name, "said": said}


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
        "last": [{"name": run.label, "gate": run.metrics[-1]["max_gate"]} for run in runs],
        "even": even,
        "loads": loads,
    }
