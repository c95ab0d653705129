"""Tables of evaluations: every score with its interval, every difference to the dense model with its own."""

from typing import Any

from markupsafe import Markup

from moce.study.gauges import forest_axis, forest_row
from moce.study.table import Table


def result_section(table: Table) -> dict[str, Any]:
    """A table, its differences drawn and in numbers, and how each number was got."""
    rivals = [m for m in table.methods if table.baseline and m != table.baseline]
    known = [d for task in [*table.tasks, None] for m in rivals if (d := table.difference_interval(task, m))]
    reach = max((abs(end) for ends in known for end in ends), default=0.0) or 0.01
    colours = {method: number for number, method in enumerate(table.methods)}

    def drawn(task: str | None) -> Markup | None:
        rows = []
        for rival in rivals:
            value, ends = table.difference(task, rival), table.difference_interval(task, rival)
            if value is not None and ends is not None:
                rows.append((colours[rival], value, ends, table.significant(task, rival)))
        return forest_row(rows, reach, f"differences to {table.baseline}") if rows else None

    differences = [(task, m) for task in [*table.tasks, None] for m in rivals]
    asked = [(task, m) for task in table.tasks for m in rivals if table.difference_interval(task, m)]
    return {
        "table": table,
        "rivals": rivals,
        "colours": colours,
        "axis": forest_axis(reach) if known else None,
        "forest": {task: drawn(task) for task in [*table.tasks, None]},
        "intervals": any(table.interval(task, m) for task in table.tasks for m in table.methods),
        "hollow": any(table.difference_interval(*d) and not table.significant(*d) for d in differences),
        "several": any(table.spread(task, m) for task in table.tasks for m in table.methods),
        "asked": len(asked),
        "significant": sum(table.significant(task, m) for task, m in asked),
        "wins": {m: table.wins(m) for m in table.methods},
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
