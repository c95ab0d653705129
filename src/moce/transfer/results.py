"""What the JSON of every protocol's result begins and ends with."""

from typing import Any

import torch

from moce.config import EvaluateConfig
from moce.engine.devices import peak_rss_bytes
from moce.engine.runs import source_commit
from moce.transfer.encoder import Encoder

SCHEMA = 1


def heading(config: EvaluateConfig, encoder: Encoder, task: str, protocol: str) -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "schema": SCHEMA,
        "model": config.model,
        "model_fingerprint": encoder.fingerprint,
        "method": encoder.method,
        "task": task,
        "protocol": protocol,
    }


def ending(encoder: Encoder, seconds: float) -> dict[str, Any]:
    """What it took, with which code, and how the encoder was got."""
    return {
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "commit": source_commit(),
        "torch": torch.__version__,
        **encoder.about,
    }


def strategy_named(encoder: Encoder) -> dict[str, str]:
    """How the sub-model was chosen, where there were several."""
    choice = encoder.about.get("choice", {})
    return {"strategy": choice["strategy"]} if "strategy" in choice else {}
