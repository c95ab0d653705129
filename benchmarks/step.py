"""The step of the small reference model on this machine: dense, MAE* and experts in turn, interleaved.

    python benchmarks/step.py --out results/step

ViT-Ti/8 (64 pixels, decoder 4 x 96), batch 128, random pictures, no loading. Writes OUT.json: medians of images per
second and their ratios. The steps take turns, so that a machine whose speed drifts slows all of them alike.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moce.config import ExpertsConfig, PretrainConfig, Training, resolve
from moce.engine.devices import multiplies_in_bf16, pick_device
from moce.engine.runs import source_commit
from moce.images.loader import Batch
from moce.model.experts import ClusterGate, ExpertAutoencoder, ExpertShape
from moce.stages.experts import ExpertsObjective, LabelledBatch, fit_gates
from moce.stages.pretrain import DenseObjective, new_model

CLUSTERS = 64


def stepper(
    objective: Any, config: Training, batch: Any, device: torch.device, bf16: bool
) -> Callable[[], None]:
    """One optimiser step of an objective, as the trainer takes it."""
    groups = objective.parameter_groups(config)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, config.beta2), fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = objective(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = pick_device(given.device)
    bf16 = multiplies_in_bf16(device, "auto")
    size = given.batch_size
    dense_config = resolve(PretrainConfig, {"images": "-", "out": "-", "batch_size": size})
    images = torch.randint(0, 256, (size, 3, 64, 64), dtype=torch.uint8)
    indices = torch.arange(size)
    pictures = Batch(images, indices, torch.zeros_like(indices))
    labels = torch.randint(0, CLUSTERS, (size,), generator=torch.Generator().manual_seed(0))
    labelled = LabelledBatch(pictures, labels, torch.bincount(labels, minlength=CLUSTERS).float())
    steps = {
        "step-dense": stepper(
            DenseObjective(new_model(dense_config), dense_config).to(device),
            dense_config,
            pictures,
            device,
            bf16,
        )
    }
    for name, gate in (("step-mae-star", "none"), ("step-experts", "cluster"), ("step-token", "token")):
        options = {"mae": "-", "clusters": "-", "images": "-", "out": "-", "gate": gate, "batch_size": size}
        config = resolve(ExpertsConfig, options)
        dense = new_model(dense_config)
        model: Any = new_model(dense_config)
        if gate != "none":
            shape = ExpertShape(
                config.layers, config.num_experts, config.gate, CLUSTERS, dense.encoder.embed_dim
            )
            model = ExpertAutoencoder.from_dense(dense, shape)
            if isinstance(model.gate, ClusterGate):
                torch.nn.init.normal_(model.gate.centroids_KD)
                fit_gates(model.gate, torch.ones(CLUSTERS), config.balance, config.imbalance)
        steps[name] = stepper(
            ExpertsObjective(model, dense, config).to(device), config, labelled, device, bf16
        )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(given.repeats + 3):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 3:
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        {
            "name": name,
            "images_per_second": size / median[name],
            "seconds_median": median[name],
            "seconds_min": min(times),
            "seconds_max": max(times),
            "ratio": median["step-mae-star"] / median[name],
            "against": "step-mae-star",
        }
        for name, times in seconds.items()
    ]
    setting = {
        "model": "vit-ti/8",
        "image_size": 64,
        "batch_size": size,
        "precision": "bf16" if bf16 else "fp32",
    }
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(device)}
    content = {"setting": setting, "machine": machine, "torch": torch.__version__, "commit": source_commit()}
    Path(given.out + ".json").write_text(
        json.dumps({**content, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    for row in rows:
        print(
            f"{row['name']:<16}{row['images_per_second']:8.1f} images/s, {1 / row['ratio']:.3f} of the MAE* step"
        )


if __name__ == "__main__":
    main()
