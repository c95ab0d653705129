from pathlib import Path

import pytest
import torch

from moce.config import Training
from moce.transfer.encoder import load_encoder, require_map
from moce.transfer.segment.masks import IGNORE
from moce.transfer.segment.recipe import RECIPES, PolyPlan
from moce.transfer.segment.segmenter import Segmentation, Segmenter, pixel_loss
from moce.transfer.segment.upernet import Neck, UperNet

CPU = torch.device("cpu")


@pytest.mark.parametrize(("rows", "columns"), [(6, 8), (5, 7), (1, 2)])
def test_logits_come_at_four_times_the_patches_and_read_all_four_blocks(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    neck, head = Neck(12), UperNet(12, 8, 5)
    maps = [torch.randn(2, 12, rows, columns, requires_grad=True) for _ in range(4)]
    four = neck(maps)
    sides = [
        (4 * rows, 4 * columns),
        (2 * rows, 2 * columns),
        (rows, columns),
        (-(-rows // 2), -(-columns // 2)),
    ]
    assert [tuple(one.shape[2:]) for one in four] == sides
    logits = head(four)
    assert logits.shape == (2, 5, 4 * rows, 4 * columns)
    logits.square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in maps)


def test_the_blocks_that_are_read() -> None:
    assert RECIPES["ade20k"].layers(12) == [3, 5, 7, 11]  # as BEiT and MAE do on ViT-B
    assert RECIPES["ade20k"].layers(24) == [7, 11, 15, 23]  # and on ViT-L
    assert RECIPES["small"].layers(12) == [2, 5, 8, 11]
    assert RECIPES["small"].layers(3) == [0, 1, 2, 2]


def test_the_learning_rate_rises_and_falls_in_straight_lines() -> None:
    plan = PolyPlan(num_steps=10, num_images=4, batch_size=2, warmup=0.2)
    factors = [plan.lr_factor(step) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_the_loss_is_that_of_scored_pixels_alone() -> None:
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 1] = 3.0
    classes = torch.tensor([[[1, IGNORE], [1, IGNORE]]], dtype=torch.int16)
    assert pixel_loss(logits, classes).item() == pytest.approx(
        torch.tensor(1 + 3 * 2.718281828**-3).log().item()
    )
    assert pixel_loss(logits, torch.full((1, 2, 2), IGNORE, dtype=torch.int16)).item() == 0


def test_lower_blocks_learn_more_slowly_and_the_heads_at_full_speed(model: Path) -> None:
    encoder = load_encoder(str(model), CPU, quiet=True)
    network, recipe = require_map(encoder, "segment"), RECIPES["small"]
    segmenter = Segmenter(network, encoder.width, 3, recipe, seed=0)
    groups = Segmentation(segmenter, encoder, recipe, 0.01, 0.5, CPU).parameter_groups(
        Training(weight_decay=0.05)
    )
    of = {p: group for group in groups for p in group["params"]}
    named = dict(segmenter.named_parameters())
    assert of.keys() == {p for p in named.values() if p.requires_grad}
    for name, parameter in named.items():
        if not name.startswith("encoder."):
            assert of[parameter]["peak_lr"] == pytest.approx(0.01)
            assert of[parameter]["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)
    depth = len(network.vit.blocks)
    for block in range(depth):
        weight = named[f"encoder.vit.blocks.{block}.mlp.fc1.weight"]
        assert of[weight]["peak_lr"] == pytest.approx(0.01 * 0.5 ** (depth - block))


def test_new_weights_are_a_function_of_the_seed(model: Path) -> None:
    encoder = load_encoder(str(model), CPU, quiet=True)

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(9 * seed + 1)
        made = Segmenter(encoder.trainable(), encoder.width, 3, RECIPES["small"], seed)
        return torch.cat([p.flatten() for n, p in made.named_parameters() if not n.startswith("encoder.")])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
