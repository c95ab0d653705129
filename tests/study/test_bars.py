"""Bars in groups: what is drawn where, and as a file of its own."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moce.study.bars import bar_chart, write_svg

NAMES = ["birds & bees", "<cars>"]
BARS = [[(0.02, (-0.01, 0.05)), (-0.04, None)], [(0.0, (0.0, 0.0)), (0.01, (0.0, 0.02))]]


def test_bars_stand_on_zero_and_are_as_long_as_their_values() -> None:
    chart = bar_chart(NAMES, BARS, ["A", "B"], "said")
    rects = re.findall(r'<rect x="[\d.]+" y="([\d.]+)" width="\d+" height="([\d.]+)"[^>]*><title>', chart)
    (top, tall), (under, deep), _, (_, quarter) = ((float(y), float(h)) for y, h in rects)
    assert top + tall == pytest.approx(under, abs=0.2)  # one above the axis, one below it
    assert deep == pytest.approx(2 * tall, rel=0.02) and quarter == pytest.approx(tall / 2, rel=0.02)
    assert len(re.findall(r'<line x1="[\d.]+" x2="[\d.]+" y1', chart)) == 3  # a whisker for each interval
    assert "birds &amp; bees" in chart and "<cars>" not in chart


def test_a_file_is_an_svg_of_its_own(tmp_path: Path) -> None:
    write_svg(tmp_path / "bars.svg", bar_chart(NAMES, BARS, ["A", "B"], "said"))
    text = (tmp_path / "bars.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert "var(" not in text and root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "birds & bees" in [found.text for found in root.findall(".//{*}text")]
