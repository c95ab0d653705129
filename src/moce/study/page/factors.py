"""The ablation on the page: every level beside the base, with intervals drawn."""

from typing import Any

from moce.study.gauges import forest_axis, forest_row
from moce.study.pairs import CHANCE, stands_out


def factor_sections(studies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is shown of each ablation: per protocol the levels of each factor that were measured."""
    return [
        {
            "out": study["out"],
            "corpus": study["corpus"],
            "seeds": study["seeds"],
            "tasks": study["tasks"],
            "finished": study["finished"],
            "protocols": [
                part for protocol in study["differences"] if (part := of_protocol(study, protocol))
            ],
        }
        for study in studies
        if study["kind"] == "ablate"
    ]


def of_protocol(study: dict[str, Any], protocol: str) -> dict[str, Any] | None:
    """The levels' differences to the base by one protocol; None where nothing is there yet."""
    found = {pair["arm"]: pair for pair in study["differences"][protocol] if pair["against"] == "base"}
    if not found:
        return None
    ends = [abs(end) for pair in found.values() for end in (pair["value"], *(pair["pictures"] or ()))]
    reach = max(ends, default=0.0) or 0.01

    def row(name: str) -> dict[str, Any]:
        pair = found[name]
        drawn = [(0, pair["value"], tuple(pair["pictures"]), stands_out(pair))] if pair["pictures"] else []
        return {**pair, "drawn": forest_row(drawn, reach, f"{name}: points from the base") if drawn else None}

    factors = [
        {**factor, "rows": [row(name) for name in factor["levels"] if name in found]}
        for factor in study["factors"]
    ]
    return {
        "protocol": protocol,
        "axis": forest_axis(reach) if any(pair["pictures"] for pair in found.values()) else None,
        "base": study["tables"][protocol]["mean"].get("base"),
        "shared": len(study["tables"][protocol]["shared"]),
        "factors": [factor for factor in factors if factor["rows"]],
        "asked": len(found),
        "apart": sum(map(stands_out, found.values())),
        "chance": CHANCE,
    }
