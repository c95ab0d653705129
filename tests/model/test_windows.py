"""Attention in windows against the whole map, and the map against the features that every evaluation takes."""

import pytest
import timm
import torch
from torch import Tensor

from moce.model.experts import ExpertAutoencoder
from moce.model.weights import load_model
from moce.model.windows import as_map, cut, global_blocks, joined
from moce.transfer.encoder import PlainViT, RoutedViT


@pytest.fixture(scope="module")
def vit() -> PlainViT:
    torch.manual_seed(0)
    made = timm.create_model(
        "test_vit", img_size=(32, 48), patch_size=8, num_classes=0, global_pool="avg", fc_norm=False
    )
    return PlainViT(made).eval()


def attended(vit: PlainViT, tokens: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """What the attention of the first block makes of the tokens in windows."""
    return joined(vit.vit.blocks[0].attn(cut(tokens, grid, side, 1)), grid, side, 1)


def test_a_window_as_large_as_the_map_is_plain_attention(vit: PlainViT) -> None:
    tokens = torch.randn(2, 1 + 4 * 4, 64)
    assert torch.allclose(attended(vit, tokens, (4, 4), 4), vit.vit.blocks[0].attn(tokens), atol=1e-6)


def test_windows_do_not_see_each_other_and_lie_where_they_were(vit: PlainViT) -> None:
    tokens = torch.randn(2, 1 + 4 * 6, 64)
    whole = attended(vit, tokens, (4, 6), 2)
    rows, columns = slice(2, 4), slice(4, 6)  # one window alone, with the class token
    one = as_map(tokens, (4, 6), 1)[:, :, rows, columns].flatten(2).transpose(1, 2)
    alone = vit.vit.blocks[0].attn(torch.cat([tokens[:, :1], one], dim=1))
    found = as_map(whole, (4, 6), 1)[:, :, rows, columns].flatten(2).transpose(1, 2)
    assert torch.allclose(found, alone[:, 1:], atol=1e-6)


def test_windows_that_do_not_fill_the_map_are_padded_and_cut_again() -> None:
    tokens = torch.randn(2, 2 + 5 * 7, 3)
    windows = cut(tokens, (5, 7), 4, 2)
    assert windows.shape == (2 * 2 * 2, 2 + 16, 3)
    assert torch.allclose(joined(windows, (5, 7), 4, 2), tokens, atol=1e-6)


def test_four_blocks_see_everything() -> None:
    assert global_blocks(12) == {2, 5, 8, 11}
    assert global_blocks(24) == {5, 11, 17, 23}
    assert global_blocks(3) == {0, 1, 2}


def test_the_mean_of_the_map_is_the_feature(vit: PlainViT) -> None:
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        found = vit.feature_map(images)
        assert found.shape == (2, 64, 4, 6)
        assert torch.allclose(found.mean(dim=(2, 3)), vit(images), atol=1e-5)
        assert not torch.allclose(vit.feature_map(images, 2), found, atol=1e-3)
        assert torch.allclose(vit.feature_map(images), found)  # nothing of the windows stays


def test_token_experts_give_a_map_too(small_runs) -> None:
    model, _ = load_model(small_runs.token_moce)
    assert isinstance(model, ExpertAutoencoder)
    network = RoutedViT(model, balance=0.01)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network.feature_map(images).mean(dim=(2, 3)), network(images), atol=1e-5)
        assert torch.allclose(network.feature_map(images, 4), network.feature_map(images), atol=1e-5)
    network.feature_map(images, 2).sum().backward()
    assert network.auxiliary_loss().isfinite()
