"""The study of negative transfer on the page: bars per task, and the same numbers as a table."""

from typing import Any

from moce.images.halves import HALVES
from moce.study.transfer_tables import halves_chart, verdict


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
