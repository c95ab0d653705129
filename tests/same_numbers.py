"""Whether two runs are the same but for rounding."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model.safetensors")


def assert_same_numbers(one: Path, two: Path) -> None:
    """Losses and all that is logged beside them to 1e-5, weights to 1e-4 (AdamW divides by small numbers)."""
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"images_per_second", "utilisation", "layers"}:
            np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=f"{name} at step {a['step']}")
        for layer in a.get("layers", {}):
            for name, value in a["layers"][layer].items():
                np.testing.assert_allclose(
                    b["layers"][layer][name], value, atol=1e-5, err_msg=f"{layer}.{name}"
                )
    model, other = weights(one), weights(two)
    assert model.keys() == other.keys()
    for name in model:
        np.testing.assert_allclose(model[name], other[name], atol=1e-4, err_msg=name)
