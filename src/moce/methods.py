"""What a run of train-experts is called: the names that tables, pages and files have for a method."""

from collections.abc import Mapping
from typing import Any


def experts_method(options: Mapping[str, Any]) -> str:
    """What the method of a run of train-experts is called, by its options."""
    gate = options["gate"]
    mlps = ", MLPs alone" if options.get("only_mlps") else ""
    if options.get("only_clusters"):
        return f"data selection{mlps}"
    names = {"cluster": "MoCE", "token": "TokenMoE", "none": f"MAE*{mlps}", "sdr": "SDR"}
    name = "random clusters" if options.get("shuffle_clusters") else names[gate]
    shared = options.get("shared_gradient") and gate in ("cluster", "token")
    return f"{name}, shared gradient" if shared else name
