"""What methods cost, on the page: the tables of the study `efficiency`, and the machine that they are of."""

from typing import Any

from moce.study.efficiency_tables import cost_tables


def cost_sections(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is shown of each such study."""
    return [
        {**study, "tables": cost_tables(study["rows"])} for study in studies if study["kind"] == "efficiency"
    ]
