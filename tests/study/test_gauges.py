"""Small charts of the page, and the experts of patches as pictures."""

import re

import torch

from moce.images.shown import tint
from moce.study.figures import patch_views
from moce.study.gauges import forest_axis, forest_row, gauge, share_bar, vote_chart


def numbers(svg: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'[ "]{name}="([-0-9.]+)"', svg)]


def test_what_stands_out_is_filled() -> None:
    rows = [(0, 0.02, (-0.01, 0.05), False), (3, 0.04, (0.01, 0.07), True)]
    row = forest_row(rows, reach=0.1, said="differences")
    hollow, filled = re.findall("<circle[^>]*>", row)
    assert "fill:var(--card)" in hollow
    assert "fill:var(--c3)" in filled
    middle, right = numbers(row, "cx")
    assert 150 < middle < right < 300  # 0 is in the middle of 300


def test_the_scale_of_differences_is_symmetric() -> None:
    assert re.findall(">([^<>]+)</text>", forest_axis(0.1)) == ["−10", "−5", "0", "+5", "+10"]


def test_votes_stand_in_order_and_the_chosen_cluster_is_marked() -> None:
    chart = vote_chart([0.1, 0.6, 0.0, 0.3], chosen=3)
    assert re.findall("<title>cluster ([0-9]+)", chart) == ["1", "3", "0"]
    assert re.findall('class="(bar[^"]*)"', chart) == ["bar", "bar chosen", "bar"]
    assert "bar chosen" not in vote_chart([0.5, 0.5], chosen=None)


def test_a_gauge_stays_on_its_scale() -> None:
    inside, beyond = (numbers(gauge(v, (0, 1), (0.9, 1)), "cx")[0] for v in (0.5, 7.0))
    assert inside == 210
    assert beyond == 412


def test_shares_fill_the_bar_and_the_marked_one_stands_out() -> None:
    bar = share_bar([1, 0, 3], ["red", "green", "blue"], marked=2)
    assert numbers(bar, "width") == [105, 315]
    assert numbers(bar, "height") == [10, 20]


def test_patches_take_the_colour_of_their_expert() -> None:
    images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    images[0, :, :4, :4] = 200
    experts = torch.tensor([[[[0, 1], [1, 8]]]])
    plain, mosaic, painted = patch_views(images, experts, patch=4)
    assert plain.equal(images)
    assert mosaic[0, :, 0, 0].tolist() == [200] * 3
    wanted = [round(0.72 * v + 0.28 * 200) for v in tint(0)]
    assert painted[0, :, 1, 1].tolist() == wanted
    assert painted[0, :, 0, 5].equal(painted[0, :, 5, 0])
    assert not painted[0, :, 5, 5].equal(painted[0, :, 1, 1])  # the ninth expert is paler than the first
    grey = patch_views(images[:, :1], experts, patch=6)
    assert [tuple(view.shape) for view in grey] == [(1, 3, 12, 12)] * 3
