"""What a step reads from the device: on a GPU every read waits until all that was asked of it before is done.

The device here is torch's `meta`, which has shapes and no numbers: whatever is read from it is an error.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional

from moce.config import ExpertsConfig, PretrainConfig
from moce.images.augment import crop_boxes, resize_crops
from moce.images.loader import Batch
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder, ExpertShape
from moce.model.subnets import SubnetAutoencoder
from moce.stages.experts import ExpertsObjective, LabelledBatch
from moce.stages.pretrain import DenseObjective

META = torch.device("meta")
SHAPE = AutoencoderShape("test_vit", (32, 32), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
LAYERS, CLUSTERS = (1, 3), 6
PATHS = {"mae": "m", "clusters": "c", "images": "i", "out": "o"}


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none for this device; all but grouped products, which ask themselves, compute in fp32."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


class Grouped(NamedTuple):
    """The precision that grouped products should have, and the precisions of each one that was made."""

    dtype: torch.dtype
    calls: list[set[torch.dtype]]


def pictures() -> Batch:
    indices = torch.arange(7)
    return Batch(torch.zeros(7, 3, 32, 32, dtype=torch.uint8), indices, torch.zeros_like(indices))


def batch(progress: float = 0.0) -> LabelledBatch:
    labels = torch.arange(7) % CLUSTERS
    return LabelledBatch(pictures(), labels, torch.bincount(labels, minlength=CLUSTERS).float(), progress)


def objective(gate: str, dispatch: str, top_k: int = 1) -> ExpertsObjective:
    config = ExpertsConfig(**PATHS, gate=gate, layers=LAYERS, num_experts=4, top_k=top_k, dispatch=dispatch)
    dense = MaskedAutoencoder(SHAPE)
    if gate == "none":
        return ExpertsObjective(MaskedAutoencoder(SHAPE), dense, config)
    kind = SubnetAutoencoder if gate == "sdr" else ExpertAutoencoder
    model = kind.from_dense(dense, ExpertShape(LAYERS, 4, gate, CLUSTERS, 64, top_k))
    model.set_dispatch(dispatch)
    return ExpertsObjective(model, dense, config)


def step(objective: torch.nn.Module, batch: object) -> None:
    loss, logs = objective.to(META)(batch)
    loss.backward()
    assert loss.device == META and all(value.device == META for value in logs.values())
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_dense_training_reads_nothing() -> None:
    step(DenseObjective(MaskedAutoencoder(SHAPE), PretrainConfig(images="i", out="o")), pictures())


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def grouped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Grouped:
    """Grouped products as without and as under autocast, which they ask for what it would multiply in."""
    multiply, calls = functional.grouped_mm, []

    def seen(x: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        out = multiply(x, weight, **options)
        calls.append({x.dtype, weight.dtype, out.dtype})
        return out

    monkeypatch.setattr(functional, "grouped_mm", seen)
    if request.param == torch.bfloat16:
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda *_: torch.bfloat16)
    return Grouped(request.param, calls)


@pytest.mark.parametrize(("gate", "top_k"), [("cluster", 1), ("cluster", 2), ("token", 1), ("none", 1)])
def test_training_with_grouped_products_reads_nothing(grouped: Grouped, gate: str, top_k: int) -> None:
    step(objective(gate, "grouped", top_k), batch())
    wanted = 0 if gate == "none" else 2 * len(LAYERS) * top_k  # an MLP is two products
    assert grouped.calls == [{grouped.dtype}] * wanted


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_sub_nets_with_grouped_products_read_nothing(grouped: Grouped, progress: float) -> None:
    step(objective("sdr", "grouped"), batch(progress))
    assert grouped.calls == [{grouped.dtype}] * (2 * len(LAYERS) if progress else 0)


def test_crops_on_a_device_read_nothing() -> None:
    draws = pictures()
    sides = torch.full_like(draws.indices, 40)
    boxes = crop_boxes(0, draws.epochs, draws.indices, sides, sides, 0.2)
    crops = resize_crops(torch.zeros(7, 3, 40, 40, dtype=torch.uint8, device=META), boxes, (32, 32))
    assert crops.shape == (7, 3, 32, 32) and crops.device == META


@pytest.mark.parametrize("gate", ["cluster", "token"])
def test_sorted_products_read_the_shares_once_a_block_and_choice(
    gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step(objective(gate, "sorted"), batch())
    read, tolist = [], torch.Tensor.tolist
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor.shape) or tolist(tensor))
        objective(gate, "sorted", top_k=2)(batch())
    assert [shape for shape in read if shape == (4,)] == [(4,)] * len(LAYERS) * 2
