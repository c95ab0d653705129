"""The page: self-contained, escaped, complete for any choice of inputs, whole or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import evaluation
from pages import Page
from PIL import Image
from shared import PATIENCE

import moce
from moce.errors import UserError
from moce.model.weights import read_header, read_tensors, write_tensors

EVERYTHING = [
    "results", "tasks", "runs", "learning", "reconstructions", "clusters", "gates", "experts", "colours",
]  # fmt: skip


@pytest.fixture(scope="module")
def page(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "page.html"
    found = moce.report(parts, out=out, quiet=True)
    assert found["sections"] == EVERYTHING
    assert found["bytes"] == out.stat().st_size
    return out


def test_nothing_comes_from_outside(page: Path) -> None:
    found = Page(page.read_text("utf-8"))
    assert "script" not in found.tags()
    assert "@import" not in found.css
    assert "url(" not in found.css
    for address in found.values("src") + found.values("href"):
        assert address.startswith(("data:", "#")), address
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]


def test_the_page_is_well_formed_and_its_links_lead_somewhere(page: Path) -> None:
    found = Page(page.read_text("utf-8"))
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    targets = [address[1:] for address in found.values("href") if address.startswith("#")]
    assert sorted(targets) == sorted(EVERYTHING)
    assert set(targets) <= set(ids)
    assert all(alt for tag, name, alt in found.attributes if tag == "img" and name == "alt")
    assert page.stat().st_size < 2_000_000


def test_the_page_says_what_was_found(page: Path, demonstration: Path) -> None:
    text = Page(page.read_text("utf-8")).text
    for folder in ("mae", "clusters", "mae-star", "tokenmoe", "moce", "custom/letters"):
        assert str(demonstration / folder) in text
    summary = json.loads((demonstration / "clusters" / "clusters.json").read_text())
    assert f"{summary['nmi']:.3f}" in text
    result = json.loads((demonstration / "evaluations" / "letters-MoCE-linear.json").read_text())
    assert f"{result['value']:.4f}" in text
    assert "no evidence" in text  # these are the built-in pictures
    choice = json.loads((demonstration / "custom" / "letters" / "choice.json").read_text())
    assert f"cluster {choice['cluster']}" in text


def test_the_order_of_the_inputs_changes_nothing_but_the_tasks(
    parts: list[str], page: Path, tmp_path: Path
) -> None:
    moce.report(parts[::-1], out=tmp_path / "other.html", quiet=True)
    before, after = (
        p.read_text("utf-8").partition('<section id="learning">')[2] for p in (page, tmp_path / "other.html")
    )
    assert after == before


@pytest.mark.parametrize(
    ("names", "sections"),
    [
        (["mae"], ["runs", "learning"]),
        (["clusters"], ["runs", "clusters"]),
        (["mae", "clusters"], ["runs", "learning", "reconstructions", "clusters"]),
        (["moce"], ["runs", "learning", "clusters", "gates", "experts", "colours"]),
        (["tokenmoe"], ["runs", "learning", "clusters", "gates", "colours"]),
        (["mae-star"], ["runs", "learning", "clusters"]),
        (["custom/letters"], ["tasks"]),
        (["evaluations/letters-MoCE-knn.json"], ["results"]),
    ],
)
def test_a_section_is_there_when_its_input_is(
    demonstration: Path, tmp_path: Path, names: list[str], sections: list[str]
) -> None:
    found = moce.report([str(demonstration / n) for n in names], out=tmp_path / "page.html", quiet=True)
    assert found["sections"] == sections
    Page((tmp_path / "page.html").read_text("utf-8"))


def test_a_run_that_is_not_finished_is_shown_as_such(demonstration: Path, tmp_path: Path) -> None:
    shutil.copytree(demonstration / "mae", tmp_path / "half")
    (tmp_path / "half" / "result.json").unlink()
    (tmp_path / "half" / "model.safetensors").unlink()
    with open(tmp_path / "half" / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "lo')  # the process died here
    moce.report(
        [str(tmp_path / "half"), str(demonstration / "clusters")], out=tmp_path / "page.html", quiet=True
    )
    assert "not finished" in Page((tmp_path / "page.html").read_text("utf-8")).text


def test_names_of_tasks_and_folders_are_escaped(demonstration: Path, tmp_path: Path) -> None:
    nasty = 'a<script>alert("1")</script>&amp; 鳥'
    folder = tmp_path / "<i>run</i> & \"co\" 'x'"
    shutil.copytree(demonstration / "mae", folder)
    rows = [evaluation(nasty, "MoCE", 0.4), evaluation(nasty, "<b>rival</b>", 0.5, model="<u>m", seed=None)]
    (tmp_path / "e.json").write_text(json.dumps(rows))
    moce.report([str(folder), str(tmp_path / "e.json")], out=tmp_path / "page.html", quiet=True)
    found = Page((tmp_path / "page.html").read_text("utf-8"))
    assert found.tags() & {"script", "i", "u"} == set()
    for text in (nasty, "<b>rival</b>", "<u>m", str(folder)):
        assert text in found.text


def test_names_in_any_script_and_bytes_that_are_no_text(demonstration: Path, tmp_path: Path) -> None:
    tasks = ["טיסות <b>", "زهور & أشجار", "\u202eevil\u202c", "鳥" * 60]
    folder = tmp_path / "broken\udcff"  # what a name that is no UTF-8 looks like in Python
    shutil.copytree(demonstration / "mae", folder)
    rows = [evaluation(task, method) for task in tasks for method in ("MAE*", "MoCE")]
    (tmp_path / "e.json").write_text(json.dumps(rows))
    moce.report([str(folder), str(tmp_path / "e.json")], out=tmp_path / "page.html", quiet=True)
    text = (tmp_path / "page.html").read_text("utf-8")
    found = Page(text)
    assert "b" not in {tag for tag, _, _ in found.attributes}
    for task in tasks:
        assert task in found.text
    # Each name is isolated, so that one that runs from right to left does not turn around what stands beside it.
    assert text.count("<bdi>\u202eevil\u202c</bdi>") == text.count("\u202eevil")
    assert "broken\\udcff" in found.text


def test_runs_of_the_same_kind_are_told_apart(demonstration: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(demonstration / "moce", tmp_path / name)
    names = [str(tmp_path / "first"), str(tmp_path / "second"), str(demonstration / "tokenmoe")]
    found = moce.report(names, out=tmp_path / "page.html", quiet=True)
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert found["runs"] == 3
    assert "MoCE (first)" in text
    assert "MoCE (second)" in text
    assert "TokenMoE (tokenmoe)" not in text  # there is one
    assert text.count("Cluster 0") == 1  # the same clusters are shown once
    for name in ("a/run", "b/run"):
        shutil.copytree(demonstration / "mae", tmp_path / name)
    moce.report([str(tmp_path / "a/run"), str(tmp_path / "b/run")], out=tmp_path / "page.html", quiet=True)
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert f"MAE ({tmp_path}/a/run)" in text  # their folders have the same name


def test_one_line_of_metrics_is_no_curve_and_none_is_no_section(demonstration: Path, tmp_path: Path) -> None:
    for lines, sections in ((1, ["runs"]), (0, ["runs"])):
        folder = tmp_path / f"lines-{lines}"
        shutil.copytree(demonstration / "tokenmoe", folder)
        for gone in ("thumbs", "checkpoints"):
            shutil.rmtree(folder / gone, ignore_errors=True)
        for gone in ("result.json", "model.safetensors", "patches.safetensors"):
            (folder / gone).unlink()
        kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:lines]
        (folder / "metrics.jsonl").write_text("".join(kept))
        found = moce.report([str(folder)], out=tmp_path / "page.html", quiet=True)
        assert found["sections"] == sections
        assert "not finished" in Page((tmp_path / "page.html").read_text("utf-8")).text


def test_a_customised_model_has_a_page_of_its_own(demonstration: Path, tmp_path: Path) -> None:
    images = "toyworld://creatures?split=train&num=24&size=32"
    says = {
        "vote": ["24 pictures voted", "cluster with most votes wins", "where "],
        "per-layer": ["24 pictures voted", "in each layer the expert with most votes"],
        "average": ["24 pictures voted", "weighted by their votes", "the mean of"],
        "nearest": ["24 pictures voted", "centre is nearest to the mean"],
        "cluster:3": ["was named by hand; no picture was looked at", "Typical pictures of cluster 3"],
        "cluster:4": ["24 pictures voted", "was named by hand; the votes did not choose"],
        "random": ["24 pictures voted", "was drawn at random; the votes did not choose"],
    }
    for strategy, words in says.items():
        out = tmp_path / strategy.replace(":", "-")
        given = None if strategy == "cluster:3" else images
        choice = moce.customize(demonstration / "moce", images=given, strategy=strategy, out=out, quiet=True)
        found = moce.report([str(out)], out=tmp_path / "page.html", quiet=True)
        page = Page((tmp_path / "page.html").read_text("utf-8"))
        assert found["sections"] == ["tasks"]
        for word in [*words, f'local-dir:{out}"', out.name]:
            assert word in page.text, (strategy, word)
        shown = sum("pre-training pictures nearest" in alt for alt in page.values("alt"))
        assert shown == (0 if given is None else 8)
        for layer in choice["experts"]:
            assert f"block {layer}" in page.text


def test_it_is_said_where_no_cluster_fits(demonstration: Path, tmp_path: Path) -> None:
    shutil.copytree(demonstration / "custom" / "letters", tmp_path / "letters")
    file = tmp_path / "letters" / "choice.json"
    choice = json.loads(file.read_text())
    choice |= {
        "votes": [6] * 8,
        "entropy": float(np.log(8)),
        "margin": 0.0,
        "warning": "No cluster fits: <even>.",
    }
    choice["fit"] = {"mean_cosine": 0.1, "percentile": 0.0, "subsets": [0.4, 0.5, 0.6]}
    file.write_text(json.dumps(choice))
    moce.report([str(tmp_path / "letters")], out=tmp_path / "page.html", quiet=True)
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert "No cluster fits: <even>." in text
    assert text.count("Hardly") == 2
    assert "8.0 of 8 clusters" in text
    (tmp_path / "letters" / "nearest.webp").write_bytes(b"broken")  # the numbers are worth showing without it
    moce.report([str(tmp_path / "letters")], out=tmp_path / "page.html", quiet=True)


def test_a_folder_from_somebody_else_brings_no_script(demonstration: Path, tmp_path: Path) -> None:
    """Customised folders travel; what their choice.json says is text, and the picture beside it is ours by name."""
    shutil.copytree(demonstration / "custom" / "letters", tmp_path / "letters")
    file = tmp_path / "letters" / "choice.json"
    choice = json.loads(file.read_text())
    layer = next(iter(choice["experts"]))
    evil = '9"><script>alert(1)</script>'
    for part in ("experts", "shares"):
        choice[part][evil] = choice[part].pop(layer)
    choice["pictures"]["file"] = "../secret.png"
    file.write_text(json.dumps(choice))
    moce.report([str(tmp_path / "letters")], out=tmp_path / "page.html", quiet=True)
    found = Page((tmp_path / "page.html").read_text("utf-8"))
    assert "script" not in found.tags() and evil in found.text


def test_prepared_pictures_are_passed_over(demonstration: Path, tmp_path: Path) -> None:
    moce.prepare(images="toyworld://maps?num=6&size=16", out=tmp_path / "small", short_side=16, quiet=True)
    given = [str(tmp_path / "small"), str(demonstration / "mae")]
    assert moce.report(given, out=tmp_path / "page.html", quiet=True)["runs"] == 1


def test_what_the_gates_follow_is_said(demonstration: Path, page: Path) -> None:
    text = Page(page.read_text("utf-8")).text
    for run in ("moce", "tokenmoe"):
        header = read_header(demonstration / run / "patches.safetensors")
        for explained in header["explained"].values():
            for share in explained.values():
                assert f"{100 * max(share, 0):.1f} %" in text
    assert "In TokenMoE, " in text
    assert "In MoCE, whose gate reads the cluster" in text


def test_a_layer_with_one_expert_at_work_has_nothing_to_explain(demonstration: Path, tmp_path: Path) -> None:
    shutil.copytree(demonstration / "tokenmoe", tmp_path / "run")
    file = tmp_path / "run" / "patches.safetensors"
    header, tensors = read_header(file), read_tensors(file)
    tensors["experts"][0], tensors["counts"][0, 1:] = 0, 0
    header["explained"]["1"] = dict.fromkeys(("colour", "place", "cluster", "class"))
    write_tensors(file, tensors, header)
    found = moce.report([str(tmp_path / "run")], out=tmp_path / "page.html", quiet=True)
    assert "colours" in found["sections"]
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert "In TokenMoE, " not in text
    header["explained"]["3"] = header["explained"]["1"]
    write_tensors(file, tensors, header)
    moce.report([str(tmp_path / "run")], out=tmp_path / "page.html", quiet=True)


def test_many_large_pictures_do_not_make_a_large_page(demonstration: Path, tmp_path: Path) -> None:
    """Noise does not compress: 100 clusters of 64 pixels would take more than the page may."""
    shutil.copytree(demonstration / "clusters", tmp_path / "clusters")
    torch.manual_seed(0)
    images = torch.randint(0, 256, (100, 16, 3, 96, 96), dtype=torch.uint8)
    content = {"images": images, "indices": torch.arange(1600).reshape(100, 16)}
    content["features"] = torch.zeros(100, 16, 4, dtype=torch.float16)
    write_tensors(
        tmp_path / "clusters" / "thumbs" / "thumbs.safetensors", content, {"kind": "thumbs", "nearest": 8}
    )
    from moce.model.assigner import Assigner

    assigner = Assigner.load(tmp_path / "clusters" / "clusters.safetensors")
    assigner.centroids, assigner.potentials = torch.randn(100, 64), torch.zeros(100)
    assigner.sizes = torch.full((100,), 7)
    assigner.save(tmp_path / "clusters" / "clusters.safetensors")
    found = moce.report([str(tmp_path / "clusters")], out=tmp_path / "page.html", quiet=True)
    assert 100_000 < found["bytes"] < 15_000_000
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert "The other 76 clusters" in page.text


def test_sentences_about_paths_that_are_none_of_these(demonstration: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    cases = {
        "nothing here": "no file or folder",
        "notes.txt": "no file of moce",
        "other.json": "not the result of `moce evaluate`",
        "empty": "not a run folder",
        str(demonstration): "holds runs: name them",
        str(demonstration / "mae" / "result.json"): "part of the run",
        str(demonstration / "mae" / "model.safetensors"): "name the folder of the run",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            moce.report(
                [str(demonstration / "mae"), str(tmp_path / name)], out=tmp_path / "page.html", quiet=True
            )
    assert not (tmp_path / "page.html").exists()


def test_somebody_else_s_file_is_not_overwritten(demonstration: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis.html"
    out.write_text("<h1>mine</h1>")
    with pytest.raises(UserError, match="no page of moce"):
        moce.report([str(demonstration / "mae")], out=out, quiet=True)
    assert out.read_text() == "<h1>mine</h1>"
    with pytest.raises(UserError, match="is a folder"):
        moce.report([str(demonstration / "mae")], out=tmp_path, quiet=True)
    moce.report([str(demonstration / "mae")], out=out, quiet=True, overwrite=True)
    moce.report([str(demonstration / "clusters")], out=out, quiet=True)  # a page of ours is made anew
    assert "Clusters" in out.read_text("utf-8")


def test_many_tasks_are_shown_briefly_and_in_full_when_opened(demonstration: Path, tmp_path: Path) -> None:
    for number in range(4):
        shutil.copytree(demonstration / "custom" / "letters", tmp_path / f"task-{number}")
    names = [str(tmp_path / f"task-{number}") for number in range(4)]
    moce.report(names, out=tmp_path / "page.html", quiet=True)
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert page.values("alt").count("pictures of the task") == 4
    assert page.text.count("Votes, experts and pictures") == 4
    assert page.text.count("48 pictures voted") == 4


@pytest.mark.slow
@pytest.mark.browser
def test_a_browser_opens_256_clusters_within_three_seconds(browser: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "page.py"
    command = [sys.executable, str(script), "--repeats", "3", "--out", str(tmp_path / "page.json")]
    subprocess.run(command, check=True, timeout=PATIENCE, capture_output=True)
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["clusters"] == 256
    assert found["bytes"] < 15_000_000
    assert found["median_drawn"] < 3


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 420])
def test_a_browser_shows_it(page: Path, browser: str, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "shot.png"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},1600", f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr  # what a page complains about is logged so
    with Image.open(picture) as shot:
        pixels = np.asarray(shot.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # text, charts: not an empty page
