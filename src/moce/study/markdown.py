"""A study's result.json as table.md: what people read and paste."""

from typing import Any

from moce.engine.progress import clock
from moce.errors import counted
from moce.study.meaning import meaning_notes
from moce.study.pairs import CHANCE
from moce.study.plan import REFERENCES
from moce.study.summary import FITS
from moce.study.table import percent


def markdown(result: dict[str, Any]) -> str:
    """The whole file."""
    parts = [f"# Study: {result['kind']}", "", *opening(result)]
    for protocol in result["tables"]:
        parts += ["", f"## {protocol}", "", *score_table(result, protocol)]
        if result["differences"][protocol]:
            parts += ["", *difference_table(result, protocol)]
        if protocol in result["gain_and_fit"]:
            parts += ["", *gain_table(result, protocol)]
    return "\n".join([*parts, "", "## What each arm costs", "", *cost_table(result)]) + "\n"


def opening(result: dict[str, Any]) -> list[str]:
    """What it is of, whether it is whole, and the primary endpoint."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"Pre-training pictures: `{result['corpus']}`. {counted(len(result['tasks']), 'task')}; seeds {seeds}."
    ]
    if "toyworld://" in result["corpus"]:
        lines.append("The built-in toy pictures show that everything works; they are no evidence.")
    if result["seeds_left_out"]:
        left = ", ".join(map(str, result["seeds_left_out"]))
        lines.append(f"Of the file's seeds {left} are not in it.")
    if not result["finished"]:
        cells = result["cells"]
        lines.append(
            f"**Not finished**: {cells['there']} of {cells['there'] + cells['left']} cells are there."
        )
    lines += [f"**Failed**: {what}: {why}" for what, why in result["failed"].items()]
    if (primary := result["primary"]) is not None:
        lines += [
            "",
            f"**Primary endpoint** ({primary['protocol']}, mean of {primary['tasks']} tasks): {said(primary)}",
        ]
        each = ", ".join(f"seed {seed}: {signed(value)}" for seed, value in primary["seeds"].items())
        lines[-1] += f" {CHANCE} Every seed: {each}{deviation(primary)}."
    if notes := meaning_notes(result):
        lines += ["", *notes]
    missing = {result[key] for key in ("method", "baseline")} - {arm["name"] for arm in result["arms"]}
    if result["kind"] == "compare" and missing:
        names = " and ".join(f"`{name}`" for name in sorted(missing))
        lines.append(f"No arm is called {names}, so there is no primary endpoint.")
    return lines


def said(found: dict[str, Any]) -> str:
    """'MoCE − MAE* = +1.2 points (95 % interval +0.3 to +2.1).'"""
    text = f"{found['arm']} − {found['against']} = {signed(found['value'])} points"
    if found["pictures"]:
        text += f" (95 % interval {between(found['pictures'])}, tasks fixed, test pictures drawn again)"
    if found["not_resampled"]:
        text += f", where {not_resampled(found['not_resampled'])}"
    return text + "."


def not_resampled(tasks: list[str]) -> str:
    """What intervals do not know of these tasks."""
    return f"the metric of {', '.join(tasks)} is no mean over pictures, which are not drawn again there"


def deviation(found: dict[str, Any]) -> str:
    """' (standard deviation 0.62)' of several seeds; '' of one."""
    own = found.get("seed_deviation")
    return "" if own is None else f" (standard deviation {100 * own:.2f})"


def references_of(result: dict[str, Any]) -> dict[str, str]:
    """Arms that are no methods, and what they are instead."""
    return {arm["name"]: REFERENCES[arm["strategy"]] for arm in result["arms"] if arm["bound"]}


def remarks_of(result: dict[str, Any], protocol: str) -> dict[str, str]:
    """Arms that stand in a table without a rank, and why: references, and those of fewer seeds."""
    found = {name: [f"reference: {what}"] for name, what in references_of(result).items()}
    for name, seeds in result["tables"][protocol].get("fewer_seeds", {}).items():
        alone = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} alone"
        found.setdefault(name, []).append(alone if seeds else "no seed on all of its tasks")
    return {name: "; ".join(said) for name, said in found.items()}


def score_table(result: dict[str, Any], protocol: str) -> list[str]:
    """Tasks by arms in per cent, mean of the seeds; below, means, ranks and wins."""
    found, remarks = result["tables"][protocol], remarks_of(result, protocol)
    names = list(found["mean"])
    heads = [f"{name} ({remarks[name]})" if name in remarks else name for name in names]
    lines = ["| task | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(names)]
    for task, row in found["values"].items():
        shown = {name: percent(row[name]["mean"]) for name in names if name in row}
        best = found["best"][task]
        cells = [f"**{shown[n]}**" if n in best else shown.get(n, "–") for n in names]
        metric = "" if found["metrics"][task] == "top1" else f" ({found['metrics'][task].replace('_', ' ')})"
        lines.append(f"| {task}{metric} | " + " | ".join(cells) + " |")
    if found["shared"]:
        rows = {
            f"mean of {len(found['shared'])}": {n: percent(v) for n, v in found["mean"].items()},
            "mean rank": {n: f"{v:.2f}" for n, v in found["mean_rank"].items() if v is not None},
            "wins": {n: str(v) for n, v in found["wins"].items()},
        }
        for name, row in rows.items():
            lines.append(f"| *{name}* | " + " | ".join(row.get(arm, "") for arm in names) + " |")
    else:
        lines += ["", "No task has a result of every arm yet, so there is no mean."]
    return lines


def difference_table(result: dict[str, Any], protocol: str) -> list[str]:
    """Mean differences with both intervals."""
    lines = [
        "Differences in points, mean over tasks; 95 % intervals by bootstrap, paired picture by picture, seeds "
        "averaged first.",
        "",
        "| difference | tasks | points | pictures drawn again | tasks and pictures drawn again | every seed |",
        "|---|---:|---:|---:|---:|---|",
    ]
    notes = set()
    for found in result["differences"][protocol]:
        each = ", ".join(signed(value) for value in found["seeds"].values())
        one, other = (
            between(ends) if ends else "–" for ends in (found["pictures"], found["pictures_and_tasks"])
        )
        name = f"{found['arm']} − {found['against']}"
        lines.append(
            f"| {name} | {found['tasks']} | {signed(found['value'])} | {one} | {other} | {each}{deviation(found)} |"
        )
        notes |= set(found["not_resampled"])
    lines += ["", CHANCE]
    if notes:
        lines += [
            "",
            f"Among these, {not_resampled(sorted(notes))}.",
        ]
    return lines


def gain_table(result: dict[str, Any], protocol: str) -> list[str]:
    """Which tasks gain, and whether that goes along with how well a cluster fits."""
    found = result["gain_and_fit"][protocol]
    names = list(found["spearman"])
    lines = [
        f"Which tasks gain ({result['method']} − {result['baseline']}), beside how well a cluster fits them:",
        "",
        "| task | gain | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---|---:|" + "---:|" * len(names),
    ]
    for row in sorted(found["tasks"], key=lambda row: -row["gain"]):
        cells = [f"{row[name]:.3g}" if name in row else "–" for name in names]
        lines.append(f"| {row['task']} | {signed(row['gain'])} | " + " | ".join(cells) + " |")
    lines.append("")
    for name in names:
        own = found["spearman"][name]
        what = f"{FITS[name]}: "
        if own["rho"] is None:
            lines.append(f"- {what}too few tasks ({own['tasks']}) for a correlation.")
        else:
            lines.append(
                f"- {what}Spearman's rho {own['rho']:+.2f} over {own['tasks']} tasks (p {own['p']:.2g})."
            )
    lines += ["", "So few tasks cannot tell a cause; with several measures one may look related by accident."]
    return lines


def cost_table(result: dict[str, Any]) -> list[str]:
    """Parameters, FLOPs and seconds of every arm."""
    lines = [
        "Parameters and FLOPs of a masked forward pass on one picture in training; seconds of one seed's training "
        "beyond the dense model, and of the clusters that it needs. – is not known.",
        "",
        "| arm | parameters | active | FLOPs | seconds | with clusters | dense model before |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in result["arms"]:
        own, clusters, dense = (arm[n] for n in ("seconds", "cluster_seconds", "dense_seconds"))
        times = [own, None if None in (own, clusters) else own + clusters, dense]
        cells = [
            arm["name"],
            *(count(arm[n]) for n in ("parameters", "active_parameters", "flops_per_image")),
        ]
        lines.append("| " + " | ".join([*cells, *("–" if t is None else clock(t) for t in times)]) + " |")
    notes = selection_notes(result)
    return [*lines, "", *notes] if notes else lines


def selection_notes(result: dict[str, Any]) -> list[str]:
    """What runs stand behind an arm whose clusters another one selects; a sentence for each such arm."""
    return [
        f"{arm['name']} is the mean of {counted(len(arm['runs']), 'run')}, one for each seed and set of clusters that "
        f"the vote of a task leads to; what {arm['selected_by']} took, in which they vote, is not in it."
        for arm in result["arms"]
        if arm.get("selected_by") and arm["runs"]
    ]


def count(value: float | None) -> str:
    """1,234,567 as '1.23 M'."""
    if value is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def signed(value: float, digits: int = 2) -> str:
    """A difference of shares in points: '+1.23'."""
    text = f"{100 * value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"±{0:.{digits}f}"


def between(ends: tuple[float, float] | list[float]) -> str:
    """'+0.3 to +2.1'."""
    return f"{signed(ends[0])} to {signed(ends[1])}"
