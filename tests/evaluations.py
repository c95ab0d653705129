"""What `moce evaluate` writes, without evaluating."""

from typing import Any


def evaluation(task: str = "birds", method: str = "MoCE", value: float = 0.5, **more: Any) -> dict[str, Any]:
    made = {
        "schema": 1,
        "model": "m",
        "model_fingerprint": "f",
        "method": method,
        "task": task,
        "protocol": "knn",
    }
    made |= {
        "metric": "top1",
        "value": value,
        "num_train": 8,
        "num_val": 2,
        "num_test": 100,
        "seed": 0,
        "settings": {},
    }
    return {**made, **more}
