"""A study: arms on tasks with paired intervals, what gains, what it costs. Drawn from its result.json alone."""

from typing import Any

from markupsafe import Markup

from moce.engine.progress import clock
from moce.study.charts import dot_chart
from moce.study.gauges import forest_axis, forest_row
from moce.study.markdown import count, not_resampled, references_of, remarks_of, selection_notes
from moce.study.meaning import meaning_notes
from moce.study.pairs import CHANCE, stands_out
from moce.study.summary import FITS
from moce.study.table import percent


def study_section(result: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a study."""
    fixed = (result["primary"] or {}).get("not_resampled")
    colours = {arm["name"]: number for number, arm in enumerate(result["arms"])}
    return {
        "result": result,
        "primary_fixed": not_resampled(fixed) if fixed else None,
        "colours": colours,
        "chance": CHANCE,
        "meaning": meaning_notes(result),
        "references": bool(references_of(result)),
        "protocols": [protocol_part(result, protocol, colours) for protocol in result["tables"]],
        "costs": [cost_row(arm) for arm in result["arms"]],
        "selections": selection_notes(result),
    }


def protocol_part(result: dict[str, Any], protocol: str, colours: dict[str, int]) -> dict[str, Any]:
    """Scores, differences to the baseline drawn task by task, differences in numbers, gain beside fit."""
    table, pairs = result["tables"][protocol], result["differences"][protocol]
    fixed = sorted({task for pair in pairs for task in pair["not_resampled"]})
    drawn = [pair for pair in pairs if pair["against"] == result["baseline"]]
    ends = [own["pictures"] for pair in drawn for own in pair["per_task"].values() if own["pictures"]]
    reach = max((abs(end) for pair in ends for end in pair), default=0.0) or 0.01

    def forest(task: str | None) -> Markup | None:
        rows = []
        for pair in drawn:
            own = pair if task is None else pair["per_task"].get(task)
            if own and own["pictures"]:
                rows.append((colours[pair["arm"]], own["value"], tuple(own["pictures"]), stands_out(own)))
        return forest_row(rows, reach, f"differences to {result['baseline']}") if rows else None

    return {
        "protocol": protocol,
        "arms": list(table["mean"]),
        "rows": [score_row(task, table) | {"forest": forest(task)} for task in table["values"]],
        "mean": {arm: percent(value) for arm, value in table["mean"].items() if value is not None},
        "mean_forest": forest(None),
        "ranks": {arm: f"{value:.2f}" for arm, value in table["mean_rank"].items() if value is not None},
        "wins": table["wins"],
        "remarks": remarks_of(result, protocol),
        "fewer_seeds": bool(table.get("fewer_seeds")),
        "num_shared": len(table["shared"]),
        "axis": forest_axis(reach) if ends else None,
        "intervals": any(pair["pictures"] for pair in pairs),
        "pairs": [{**pair, "out": stands_out(pair)} for pair in pairs],
        "not_resampled": not_resampled(fixed) if fixed else None,
        "gains": gain_part(result, protocol),
    }


def score_row(task: str, table: dict[str, Any]) -> dict[str, Any]:
    """A task's scores, and which arms that are methods have the best of them as printed."""
    shown = {arm: percent(own["mean"]) for arm, own in table["values"][task].items()}
    seeds = {
        arm: ", ".join(f"seed {seed}: {percent(value)}" for seed, value in own["seeds"].items())
        for arm, own in table["values"][task].items()
    }
    return {
        "task": task,
        "metric": table["metrics"][task],
        "shown": shown,
        "best": table["best"][task],
        "seeds": seeds,
    }


def gain_part(result: dict[str, Any], protocol: str) -> dict[str, Any] | None:
    """Gain of each task beside how well a cluster fits it: a chart for each measure of fit."""
    found = result["gain_and_fit"].get(protocol)
    if found is None:
        return None
    charts = []
    for name, own in found["spearman"].items():
        points = [(row[name], 100 * row["gain"], row["task"]) for row in found["tasks"] if name in row]
        charts.append(
            {
                "said": FITS[name],
                "chart": dot_chart(points, (FITS[name], "gain in points")),
                **own,
            }
        )
    return {"charts": charts}


def cost_row(arm: dict[str, Any]) -> dict[str, Any]:
    """What an arm costs, as text."""
    times = {name: arm[name] for name in ("seconds", "cluster_seconds", "dense_seconds")}
    sizes = {name: count(arm[name]) for name in ("parameters", "active_parameters", "flops_per_image")}
    said = {name: "–" if seconds is None else clock(seconds) for name, seconds in times.items()}
    options = ", ".join(f"{name} {value}" for name, value in arm["options"].items())
    if arm.get("selected_by"):
        options += f", clusters selected by {arm['selected_by']}"
    other = f"as it is: {arm['as_it_is']}" if arm.get("as_it_is") else "the dense model"
    return {"name": arm["name"], "options": options or other, "strategy": arm["strategy"], **sizes, **said}
