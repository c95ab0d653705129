"""What the cells of a study say, against numbers worked out by hand; its tables and its page."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cells import ARMS, LABELS, RESULTS, arm, cell, plan
from shared import PATIENCE

import moce
from moce.engine.files import write_json
from moce.errors import UserError
from moce.study.cells import cost_of
from moce.study.markdown import markdown
from moce.study.page.study import study_section
from moce.study.pairs import CHANCE, stands_out
from moce.study.plan import Arm, Cell, Plan, Stage, slug, task_name
from moce.study.runner import Progress, estimate
from moce.study.summary import correlation, summary


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return summary(plan(ARMS), Progress(list(RESULTS), []))


def test_names_become_paths() -> None:
    names = {
        "MAE*": "mae-star",
        "random clusters": "random-clusters",
        "../up": "up",
        "E = 8": "e-8",
        "*": "star",
    }
    assert {name: slug(name) for name in names} == names
    assert task_name("toyworld://letters?num=3") == "letters"
    assert task_name("data/pets37/") == "pets37"


def test_tables_are_means_of_seeds(found: dict[str, Any]) -> None:
    table = found["tables"]["linear"]
    assert table["values"]["a"]["MoCE"] == {"mean": 6 / 8, "seeds": {"0": 5 / 8, "1": 7 / 8}}
    assert table["mean"]["MoCE"] == pytest.approx((6 / 8 + 4.5 / 8) / 2)


def test_references_have_no_rank_and_win_nothing(found: dict[str, Any]) -> None:
    table = found["tables"]["linear"]
    assert table["mean_rank"] == {"MAE": 3.0, "MAE*": 1.5, "MoCE": 1.5}
    assert table["wins"] == {"MAE": 0, "MAE*": 1, "MoCE": 1}
    assert table["mean"]["MoCE oracle"] == 1.0


def test_an_arm_with_fewer_seeds_than_others_says_so_and_has_no_rank() -> None:
    arms = [*ARMS[:3], arm("MoCE shared")]
    more = [cell("MoCE shared", task, "1" * 8, 0) for task in ("a", "b")]
    result = summary(plan(arms), Progress([r for r in RESULTS if "oracle" not in r["method"]] + more, []))
    table = result["tables"]["linear"]
    assert table["fewer_seeds"] == {"MoCE shared": [0]}
    assert "MoCE shared" not in table["mean_rank"] and table["best"]["a"] == ["MoCE"]
    assert "| MoCE | MoCE shared (seed 0 alone) |" in markdown(result)
    # Before any arm has its second seed all stand alike.
    first = summary(plan(arms), Progress([r for r in [*RESULTS, *more] if r["seed"] == 0], []))
    assert first["tables"]["linear"]["fewer_seeds"] == {}


def test_a_task_that_some_arms_have_already_takes_no_rank_away() -> None:
    more = cell("MAE*", "c", "1" * 8, 0)
    table = summary(plan(ARMS, tasks=["a", "b", "c"]), Progress([*RESULTS, more], []))["tables"]["linear"]
    assert table["fewer_seeds"] == {"MoCE oracle": [0]} and set(table["mean_rank"]) == {"MAE", "MAE*", "MoCE"}


def test_a_study_of_an_older_version_has_a_page(folder: Path, tmp_path: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    for name in ("seeds_left_out", "failed"):
        del result[name]
    del result["tables"]["linear"]["fewer_seeds"]
    write_json(folder / "result.json", result)
    assert moce.report([folder], out=tmp_path / "p.html", quiet=True)["sections"] == ["study"]


def test_the_primary_endpoint_names_every_seed(found: dict[str, Any]) -> None:
    primary = found["primary"]
    assert (primary["arm"], primary["against"], primary["tasks"]) == ("MoCE", "MAE*", 2)
    assert primary["seeds"] == {"0": pytest.approx(1 / 16), "1": pytest.approx((3 / 8 - 1 / 8) / 2)}
    assert primary["value"] == pytest.approx((1 / 16 + 1 / 8) / 2)
    low, high = primary["pictures"]
    assert low < primary["value"] < high


def test_one_model_for_all_seeds_is_compared_with_every_seed(found: dict[str, Any]) -> None:
    pair = next(d for d in found["differences"]["linear"] if (d["arm"], d["against"]) == ("MAE", "MAE*"))
    assert pair["per_task"]["a"]["seeds"] == {"0": -2 / 8, "1": -2 / 8}


def test_nothing_stands_out_by_one_training_alone(found: dict[str, Any]) -> None:
    tasks = ["a", "b"]
    better = [cell("MoCE", task, "11111111", seed) for task in tasks for seed in (0, 1)]
    other = [cell("MAE*", task, "10000000", seed) for task in tasks for seed in (0, 1)]

    def primary(results: list[dict[str, Any]], arms: list[Arm]) -> tuple[bool, float | None]:
        full = summary(plan(arms), Progress(results, []))
        (pair,) = full["differences"]["linear"]
        assert pair["pictures"][0] > 0 and CHANCE in markdown(full)
        return stands_out(pair), full["primary"]["seed_deviation"]

    assert primary(better + other, [arm("MAE*"), arm("MoCE")]) == (True, 0.0)
    assert primary([r for r in better + other if r["seed"] == 0], [arm("MAE*", [0]), arm("MoCE", [0])]) == (
        False, None,
    )  # fmt: skip
    one = [r for r in better + other if r["seed"] == 0]  # one training of each, beside both seeds
    assert primary(one, [arm("MAE*", one=True), arm("MoCE", one=True)]) == (False, None)
    assert found["primary"]["seed_deviation"] == pytest.approx((1 / 8 - 1 / 16) / 2**0.5)
    assert f"(standard deviation {100 * found['primary']['seed_deviation']:.2f})" in markdown(found)
    apart = {"value": 0.1, "pictures": [0.05, 0.2], "trainings": 2}
    assert stands_out({**apart, "seeds": {"0": 0.1, "1": 0.2}})
    assert not stands_out({**apart, "seeds": {"0": 0.3, "1": -0.1}})  # the seeds disagree


def test_few_shots_are_drawn_by_the_seed() -> None:
    dense = arm("MAE", one=True)
    assert [c.seed for c in plan([dense], ["a"]).cells()] == [0]
    shots = plan([dense, arm("MAE*")], ["a"], evaluate={"linear": {"shots": 5}})
    assert [c.seed for c in shots.cells() if c.arm is dense] == [0, 1]
    cells = [cell("MAE", "a", "11110000", 0), cell("MAE", "a", "11111100", 1)]
    cells += [cell("MAE*", "a", "11111111", seed) for seed in (0, 1)]
    (pair,) = summary(shots, Progress(cells, []))["differences"]["linear"]
    assert pair["seeds"] == {"0": -4 / 8, "1": -2 / 8}


def test_seeds_that_one_side_lacks_are_not_compared() -> None:
    results = [r for r in RESULTS if not (r["method"] == "MoCE" and r["seed"] == 1)]
    found = summary(plan(ARMS), Progress(results, [Cell(ARMS[2], "a", "linear", 1)]))
    assert not found["finished"]
    assert found["primary"]["seeds"] == {"0": pytest.approx(1 / 16)}
    assert "**Not finished**: 10 of 11 cells" in markdown(found)


def test_answers_to_other_pictures_are_not_compared() -> None:
    other = {**cell("MoCE", "a", "11111000"), "labels": LABELS[::-1]}
    with pytest.raises(UserError, match="a: the cells of MoCE and MAE\\* were tested on other pictures"):
        summary(plan(ARMS), Progress([cell("MAE*", "a", "11110000"), other], []))


def test_a_metric_that_is_no_mean_over_pictures_is_said() -> None:
    strange = [{**r, "metric": "map11"} if r["task"] == "b" else r for r in RESULTS]
    for result in strange:
        if result["task"] == "b":
            result.pop("predicted")
    found = summary(plan(ARMS), Progress(strange, []))
    pair = found["differences"]["linear"][1]
    assert pair["not_resampled"] == ["b"] and pair["per_task"]["b"]["pictures"] is None
    assert pair["pictures"][0] < pair["pictures"][1]
    said = "the metric of b is no mean over pictures"
    first, _, tables = markdown(found).partition("## linear")
    assert said in first and said in tables  # beside the primary endpoint, and under the differences
    part = study_section(found)
    assert said in part["primary_fixed"] and said in part["protocols"][0]["not_resampled"]
    only = summary(plan(ARMS, tasks=["b"]), Progress([r for r in strange if r["task"] == "b"], []))
    assert only["differences"]["linear"][0]["pictures"] is None
    assert only["differences"]["linear"][0]["pictures_and_tasks"] is None


def test_gain_beside_fit() -> None:
    tasks, results = ["a", "b", "c", "d"], []
    for number, task in enumerate(tasks):
        results.append(cell("MAE*", task, "00000000"))
        choice = {"winner_share": 0.9 - 0.2 * number, "entropy": 1.0, "fit": {"mean_cosine": 0.1 * number}}
        results.append({**cell("MoCE", task, "1" * number + "0" * (8 - number)), "choice": choice})
    found = summary(plan([arm("MAE*", [0]), arm("MoCE", [0])], tasks, [0]), Progress(results, []))
    fit = found["gain_and_fit"]["linear"]
    assert [row["gain"] for row in fit["tasks"]] == [0, 1 / 8, 2 / 8, 3 / 8]
    assert fit["spearman"]["winner_share"]["rho"] == pytest.approx(-1)
    assert fit["spearman"]["mean_cosine"]["rho"] == pytest.approx(1)
    assert fit["spearman"]["entropy"] == {"rho": None, "p": None, "tasks": 4}
    assert "Spearman's rho -1.00 over 4 tasks" in markdown(found)


def test_gains_that_differ_by_rounding_alone_have_the_same_rank() -> None:
    x = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert correlation(x, [0.0, 4.6e-18, 0.1, 0.2, -0.1]) == correlation(x, [0.0, 0.0, 0.1, 0.2, -0.1])


def test_a_study_without_any_cell_still_has_a_table() -> None:
    found = summary(plan(ARMS), Progress([], [Cell(ARMS[1], "a", "linear", 0)]))
    assert found["primary"] is None and found["tables"] == {}
    assert "0 of 1 cells" in markdown(found)


def test_where_pictures_lie_is_not_told() -> None:
    own = Plan(
        "compare", Path("s"), ARMS, ["a"], None, ["linear"], [0], "/data/here/tiny-imagenet/train.parquet"
    )
    assert summary(own, Progress([], []))["corpus"] == "tiny-imagenet/train.parquet"


def test_time_that_is_left_is_that_of_cells_of_the_same_kind() -> None:
    left = [Cell(ARMS[1], "c", "linear", 0), Cell(ARMS[3], "c", "knn", 0)]
    assert estimate(Progress(list(RESULTS), left)) == (2.0, 1)
    runs = [Stage("runs/more", "train-experts"), Stage("runs/mae", "pretrain")]
    assert estimate(Progress(list(RESULTS), left, runs)) == (62.0, 2)


def test_the_markdown_table(found: dict[str, Any]) -> None:
    text = markdown(found)
    assert "| task | MAE | MAE* | MoCE | MoCE oracle (reference: best on validation; seed 0 alone) |" in text
    assert "| a | 25.0 | 50.0 | **75.0** | 100.0 |" in text
    assert "| *wins* | 0 | 1 | 1 |  |" in text
    assert "| MoCE | 1 M | – | – | 1:00 | 1:05 | 1:40 |" in text


def run_at(folder: Path, verb: str, **options: Any) -> str:
    """A finished run, as far as its costs go."""
    folder.mkdir()
    write_json(folder / "config.json", {"verb": verb, "options": options, "inputs": {}})
    seconds = {"train": 30.0, "write": 10.0} if verb == "cluster" else 100.0
    write_json(folder / "result.json", {"verb": verb, "parameters": 9, "seconds": seconds})
    return str(folder)


def test_what_is_measured_as_it_is_costs_what_its_own_runs_say(tmp_path: Path) -> None:
    mae = run_at(tmp_path / "mae", "pretrain", init=None)
    clusters = run_at(tmp_path / "clusters", "cluster")
    own = run_at(tmp_path / "moce", "train-experts", mae=mae, clusters=clusters, gate="cluster")
    names = ("seconds", "cluster_seconds", "dense_seconds")

    def costs(path: str, dense: Sequence[Stage] = ()) -> list[float | None]:
        return [cost_of(Stage(path), dense).get(name) for name in names]

    assert costs(own) == [100, 40, 100]
    assert costs(run_at(tmp_path / "star", "train-experts", mae=mae, clusters=clusters, gate="none")) == [
        100, 0, 100,
    ]  # fmt: skip
    assert costs(mae, [Stage("other"), Stage(mae)]) == [0, 0, 100]  # what the arms start from
    assert costs(mae) == [100, 0, 0]  # a model of its own
    assert costs(run_at(tmp_path / "on", "pretrain", init="timm:vit")) == [100, 0, None]
    lost = run_at(tmp_path / "lost", "train-experts", mae="gone", clusters="gone", gate="cluster")
    assert costs(lost) == [100, None, None]
    assert costs(run_at(tmp_path / "custom", "customize")) == [None] * 3
    arms = [Arm("MoCE", {0: Stage(lost)}), Arm("ViT", {0: Stage("timm:vit")})]
    text = markdown(summary(plan(arms, seeds=[0]), Progress([], [])))
    assert "| MoCE | 9 | 9 | – | 1:40 | – | – |" in text and "| ViT | – | – | – | – | – | – |" in text


def test_only_arms_that_start_alike_are_called_so(tmp_path: Path) -> None:
    dense = Stage("runs/mae", "pretrain")

    def found(path: str, verb: str | None = "train-experts", **options: Any) -> dict[str, Any]:
        needs = {"mae": dense} if verb else {}
        other = Arm("other", {0: Stage(path, verb, options, needs)}, options)
        arms = [Arm("MAE", {0: dense}), other]
        return summary(plan(arms, seeds=[0], dense=(dense,)), Progress([], []))

    assert found("runs/moce", gate="cluster")["alike"]
    assert not found("runs/long", gate="cluster", epochs=9)["alike"]
    assert not found("timm:vit", None)["alike"]
    rows = study_section(found("timm:vit", None))["costs"]
    assert [row["options"] for row in rows] == ["the dense model", "as it is: timm:vit"]


def test_a_study_without_the_method_says_that_there_is_no_primary_endpoint() -> None:
    text = markdown(summary(plan([arm("MAE*"), arm("mine")]), Progress([], [])))
    assert "No arm is called `MoCE`, so there is no primary endpoint." in text


# The page


@pytest.fixture
def folder(tmp_path: Path, found: dict[str, Any]) -> Path:
    (tmp_path / "study" / "cells").mkdir(parents=True)
    result = json.loads(json.dumps(found))
    result["arms"][0]["options"] = {"init": "<script>"}
    write_json(tmp_path / "study" / "result.json", result)
    return tmp_path / "study"


def test_the_page_of_a_study(folder: Path, tmp_path: Path) -> None:
    made = moce.report(runs=[str(folder)], out=tmp_path / "page.html", quiet=True)
    text = (tmp_path / "page.html").read_text()
    assert made["sections"] == ["study"]
    assert "Primary endpoint" in text and "<bdi>MoCE oracle</bdi>" in text
    assert text.count('class="forest"') == 4  # the axis, two tasks, the mean
    assert "<script>" not in text


def test_a_study_without_intervals_explains_none(folder: Path, tmp_path: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    pairs = result["differences"]["linear"]
    for own in [result["primary"], *pairs, *(own for pair in pairs for own in pair["per_task"].values())]:
        own |= dict.fromkeys({"pictures", "pictures_and_tasks"} & own.keys())
    write_json(folder / "result.json", result)
    moce.report(runs=[str(folder)], out=tmp_path / "page.html", quiet=True)
    text = (tmp_path / "page.html").read_text().split("<main>")[1]
    assert "Means of the seeds." in text and 'class="forest"' not in text
    assert not [word for word in ("Dots are", "whiskers", "filled", CHANCE) if word in text]


def test_a_file_of_a_study_names_the_folder_to_give(folder: Path, tmp_path: Path) -> None:
    given = folder / "result.json"
    with pytest.raises(UserError) as caught:
        moce.report(runs=[str(given)], out=tmp_path / "page.html", quiet=True)
    assert str(caught.value) == f"{given} is part of the study in {folder}; give the folder {folder}."
    assert not (tmp_path / "page.html").exists()


MEASURE = """<script>
const all = name => [...document.querySelectorAll(name)], box = e => e.getClientRects()[0];
document.title = JSON.stringify({
  page: document.documentElement.scrollWidth - innerWidth,
  tables: all(".scroll").map(e => e.scrollWidth - e.clientWidth),
  broken: all("thead th .swatch").map(e => box(e).bottom <= box(e.nextElementSibling).top),
});
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [700, 1100, 1600])
def test_a_wide_table_fits_the_window(tmp_path: Path, browser: str, width: int) -> None:
    """Every control and both references stand beside the method, as the study compares by default."""
    names = ["MAE", "MAE*", "TokenMoE", "SDR", "random clusters", "MoCE", "MoCE random", "MoCE oracle"]
    arms = [arm(n, (0,), strategy=n[5:] if n in ("MoCE random", "MoCE oracle") else "vote") for n in names]
    cells = [cell(name, task, "11110000", metric="top1") for name in names for task in ("dtd10", "flowers17")]
    result = summary(plan(arms, ("dtd10", "flowers17"), (0,)), Progress(cells, []))
    (tmp_path / "study/cells").mkdir(parents=True)
    write_json(tmp_path / "study/result.json", result)
    page = tmp_path / "page.html"
    moce.report(runs=[str(tmp_path / "study")], out=page, quiet=True)
    page.write_text(page.read_text("utf-8").replace("</body>", MEASURE + "</body>"), "utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000"]
    command += ["--dump-dom", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    found = json.loads(done.stdout.split("<title>")[1].split("</title>")[0])
    assert found["page"] <= 0  # it is never wider than the window
    assert len(found["tables"]) >= 3
    assert width < 1100 or set(found["tables"]) == {0}  # nothing lies behind a scroll bar
    assert found["broken"] == [False] * 8  # no heading leaves its colour on a line of its own


def test_a_study_is_told_from_other_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moce.inspect(folder)
    assert "study (compare), finished" in capsys.readouterr().out
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match="has no result.json yet: its command with --budget-minutes 0 writes"):
        moce.inspect(folder)
