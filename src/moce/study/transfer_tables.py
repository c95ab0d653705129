"""The studies `negative-transfer` and `ablate` as tables for a file, and what page and file show alike."""

from typing import Any

from markupsafe import Markup

from moce.images.halves import HALVES
from moce.study.bars import Bar, bar_chart
from moce.study.markdown import between, signed
from moce.study.pairs import CHANCE


def halves_tables(transfer: list[dict[str, Any]]) -> str:
    """What each half's model has beyond that of all pictures, one table for each protocol and what is kept equal."""
    blocks = []
    for found in transfer:
        lines = [
            "| points from all | half A | half B | better half | its model |",
            "|---|---:|---:|---|---:|",
        ]
        for row in found["tasks"]:
            halves = " | ".join(cell(row[half]) for half in HALVES)
            chosen = f"{row['better']} (by val)" if row["better"] else "–"
            gain = cell(row["improvement"]) if row["improvement"] else "–"
            lines.append(f"| {row['task']} | {halves} | {chosen} | {gain} |")
        lines += ["", verdict(found)]
        if found["better_half"] is not None:
            lines[-1] += (
                f" Its mean is {signed(found['better_half']['value'])} points. By the test pictures, which favours the "
                f"larger of two, either half is better on {found['either']}."
            )
        lines[-1] += f" {CHANCE}"
        blocks += ["", f"### {found['protocol']}, equal {found['equal']}", "", *lines]
    return "\n".join(["", "## Halves against all", *blocks, ""])


def verdict(found: dict[str, Any]) -> str:
    """A sentence for people."""
    number = len(found["tasks"])
    apart = found["separable"]
    if apart is None:
        return (
            "No score on validation says of every task which half is the better one. By the test pictures, which "
            f"favours the larger of two, either half is better on {found['either']} of {number} tasks."
        )
    return (
        f"On {found['improved']} of {number} tasks the better half's model is better than that of all pictures "
        f"(significantly, by the test pictures: better on {apart['better']}, worse on {apart['worse']})."
    )


def factor_tables(differences: dict[str, Any], factors: list[dict[str, Any]]) -> str:
    """Every level beside the base, one table for each protocol."""
    blocks = []
    for protocol, pairs in differences.items():
        found = {pair["arm"]: pair for pair in pairs if pair["against"] == "base"}
        lines = [
            "| factor | base | to | points from the base | 95 % interval | tasks | every seed |",
            "|---|---|---|---:|---:|---:|---|",
        ]
        for factor in factors:
            base = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in factor["base"].items())
            for name in factor["levels"]:
                if (pair := found.get(name)) is not None:
                    ends = between(pair["pictures"]) if pair["pictures"] else "–"
                    seeds = ", ".join(signed(value) for value in pair["seeds"].values())
                    cells = [
                        factor["name"],
                        base,
                        name,
                        signed(pair["value"]),
                        ends,
                        str(pair["tasks"]),
                        seeds,
                    ]
                    lines.append(f"| {' | '.join(cells)} |")
        blocks += ["", f"### {protocol}", "", *lines, "", CHANCE]
    return "\n".join(["", "## One factor at a time", *blocks, ""])


def cell(found: dict[str, Any]) -> str:
    """'+1.20 (−0.30 to +2.70)'."""
    ends = found["pictures"]
    return f"{signed(found['value'])} ({between(ends)})" if ends else signed(found["value"])


def halves_chart(found: dict[str, Any]) -> Markup:
    """What each half's model has beyond that of all pictures, task by task."""
    names = [row["task"] for row in found["tasks"]]
    bars = [[bar_of(row[half]) for half in HALVES] for row in found["tasks"]]
    said = f"{found['protocol']}, equal {found['equal']}: points beyond the model of all pictures"
    return bar_chart(names, bars, [f"half {half} minus all" for half in HALVES], said)


def bar_of(own: dict[str, Any]) -> Bar:
    """A difference and its interval, where there is one."""
    return own["value"], tuple(own["pictures"]) if own["pictures"] else None
