"""Charts and pictures of the page, on small arrays."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from moce.images.shown import to_rgb
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.study.charts import (
    Line,
    line_chart,
    routing_map,
    routing_overview,
    share_chart,
    smoothed,
    thinned,
    ticks,
)
from moce.study.figures import data_uri, reconstructions, scale_for, sheet

SHAPE = AutoencoderShape("test_vit", (16, 16), (4, 4), decoder_depth=1, decoder_width=32, decoder_heads=2)


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.13, 2.016) == [0.5, 1, 1.5, 2]
    assert ticks(-0.0013, 0.0004, about=4) == [-0.001, -0.0005, 0]
    assert ticks(3, 3) == [3]


def test_many_points_become_means_of_neighbours() -> None:
    assert thinned([1, 3, 5, 7], limit=2) == [2, 6]
    assert thinned([1, 2], limit=240) == [1, 2]


def test_a_running_mean_keeps_ends_and_level() -> None:
    values = [0.0] * 50
    assert smoothed(values) == values
    values[25] = 5.0  # 50 points: a window of 5
    found = smoothed(values)
    assert found[23:28] == pytest.approx([1.0] * 5)
    assert sum(found) == pytest.approx(5.0)
    assert smoothed([3.0, 1.0]) == [3.0, 1.0]


def test_a_line_chart_survives_one_flat_line_and_a_spike_at_the_start() -> None:
    flat = line_chart([Line([0, 1], [1.0, 1.0], 0)], ("x", "y"))
    assert "nan" not in flat
    spike = line_chart([Line(list(range(100)), [50.0] + [1.0 - i / 1000 for i in range(99)], 9)], ("x", "y"))
    assert ">50<" not in spike  # the height is that of where the line stays
    assert "var(--c1)" in spike  # colour 9 is colour 1 again


def test_shares_fill_the_chart() -> None:
    chart = share_chart([0, 1], [[0.25, 0.75], [0.5, 0.5]], ("x", "share"))
    assert chart.count("<polygon") == 2


def test_a_routing_map_shows_gates_by_cluster() -> None:
    gates = [[1.0, 0.0], [0.3, 0.7]] * 20
    blocks = routing_map(gates, list(range(40)))
    assert [len(clusters) for clusters, _ in blocks] == [32, 8]
    first = blocks[0][1]
    assert first.count("<rect") == 16 + 32  # a gate of 0 is not drawn
    assert "cluster 1 to expert 0: 0.30" in first


def test_pictures_of_any_number_of_channels_can_be_shown() -> None:
    images = torch.arange(2 * 5 * 4 * 4, dtype=torch.uint8).reshape(2, 5, 4, 4)
    assert to_rgb(images).shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(to_rgb(images)[0, :, :, 2], images[0, 2].numpy())
    grey = to_rgb(images[:, :1])
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_a_sheet_holds_pictures_in_rows() -> None:
    images = torch.zeros(5, 3, 8, 6, dtype=torch.uint8)
    images[4] = 255
    made = sheet(images, across=4, gap=2)
    assert made.size == (4 * 6 + 3 * 2, 2 * 8 + 2)
    assert made.getpixel((0, 10)) == (255, 255, 255, 255)
    assert made.getpixel((6, 0))[3] == 0  # between pictures the page shows
    assert sheet(images, across=4, scale=0.5, gap=0).size == (12, 8)


def test_a_picture_becomes_text() -> None:
    text = data_uri(Image.new("RGBA", (20, 10), (200, 10, 10, 255)))
    head, _, content = text.partition(",")
    assert head == "data:image/webp;base64"
    back = Image.open(io.BytesIO(base64.b64decode(content)))
    assert back.size == (20, 10)


def test_small_pictures_stay_as_they_are_and_many_large_ones_shrink() -> None:
    assert scale_for(100, 32, 32) == 1
    assert scale_for(4000, 100, 100, budget=10_000_000) == pytest.approx(0.5)


def test_a_reconstruction_shows_what_was_seen_and_fills_in_the_rest() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SHAPE).eval()
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    shown, seen, filled = reconstructions(model, images, torch.tensor([4, 5, 6]), mean, std, seed=0)
    assert shown.equal(images)
    hidden = (model.patchify(seen.float()) == 127).all(dim=2)
    assert (hidden.sum(dim=1) == 12).all()  # three quarters of 16
    own, its = model.patchify(images.float()), model.patchify(filled.float())
    assert (own[~hidden] - its[~hidden]).abs().max() <= 1
    assert (own[hidden] - its[hidden]).abs().mean() > 1
    again = reconstructions(model, images, torch.tensor([4, 5, 6]), mean, std, seed=0)
    assert all(a.equal(b) for a, b in zip(again, [shown, seen, filled]))
    assert not seen.equal(reconstructions(model, images, torch.tensor([4, 5, 6]), mean, std, seed=1)[1])


def test_pictures_of_another_size_are_resized_for_the_model() -> None:
    model = MaskedAutoencoder(SHAPE).eval()
    images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    for rows in reconstructions(model, images, torch.tensor([0, 1]), (0.5,) * 3, (0.2,) * 3, seed=0):
        assert rows.shape == (2, 3, 16, 16)


def test_an_overview_holds_every_cluster_at_once() -> None:
    gates = [[1.0, 0.0], [0.3, 0.7]] * 128
    svg = routing_overview(gates, list(range(256)))
    assert svg.count("<rect") == 128 + 256
    assert "cluster 255: 0.70" in svg
