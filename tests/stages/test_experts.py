"""Training experts: the losses of a batch, the gates' start, and what a run leaves."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from moce.config import ExpertsConfig
from moce.images.loader import Batch
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder, ExpertShape, importance_loss
from moce.model.weights import load_model
from moce.stages import feed
from moce.stages.experts import ExpertsObjective, LabelledBatch
from moce.stages.starts import fit_gates
from moce.verbs import resolve

SHAPE = AutoencoderShape(
    "test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2, mask_ratio=0.5
)
CLUSTERS = 6


def config(**options: object) -> ExpertsConfig:
    return resolve(
        ExpertsConfig, {"mae": "m", "clusters": "c", "images": "x", "out": "y", "preset": "debug", **options}
    )


def experts(gate: str, seed: int = 0) -> tuple[ExpertAutoencoder, MaskedAutoencoder]:
    torch.manual_seed(seed)
    dense = MaskedAutoencoder(SHAPE)
    model = ExpertAutoencoder.from_dense(dense, ExpertShape((1, 3), 4, gate, CLUSTERS, 64))
    if gate == "cluster":
        model.gate.centroids_KD.copy_(F.normalize(torch.randn(CLUSTERS, 64)))
    return model, dense


def batch(labels: list[int], histogram: list[float] | None = None) -> LabelledBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(labels), 3, 16, 16), generator=generator, dtype=torch.uint8)
    indices = torch.arange(len(labels))
    spread = torch.bincount(torch.tensor(labels), minlength=CLUSTERS).float()
    return LabelledBatch(
        Batch(images, indices, torch.zeros_like(indices)),
        torch.tensor(labels),
        spread if histogram is None else torch.tensor(histogram),
    )


def test_fitted_gates_are_sure_and_even() -> None:
    model, _ = experts("cluster")
    fitted = fit_gates(model.gate, torch.tensor([10, 10, 10, 10, 10, 10]), 0.01, 0.005)
    for layer in fitted:
        assert layer["max_gate"] > 0.9 and layer["largest_load"] <= 2.0
    chosen = model.gate.logits().argmax(dim=-1)
    assert all(len(set(row.tolist())) == 4 for row in chosen), "every expert has a cluster"


def test_the_loss_is_the_sum_of_its_parts() -> None:
    model, dense = experts("cluster")
    options = config(balance=0.3, imbalance=0.2, distill=0.7)
    loss, logs = ExpertsObjective(model, dense, options)(batch([0, 1, 2, 3, 3, 5]))
    wanted = logs["reconstruction"] + 0.7 * logs["distill"] + 0.3 * logs["balance"] + 0.2 * logs["imbalance"]
    assert torch.allclose(loss, wanted)
    assert logs["distill"].item() < 1e-10, "at the start the experts are the dense model"


def test_balance_reads_the_histogram_of_the_global_batch() -> None:
    model, dense = experts("cluster")
    torch.nn.init.normal_(model.gate.weight_LED, std=2.0)
    objective = ExpertsObjective(model, dense, config())
    everywhere = [5.0, 0.0, 1.0, 2.0, 0.0, 0.0]
    _, logs = objective(batch([0, 1], everywhere))
    gates_KE = model.gate.logits()[0].softmax(dim=1)
    assert torch.allclose(logs["1.balance"], importance_loss(gates_KE, torch.tensor(everywhere)))


def test_every_part_reaches_the_gate_and_nothing_reaches_the_teacher() -> None:
    for gate in ("cluster", "token"):
        model, dense = experts(gate)
        loss, _ = ExpertsObjective(model, dense, config())(batch([0, 1, 2, 3]))
        loss.backward()
        assert model.gate.weight_LED.grad.abs().sum() > 0
        assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad), gate
        assert all(p.grad is None for p in dense.parameters())


def test_experts_and_gates_have_rates_of_their_own() -> None:
    model, dense = experts("cluster")
    options = config(gate_lr=0.01, expert_lr=0.5, base_lr=2e-3, batch_size=32)
    groups = ExpertsObjective(model, dense, options).parameter_groups(options)
    assert [g["weight_decay"] for g in groups] == [0.05, 0.0, 0.05, 0.0, 0.0]
    assert [g["peak_lr"] for g in groups] == pytest.approx([2.5e-4, 2.5e-4, 1.25e-4, 1.25e-4, 0.01])
    assert groups[4]["params"] == [model.gate.weight_LED]
    names = {id(p): name.rsplit(".", 1)[-1] for name, p in model.named_parameters()}
    assert {names[id(p)] for p in groups[2]["params"]} == {"w1_EDF", "w2_EFD"}
    assert {names[id(p)] for p in groups[3]["params"]} == {"b1_EF", "b2_ED"}
    grouped = [id(p) for g in groups for p in g["params"]]
    assert len(grouped) == len(set(grouped)) == sum(p.requires_grad for p in model.parameters())


def test_one_process_and_two_halves_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops, masks and gate noise follow the picture, so two halves of a batch add up to the whole."""
    model, dense = experts("cluster")
    objective = ExpertsObjective(model, dense, config(distill=0.0, flip=True, batch_size=6))
    whole = batch([0, 1, 2, 3, 4, 5])
    loss, _ = objective(whole)
    halves = []
    monkeypatch.setattr(feed, "group", lambda: SimpleNamespace(world=2))
    for part in (slice(0, 3), slice(3, 6)):
        pictures = Batch(*(t[part] for t in whole.pictures))
        halves.append(objective(LabelledBatch(pictures, whole.labels_B[part], whole.histogram_K))[0])
    assert torch.allclose(loss, torch.stack(halves).mean(), atol=1e-6)


# A run


def test_the_load_counts_every_choice() -> None:
    choices = torch.tensor([[0, 1], [0, 1], [2, 1]])
    seen = ExpertsObjective._watch(3, choices, F.one_hot(choices[:, 0], 4).float())
    assert torch.allclose(seen["3.load"], torch.tensor([2, 3, 1, 0]) / 6)
    assert seen["3.agreement"] == 1


def test_what_a_run_leaves(small_runs) -> None:
    for folder in (small_runs.moce, small_runs.token_moce, small_runs.mae_star):
        assert (folder / "clusters.safetensors").is_file() and (folder / "model.safetensors").is_file()
    routing = json.loads((small_runs.moce / "routing.json").read_text())
    model, header = load_model(small_runs.moce)
    assert header["about"]["method"] == "MoCE"
    assert routing["1"]["expert"] == model.gate.logits()[0].argmax(dim=1).tolist()


def test_metrics_of_experts(small_runs) -> None:
    lines = [json.loads(text) for text in (small_runs.moce / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 17))
    for line in lines:
        assert {
            "loss",
            "lr",
            "epoch",
            "images_per_second",
            "utilisation",
            "distill",
            "balance",
        } <= line.keys()
        for layer in line["layers"].values():
            assert sum(layer["load"]) == pytest.approx(1, abs=1e-5)
            assert 0 <= layer["agreement"] <= 1 and layer["dead"] == sum(s < 1 / 16 for s in layer["load"])
    assert "layers" not in json.loads((small_runs.mae_star / "metrics.jsonl").read_text().splitlines()[0])


def test_all_methods_start_from_the_same_dense_model(small_runs) -> None:
    """The first step's reconstruction is the dense model's, whatever the gate."""
    first = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["reconstruction"]
        for folder in (small_runs.moce, small_runs.token_moce, small_runs.mae_star)
    ]
    assert first[0] == pytest.approx(first[1], rel=2e-3) and first[0] == pytest.approx(first[2], rel=2e-3)
