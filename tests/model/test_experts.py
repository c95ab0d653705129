"""Gates, dispatchers, experts and their losses, against plain references and arrays worked out by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moce.errors import UserError
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.dispatch import Choice, ExpertMLPs, dispatch_grouped, dispatch_loop, dispatch_sorted
from moce.model.experts import (
    ExpertAutoencoder,
    ExpertShape,
    choose,
    expected_choices,
    imbalance_loss,
    importance_loss,
    squared_variation,
)
from moce.stages.experts import active_parameters

SHAPE = AutoencoderShape("test_vit", (32, 32), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)


def expert_shape(gate: str = "cluster", **changes: object) -> ExpertShape:
    return ExpertShape(
        **{
            "layers": (1, 3),
            "num_experts": 4,
            "gate": gate,
            "num_clusters": 6,
            "cluster_width": 64,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def dense() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SHAPE)


def different_experts(num_experts: int = 4, width: int = 8, hidden: int = 12) -> ExpertMLPs:
    torch.manual_seed(1)
    experts = ExpertMLPs(num_experts, width, hidden)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    return experts


# Dispatch


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_dispatchers_agree_in_value_and_gradient(choices: list[int], tokens: int) -> None:
    experts, expert_N = different_experts(), torch.tensor(choices)
    rows = torch.randn(len(choices), tokens, 8)
    results = []
    for dispatch in (dispatch_loop, dispatch_sorted, dispatch_grouped):
        experts.zero_grad()
        given_rows = rows.clone().requires_grad_()
        out = dispatch(experts.weights(), given_rows, expert_N)
        out.square().sum().backward()
        results.append((out.detach(), given_rows.grad, [p.grad.clone() for p in experts.parameters()]))
    out_a, rows_a, grads_a = results[0]
    for out_b, rows_b, grads_b in results[1:]:
        assert torch.allclose(out_a, out_b, atol=1e-4, rtol=1e-5)
        assert torch.allclose(rows_a, rows_b, atol=1e-3, rtol=1e-4)
        for a, b in zip(grads_a, grads_b, strict=True):
            assert torch.allclose(a, b, atol=1e-2, rtol=1e-4)


def test_dispatchers_agree_in_bf16_but_for_its_rounding() -> None:
    experts, rows = different_experts(width=16, hidden=32), torch.randn(40, 3, 16)
    expert_N = torch.arange(40) % 3
    with torch.autocast("cpu", torch.bfloat16):
        outs = [d(experts.weights(), rows, expert_N).float() for d in (dispatch_sorted, dispatch_grouped)]
    exact = dispatch_loop(experts.weights(), rows, expert_N)
    for out in outs:
        assert 0 < (out - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("dispatch", [dispatch_sorted, dispatch_grouped])
def test_an_expert_without_rows_has_a_zero_gradient(dispatch) -> None:
    experts = different_experts()
    dispatch(experts.weights(), torch.randn(3, 2, 8), torch.tensor([0, 2, 2])).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0 and parameter.grad[3].abs().sum() == 0


@pytest.mark.parametrize("dispatch", [dispatch_loop, dispatch_sorted, dispatch_grouped])
def test_gradients_are_shared_as_asked(dispatch) -> None:
    rows, expert_N = torch.randn(6, 2, 8), torch.tensor([0, 2, 2, 0, 0, 3])
    grads, outs = {}, {}
    for share in (0.0, 0.25, 1.0):
        experts = different_experts()
        experts.shared_gradient = share
        outs[share] = dispatch(experts.weights(), rows, expert_N)
        outs[share].square().sum().backward()
        grads[share] = [p.grad for p in experts.parameters()]
    assert torch.equal(outs[0.0], outs[0.25]) and torch.equal(outs[0.0], outs[1.0])
    for own, quarter, whole in zip(*grads.values(), strict=True):
        assert own[1].abs().sum() == 0  # it had no rows, and learns all the same
        assert torch.allclose(quarter[1], 0.25 * (own[0] + own[2] + own[3]), rtol=1e-5, atol=1e-5)
        assert torch.allclose(quarter[0], own[0] + 0.25 * (own[2] + own[3]), rtol=1e-4, atol=1e-4)
        assert torch.allclose(whole, own.sum(dim=0).expand_as(own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_that_share_all_gradients_learn_what_the_dense_model_does(
    dense: MaskedAutoencoder, top_k: int
) -> None:
    routed = ExpertAutoencoder.from_dense(dense, expert_shape(top_k=top_k))
    routed.share_gradient(1.0)
    plain = MaskedAutoencoder(SHAPE)
    plain.load_state_dict(dense.state_dict())
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (routed, plain)]
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 3, 32, 32, generator=generator)
        noise = torch.rand(6, 16, generator=generator)
        for optimiser in optimisers:
            optimiser.zero_grad()
        routed(images, noise, routed.router(torch.arange(6))).loss.backward()
        plain(images, noise).loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    for layer in (1, 3):
        experts, mlp = routed.encoder.blocks[layer].mlp, plain.encoder.blocks[layer].mlp
        for weight in experts.parameters():
            assert torch.equal(weight, weight[:1].expand_as(weight))
        for name, weight in experts.expert(0).items():
            assert not torch.equal(weight, dense.encoder.blocks[layer].mlp.get_parameter(name))
            assert torch.allclose(weight, mlp.get_parameter(name), atol=2e-5), name
    trunk = dict(routed.named_parameters())
    for name, weight in plain.named_parameters():
        if name in trunk:
            assert torch.allclose(trunk[name], weight, atol=2e-5), name


def test_a_row_goes_through_its_own_expert() -> None:
    experts, rows = different_experts(), torch.randn(3, 2, 8)
    choice = Choice(torch.tensor([[2], [0], [3]]), torch.tensor([[1.0], [1.0], [0.5]]))
    out = experts(rows, choice)
    for row, (expert, scale) in enumerate([(2, 1.0), (0, 1.0), (3, 0.5)]):
        state = experts.expert(expert, scale)
        hidden = F.gelu(F.linear(rows[row], state["fc1.weight"], state["fc1.bias"]))
        wanted = F.linear(hidden, state["fc2.weight"], state["fc2.bias"])
        assert torch.allclose(out[row], wanted, atol=1e-5)


def test_choices_per_token_and_per_picture_are_the_same_thing() -> None:
    experts, rows = different_experts(), torch.randn(3, 2, 8)
    per_picture = Choice(torch.tensor([[2], [0], [3]]), torch.ones(3, 1))
    per_token = Choice(torch.tensor([[2], [2], [0], [0], [3], [3]]), torch.ones(6, 1))
    assert torch.allclose(experts(rows, per_picture), experts(rows, per_token), atol=1e-6)


# Gates


def test_straight_through_is_one_and_lets_the_gate_learn() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.0, -1.0]], requires_grad=True)
    choice = choose(logits, None, 1, "straight-through")
    assert choice.expert_NC.tolist() == [[1], [0]]
    assert torch.equal(choice.scale_NC, torch.ones(2, 1))
    (choice.scale_NC * torch.tensor([[1.0], [-1.0]])).sum().backward()
    assert logits.grad[0, 1] > 0 > logits.grad[0, 0] and logits.grad[1, 0] < 0 < logits.grad[1, 1]


def test_raw_scale_is_the_probability() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert torch.allclose(choose(logits, None, 1, "raw").scale_NC, torch.tensor([[0.75]]))
    both = choose(logits, None, 2, "straight-through")
    assert torch.allclose(both.scale_NC, torch.tensor([[0.75, 0.25]]))


def test_noise_can_change_the_choice() -> None:
    logits = torch.tensor([[1.0, 0.9]])
    assert choose(logits, torch.tensor([[0.0, 0.5]]), 1, "raw").expert_NC.item() == 1


@pytest.mark.parametrize("gate", ["cluster", "token"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_step_zero_equals_the_dense_model_for_any_routing(
    dense: MaskedAutoencoder, gate: str, top_k: int
) -> None:
    model = ExpertAutoencoder.from_dense(dense, expert_shape(gate, top_k=top_k))
    torch.nn.init.normal_(model.gate.weight_LED, std=3.0)
    if gate == "cluster":
        torch.nn.init.normal_(model.gate.centroids_KD)
    images, noise = torch.randn(7, 3, 32, 32), torch.rand(7, 16)
    labels = torch.arange(7) % 6
    tokens = () if gate == "cluster" else (SHAPE.num_visible + 1,)
    router = model.router(labels, torch.randn(2, 7, *tokens, 4) * 5)
    with torch.no_grad():
        wanted, got = dense(images, noise), model(images, noise, router)
    chosen = {e for choice in router.choices.values() for e in choice.expert_NC.flatten().tolist()}
    assert len(chosen) > 1, "the routing of this test must use several experts"
    assert abs(wanted.loss.item() - got.loss.item()) <= 1e-6
    assert torch.allclose(wanted.latent, got.latent, atol=2e-6, rtol=1e-5)


def test_cluster_gate_is_fp32_under_autocast(dense: MaskedAutoencoder) -> None:
    model = ExpertAutoencoder.from_dense(dense, expert_shape())
    torch.nn.init.normal_(model.gate.centroids_KD)
    plain = model.gate.logits()
    with torch.autocast("cpu", torch.bfloat16):
        under = model.gate.logits()
    assert under.dtype == torch.float32 and torch.equal(plain, under)


def test_all_tokens_of_a_picture_share_its_expert(dense: MaskedAutoencoder) -> None:
    model = ExpertAutoencoder.from_dense(dense, expert_shape())
    torch.nn.init.normal_(model.gate.centroids_KD)
    labels = torch.tensor([0, 5, 0])
    router = model.router(labels)
    for layer in (1, 3):
        experts = router.choose(layer, torch.empty(0)).expert_NC[:, 0]
        assert len(experts) == 3 and experts[0] == experts[2]
        assert experts[1] == model.gate.logits()[[1, 3].index(layer)][5].argmax()


# Losses, by hand


def test_squared_variation_by_hand() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0], [3.0, 1.0, 3.0, 1.0]])
    assert torch.allclose(squared_variation(values), torch.tensor([0.0, 3.0, 0.25]), atol=1e-6)


def test_balance_is_least_when_load_is_even() -> None:
    one_hot = torch.eye(4)
    assert importance_loss(one_hot).item() == pytest.approx(0.0, abs=1e-6)
    assert importance_loss(one_hot[[0, 0, 0, 0]]).item() == pytest.approx(3.0, abs=1e-5)
    weights = torch.tensor([2.0, 1.0, 1.0, 0.0])  # loads 2, 1, 1, 0: mean 1, variance 0.5
    assert importance_loss(one_hot, weights).item() == pytest.approx(0.5, abs=1e-5)


def test_imbalance_is_least_when_gates_are_sure() -> None:
    assert imbalance_loss(torch.eye(4)).item() == pytest.approx(-3.0, abs=1e-5)
    assert imbalance_loss(torch.full((3, 4), 0.25)).item() == pytest.approx(0.0, abs=1e-6)
    mixed = torch.stack([torch.eye(4)[0], torch.full((4,), 0.25)])
    assert imbalance_loss(mixed, torch.tensor([1.0, 3.0])).item() == pytest.approx(-0.75, abs=1e-5)


@pytest.mark.parametrize("loss", [importance_loss, imbalance_loss])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 2.0])])
def test_losses_of_several_layers_are_those_of_each(loss: Any, weights: torch.Tensor | None) -> None:
    gates = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    wanted = torch.stack([loss(layer, weights) for layer in gates])
    torch.testing.assert_close(loss(gates, weights), wanted)


def test_load_by_hand_for_two_experts() -> None:
    """With the noisy logits equal to the clean ones the chosen one stays with 1/2, the other comes with P(z > gap)."""
    logits = torch.tensor([[1.0, 0.0]])
    other = 1 - 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    mean = (0.5 + other) / 2
    wanted = ((0.5 - mean) ** 2 + (other - mean) ** 2) / 2 / mean**2
    load = squared_variation(expected_choices(logits, logits, 1, 1.0).sum(dim=0))
    assert load.item() == pytest.approx(wanted, rel=1e-4)


# Shapes


@pytest.mark.parametrize("layers", [(6,), (-1,), (1, 1), ()])
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="--layers"):
        ExpertAutoencoder(SHAPE, expert_shape(layers=layers))


def test_parameters_grow_and_cost_does_not(dense: MaskedAutoencoder) -> None:
    model = ExpertAutoencoder.from_dense(dense, expert_shape())
    mlp = sum(p.numel() for p in dense.encoder.blocks[1].mlp.parameters())
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in dense.parameters())
    assert extra == 2 * 3 * mlp + 2 * 4 * 64
    assert model.flops_per_image() == dense.flops_per_image()
    assert active_parameters(model, dense) == active_parameters(dense, dense)


def test_a_second_expert_is_counted(dense: MaskedAutoencoder) -> None:
    """In both layers: its weights once more, each in one multiply-add of every token."""
    model = ExpertAutoencoder.from_dense(dense, expert_shape(gate="token", top_k=2))
    mlps = [dense.encoder.blocks[layer].mlp for layer in (1, 3)]
    weights = sum(mlp.fc1.weight.numel() + mlp.fc2.weight.numel() for mlp in mlps)
    tokens = SHAPE.num_visible + 1
    assert model.flops_per_image() - dense.flops_per_image() == 2 * tokens * weights
    further = sum(p.numel() for mlp in mlps for p in mlp.parameters())
    assert active_parameters(model, dense) - active_parameters(dense, dense) == further
