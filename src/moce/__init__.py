"""moce: pre-train a masked autoencoder once, then slice a customised plain ViT out of it for every task.

The verbs of the command line are functions here: `moce.pretrain(images=..., out=...)`. They are imported on first
use, so that `import moce` is quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

VERBS = {
    "demo": "moce.study.demo",
    "prepare": "moce.stages.prepare",
    "pretrain": "moce.stages.pretrain",
    "cluster": "moce.stages.cluster",
    "train_experts": "moce.stages.experts",
    "customize": "moce.stages.customize",
    "evaluate": "moce.transfer.evaluate",
    "study": "moce.study.studies",
    "report": "moce.study.report",
    "inspect": "moce.study.inspect",
    "bench": "moce.study.bench.bench",
}

__all__ = ["VERBS", "__version__", *VERBS]


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return getattr(import_module(VERBS[name]), name)
    raise AttributeError(f"module 'moce' has no attribute '{name}'")
