"""What methods cost, on the page: the tables of the study `efficiency`, and the machine that they are of."""

from typing import Any

from moce.study.efficiency_tables import cost_tables


def cost_sections(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is shown of each such study."""
    return [
        {**study, **conditions(study), "tables": cost_tables(study["rows"])}
        for study in studies
        if study["kind"] == "efficiency"
    ]


def conditions(study: dict[str, Any]) -> dict[str, Any]:
    """The machine, which is the same for all parts but for what else it was doing."""
    machines = study["machines"] if "machines" in study else {"all": study["machine"]}  # of an older version
    loads = [f"{name} {machine['load_average']:.1f}" for name, machine in machines.items()]
    return {"machine": next(iter(machines.values()), None), "loads": ", ".join(loads)}
