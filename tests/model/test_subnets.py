"""Sub-nets of SDR: at the start the dense model, in their two phases, and as files."""

from pathlib import Path

import pytest
import torch

from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ExpertShape
from moce.model.subnets import SubnetAutoencoder, SubnetMLPs
from moce.model.weights import load_model, save_model
from moce.stages.customize import distinct, slice_encoder

SHAPE = AutoencoderShape("test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
GROUPS = torch.tensor([0, 2, 2, 1, 0, 3])


@pytest.fixture
def dense() -> MaskedAutoencoder:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SHAPE)
    for block in model.encoder.blocks:  # biases are zero at the start and would hide a wrong one
        torch.nn.init.normal_(block.mlp.fc1.bias, std=0.5)
        torch.nn.init.normal_(block.mlp.fc2.bias, std=0.5)
    return model


@pytest.fixture
def model(dense: MaskedAutoencoder) -> SubnetAutoencoder:
    own = SubnetAutoencoder.from_dense(dense, ExpertShape((1, 3), 4, "sdr", len(GROUPS), 64))
    own.gate.group_K.copy_(GROUPS)
    return own


def halves(model: SubnetAutoencoder, layer: int) -> SubnetMLPs:
    mlp = model.encoder.blocks[layer].mlp
    assert isinstance(mlp, SubnetMLPs)
    return mlp


@pytest.mark.parametrize("labels", [None, [0, 1, 2, 3, 4, 5], [3, 3, 3, 3, 3, 3]])
def test_step_zero_is_the_dense_model_in_both_phases(
    dense: MaskedAutoencoder, model: SubnetAutoencoder, labels: list[int] | None
) -> None:
    images, noise = torch.randn(6, 3, 16, 16), torch.rand(6, 4)
    router = model.router(None if labels is None else torch.tensor(labels))
    with torch.no_grad():
        wanted, got = dense(images, noise), model(images, noise, router)
    assert abs(wanted.loss.item() - got.loss.item()) <= 1e-6
    assert torch.allclose(wanted.latent, got.latent, atol=2e-6, rtol=1e-5)


def test_own_halves_stay_copies_while_the_whole_net_is_trained_and_part_afterwards(
    model: SubnetAutoencoder,
) -> None:
    """So the mean of the own halves is the whole net: no unit of the others is left out."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = halves(model, 1).own.w1_EDF.detach().clone()
    for labels in (None, None, None, torch.tensor([0, 1, 3])):
        optimizer.zero_grad()
        model(torch.randn(3, 3, 16, 16), torch.rand(3, 4), model.router(labels)).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        own_EDF = halves(model, 1).own.w1_EDF.detach()
        assert (own_EDF - before).abs().max() > 1e-3
        assert torch.equal(own_EDF, own_EDF[:1].expand_as(own_EDF)) == (labels is None)
    own = halves(model, 1).own
    assert own.w1_EDF.grad is not None and own.w1_EDF.grad[3].abs().sum() == 0  # no picture of its group


def test_the_whole_net_is_the_mean_of_all_own_units_side_by_side(model: SubnetAutoencoder) -> None:
    mlp, rows = halves(model, 3), torch.randn(2, 5, 64)
    total = torch.zeros(2, 5, 64)
    for group in range(4):
        state = mlp.own.expert(group)
        hidden = torch.nn.functional.gelu(rows @ state["fc1.weight"].T + state["fc1.bias"])
        total += hidden @ state["fc2.weight"].T + state["fc2.bias"]
    assert torch.allclose(mlp(rows, None), mlp.shared(rows) + total / 4, atol=1e-6)


def test_a_slice_is_the_sub_net_of_the_group(model: SubnetAutoencoder) -> None:
    with torch.no_grad():
        for parameter in model.encoder.blocks[1].mlp.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    images = torch.randn(2, 3, 16, 16)
    there = distinct(model)
    assert [own.cluster for own in there] == [0, 1, 3, 5]  # the first cluster of each group
    outs = []
    for own in there:
        vit = slice_encoder(model, own)
        with torch.no_grad():
            outs.append(vit.forward_features(images))
            routed = model.tokens(images, model.router(torch.full((2,), own.cluster)))
        assert (outs[-1] - routed).abs().max() <= 1e-5
        assert vit.blocks[1].mlp.fc1.out_features == 192  # as the dense model has
    assert (outs[0] - outs[1]).abs().max() > 1e-3


def test_size_and_cost(dense: MaskedAutoencoder, model: SubnetAutoencoder) -> None:
    half = sum(p.numel() for p in dense.encoder.blocks[1].mlp.parameters()) - 64  # the output bias is whole
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in dense.parameters())
    assert extra == 2 * (3 * half // 2 + 4 * 64)
    assert model.flops_per_image() == dense.flops_per_image()


def test_the_file_rebuilds_the_model(model: SubnetAutoencoder, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", model, {"method": "SDR"})
    again, header = load_model(tmp_path / "model.safetensors")
    assert isinstance(again, SubnetAutoencoder) and header["experts"]["gate"] == "sdr"
    assert torch.equal(again.gate.group_K, GROUPS)
    images = torch.randn(2, 3, 16, 16)
    router = torch.tensor([1, 3])
    with torch.no_grad():
        assert torch.equal(
            again.features(images, again.router(router)), model.features(images, model.router(router))
        )
