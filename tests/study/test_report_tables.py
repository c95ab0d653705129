"""Evaluations on the page: tables, differences, and how they are to be read."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from evaluations import evaluation
from pages import Page
from PIL import Image

import moce
from moce.study.markdown import signed


def test_differences_that_stand_apart_are_coloured_and_others_are_not(tmp_path: Path) -> None:
    rows = [evaluation(task, "MAE*", 0.5, num_test=400) for task in ("near", "far")]
    rows += [evaluation("near", "MoCE", 0.52, num_test=400), evaluation("far", "MoCE", 0.7, num_test=400)]
    (tmp_path / "e.json").write_text(json.dumps(rows))
    moce.report([str(tmp_path / "e.json")], out=tmp_path / "page.html", quiet=True)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert len(re.findall(r'<td class="up"', text)) == 2  # far, and the mean
    assert "<b>significant</b>" in text
    assert "of 2 differences about 1 would" in re.sub(r"\s+", " ", text)


def page_of(folder: Path, *rows: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What `moce report` returns for evaluations, and its page with single spaces."""
    (folder / "rows.json").write_text(json.dumps(rows))
    found = moce.report([folder / "rows.json"], out=folder / "page.html", quiet=True)
    return found, re.sub(r"\s+", " ", (folder / "page.html").read_text("utf-8"))


def test_an_evaluation_in_two_files_is_shown_once(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(evaluation(seconds=8.0)))
    (tmp_path / "b.json").write_text(json.dumps(evaluation(seconds=3.0)))
    given = [tmp_path / "a.json", tmp_path / "b.json"]
    found = moce.report(given, out=tmp_path / "page.html", quiet=True)
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert found["evaluations"] == 1 and "mean of 2" not in text and "How this number was got" in text
    (tmp_path / "b.json").write_text(json.dumps(evaluation(seed=1)))
    moce.report(given, out=tmp_path / "page.html", quiet=True)
    assert "mean of 2" in Page((tmp_path / "page.html").read_text("utf-8")).text


def test_a_metric_that_is_no_share_of_pictures_is_named_at_its_task(tmp_path: Path) -> None:
    note = '<span class="soft">mean per class</span>'
    _, text = page_of(tmp_path, evaluation("flowers", metric="mean_per_class", per_class=[0.5, 0.5]))
    assert f"<bdi>flowers</bdi> {note}" in text
    _, text = page_of(tmp_path, evaluation("flowers", metric="mean_per_class"), evaluation("birds"))
    assert f"<bdi>flowers</bdi> {note}" in text and "<td><bdi>birds</bdi></td>" in text
    _, text = page_of(tmp_path, evaluation("streets", protocol="segment", metric="miou"))
    assert (
        "mean intersection over union" in text and "<td><bdi>streets</bdi></td>" in text
    )  # the heading says it


def test_how_to_read_a_table_speaks_of_what_is_drawn(tmp_path: Path) -> None:
    for protocol, metric in (("segment", "miou"), ("detect", "box_map")):
        _, text = page_of(tmp_path, evaluation(protocol=protocol, metric=metric))
        assert "How to read it" not in text and "interval" not in text.split("<main>")[1]
        assert "there is one (0)" in text
        rows = (
            evaluation(method=m, protocol=protocol, metric=metric, value=v)
            for m, v in (("MAE*", 0.1), ("MoCE", 0.2))
        )
        _, text = page_of(tmp_path, *rows)
        assert "How to read it" not in text and "<summary>The differences in numbers</summary>" in text
        assert "+10.0" in text and "The best of a row is bold." in text
    _, text = page_of(tmp_path, evaluation(method="test_vit (random weights)"))
    assert "How to read it: small numbers are 95 % intervals" in text and "<svg" not in text
    assert "whiskers" not in text and "dot" not in text.split("<main>")[1]
    assert "<th><bdi>test_vit (random weights)</bdi></th>" in text
    _, text = page_of(tmp_path, evaluation(method="MAE*"), evaluation(value=0.55))
    assert "small numbers and whiskers" in text and "(hollow dot)" in text
    _, text = page_of(tmp_path, evaluation(method="MAE*", value=0.1), evaluation(value=0.9))
    assert "small numbers and whiskers" in text and "hollow" not in text and "no whiskers cross 0" in text


def test_names_of_classes_are_escaped(tmp_path: Path) -> None:
    names = ["<script>alert(1)<", "猫 & κουκουβάγια"]
    for label, name in enumerate(names):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            picture = np.full((32, 32, 3), 60 + 120 * label, np.uint8)
            picture[number : number + 9, 4:20, label] = 250
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{number}.png")
    out = {name: str(tmp_path / name) for name in ("mae", "clusters", "page.html")}
    images = str(tmp_path / "pictures")
    moce.pretrain(
        images=images, out=out["mae"], preset="debug", epochs=1, batch_size=8, quiet=True, num_workers=0
    )
    moce.cluster(out["mae"], images=images, out=out["clusters"], num_clusters=2, quiet=True, num_workers=0)
    moce.report([out["mae"], out["clusters"]], out=out["page.html"], quiet=True)
    found = Page(Path(out["page.html"]).read_text("utf-8"))
    assert "script" not in found.tags()
    # Grey and bright pictures are told apart, and a class that a cluster consists of is twice what it is in all.
    for name in names:
        assert f"{name} 100 %" in found.text


def test_numbers_of_the_table(tmp_path: Path) -> None:
    rows = [evaluation("a", m, v) for m, v in (("MAE*", 0.5), ("MoCE", 0.55), ("TokenMoE", 0.47))]
    (tmp_path / "e.json").write_text(
        json.dumps([*rows, evaluation("b", "MAE*", 0.3), evaluation("b", "MoCE", 0.2)])
    )
    moce.report([str(tmp_path / "e.json")], out=tmp_path / "page.html", quiet=True)
    text = (tmp_path / "page.html").read_text("utf-8")
    cells = [
        re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", c)).strip()
        for c in re.findall(r"<td.*?</td>", text, re.S)
    ]
    assert cells[:5] == ["a", "50.0 40.4–59.6", "47.0 37.5–56.7", "55.0 45.2–64.4", ""]
    assert cells[5:10] == ["b", "30.0 21.9–39.6", "–", "20.0 13.3–28.9", ""]
    assert "+5.0 (−8.7 to +18.4)" in cells
    assert "<b>55.0</b>" in text
    assert "<b>30.0</b>" in text
    assert "mean of" not in Page(text).text.replace("mean of its", "")  # only one task has all three


def test_differences_are_signed() -> None:
    assert [signed(v, digits=1) for v in (0.0123, -0.2, 0.0004, -0.0004)] == ["+1.2", "−20.0", "±0.0", "±0.0"]
