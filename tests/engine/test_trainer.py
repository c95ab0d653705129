"""The schedule, the groups of the optimiser, and checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import nn

from moce.engine.checkpoint import checkpoints, restore_checkpoint, save_checkpoint
from moce.engine.trainer import Plan, averages, parameter_groups, without_decay
from moce.errors import UserError


def test_warm_up_then_half_a_cosine() -> None:
    plan = Plan(num_steps=110, num_images=1, batch_size=1, warmup=10 / 110)
    factors = [plan.lr_factor(step) for step in range(110)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0 and factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5) and factors[109] < 0.001
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_decay_goes_by_name_not_by_dimensions() -> None:
    plain = ["encoder.blocks.0.norm1.weight", "encoder.cls_token", "encoder.pos_embed", "decoder_pos_embed"]
    plain += ["encoder.blocks.0.attn.qkv.bias", "encoder.blocks.9.mlp.b1_EF", "encoder.blocks.9.mlp.b2_ED"]
    plain += ["gate.weight_LED", "decoder_norm.weight"]
    decayed = [
        "encoder.blocks.0.mlp.fc1.weight",
        "encoder.blocks.9.mlp.w1_EDF",
        "encoder.blocks.9.mlp.w2_EFD",
    ]
    decayed += ["encoder.patch_embed.proj.weight", "decoder_pred.weight"]
    assert all(without_decay(name) for name in plain)
    assert not any(without_decay(name) for name in decayed)


def test_frozen_parameters_are_in_no_group() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad = False
    decayed, plain = parameter_groups(module.named_parameters(), 1e-3, 0.05)
    assert len(decayed["params"]) == 1 and plain["params"] == []


def test_what_is_logged_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sums = {"loss": torch.rand(()), "count": torch.tensor(7.0), "load": torch.rand(4), "one": torch.rand(1)}
    wanted = {n: (s / 7).tolist() for n, s in sums.items() if n != "count"}
    read = []
    for name in ("tolist", "item", "cpu", "__float__"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, *a, own=own: read.append(t.shape) or own(t, *a))
    found = averages(sums)
    assert read == [(6,)]
    assert found == wanted and list(found) == ["loss", "load", "one"]
    assert isinstance(found["loss"], float) and isinstance(found["one"], list)


def trained(steps: int, module: nn.Module, optimizer: torch.optim.Optimizer, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        loss = module(torch.randn(8, 4, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_checkpoint_continues_to_the_bit(tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
        return module, torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)

    whole, optimizer = fresh()
    trained(6, whole, optimizer)
    part, optimizer = fresh()
    trained(4, part, optimizer)
    path = save_checkpoint(tmp_path, 4, part, optimizer, {"loss": torch.tensor(1.5)}, {"seconds": 2.0})
    again, optimizer = fresh()
    sums, about = restore_checkpoint(path, again, optimizer)
    assert about["step"] == 4 and about["seconds"] == 2.0 and sums["loss"].item() == 1.5
    trained(2, again, optimizer, first=4)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for step in (1, 2, 3, 20):
        save_checkpoint(tmp_path, step, module, optimizer, {}, {})
    assert [p.name for p in checkpoints(tmp_path)] == [
        "step-000000003.safetensors",
        "step-000000020.safetensors",
    ]


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    path = save_checkpoint(tmp_path, 1, module, optimizer, {}, {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"step-000000001.safetensors cannot be read"):
        restore_checkpoint(path, module, optimizer)
