"""The study of negative transfer on the page: bars per task, and the same numbers as a table."""

from typing import Any

from markupsafe import Markup

from moce.images.halves import HALVES
from moce.study.bars import Bar, bar_chart
from moce.study.transfer_tables import verdict


def halves_sections(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is shown of each such study."""
    return [
        {
            "out": study["out"],
            "intervals": any(
                row[half]["pictures"]
                for found in study["transfer"]
                for row in found["tasks"]
                for half in HALVES
            ),
            "corpus": study["corpus"],
            "halves": study["halves"],
            "seeds": study["seeds"],
            "finished": study["finished"],
            "parts": [
                {**found, "chart": halves_chart(found), "said": verdict(found)} for found in study["transfer"]
            ],
        }
        for study in studies
        if study["kind"] == "negative-transfer"
    ]


def halves_chart(found: dict[str, Any]) -> Markup:
    """What each half's model has beyond that of all pictures, task by task."""
    names = [row["task"] for row in found["tasks"]]
    bars = [[bar_of(row[half]) for half in HALVES] for row in found["tasks"]]
    said = f"{found['protocol']}, equal {found['equal']}: points beyond the model of all pictures"
    return bar_chart(names, bars, [f"half {half} minus all" for half in HALVES], said)


def bar_of(own: dict[str, Any]) -> Bar:
    """A difference and its interval, where there is one."""
    return own["value"], tuple(own["pictures"]) if own["pictures"] else None
