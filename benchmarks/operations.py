"""How many operations a training step is, and how many FLOPs: what a GPU would be given to do. Nothing is timed.

    python benchmarks/operations.py --out results/operations.json

Operations are those that torch dispatches in the forward and the backward pass, each a kernel on a GPU or more; how
many there are does not depend on the size of the batch. FLOPs are of one picture's forward pass, with the frozen
teacher where there is one. `small` is the encoder of the studies (4 experts in blocks 2 to 5, no teacher).
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moce.config import BenchConfig, ExpertsConfig, PretrainConfig
from moce.engine.files import write_json
from moce.engine.runs import source_commit
from moce.errors import run_script
from moce.images.loader import Batch
from moce.stages.experts import ExpertsObjective, LabelledBatch
from moce.stages.pretrain import DenseObjective, new_model
from moce.stages.starts import new_experts
from moce.study.bench.costs import counted
from moce.study.bench.settings import AMOUNTS, Setting
from moce.study.bench.steps import Steps, evenly_spread
from moce.verbs import resolve

IMAGES = 8
SMALL = {
    "model": "test_vit",
    "decoder_depth": 1,
    "decoder_width": 64,
    "decoder_heads": 2,
    "preset": "tiny-imagenet",
}
EXPERTS = {"num_experts": 4, "layers": (2, 3, 4, 5), "distill": 0.0, "preset": "tiny-imagenet"}


class Operations(TorchDispatchMode):
    """Counts what is dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def of(loss: Callable[[], Tensor]) -> dict[str, Any]:
    """{operations, forward_gflops} of a loss and its gradient."""
    gflops = counted(loss) / IMAGES / 1e9
    with Operations() as mode:
        loss().backward()
    return {"operations": mode.number, "forward_gflops": round(gflops, 3)}


def small() -> dict[str, Any]:
    """The dense step and that of experts, of the encoder of the studies."""
    dense = resolve(PretrainConfig, {"images": "-", "out": "-", **SMALL})
    experts = resolve(ExpertsConfig, {"mae": "-", "clusters": "-", "images": "-", "out": "-", **EXPERTS})
    model = new_model(dense)
    clusters = torch.arange(IMAGES)
    images = torch.zeros(IMAGES, 3, *model.shape.image_size, dtype=torch.uint8)
    batch = Batch(images, torch.arange(IMAGES), torch.zeros(IMAGES, dtype=torch.int64))
    labelled = LabelledBatch(batch, clusters, torch.bincount(clusters, minlength=32).float())
    plain = DenseObjective(model, dense)
    found = {
        "dense": of(lambda: plain(batch)[0])
    }  # before the model becomes a teacher, whose weights are frozen
    divided = ExpertsObjective(new_experts(model, evenly_spread(model, 32), experts), model, experts)
    return {**found, "cluster": of(lambda: divided(labelled)[0])}


def large(name: str, folder: Path) -> dict[str, Any]:
    """The same of a model of `moce bench`."""
    amounts = replace(AMOUNTS[name, "cpu"], batch_size=IMAGES)
    steps = Steps(Setting(name, amounts, torch.device("cpu"), False, resolve(BenchConfig, {}), folder))
    plain, divided = steps.dense_objective(), steps.objective("cluster")
    return {"dense": of(lambda: plain(steps.pictures)[0]), "cluster": of(lambda: divided(steps.at(0.5))[0])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"small": small(), **{name: large(name, Path(folder)) for name in ("vit-ti/8", "vit-b/16")}}
    print(found)
    if given.out:
        write_json(given.out, {**found, "commit": source_commit()})


if __name__ == "__main__":
    run_script(main)
