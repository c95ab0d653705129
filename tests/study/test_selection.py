"""Data selection as a control: which clusters a task's vote leads to, the runs on them, and what cannot be."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import moce
from moce.engine.files import read_json, write_json
from moce.errors import UserError
from moce.images.tasks import open_task
from moce.study.cells import Cells
from moce.study.plan import Arm, Cell, Plan, Stage
from moce.study.selection import group_of, selection_file

ROOT = "toyworld://?size=32&num=24"
TASKS = ("letters", "plants")


@pytest.fixture(scope="module")
def study(small_runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study whose control stands before the arm that selects for it; copy it before changing it."""
    folder = tmp_path_factory.mktemp("selection")
    (folder / "study.toml").write_text(f"""
        images = "{small_runs.images}"
        data_root = "{ROOT}"
        tasks = {json.dumps(TASKS)}
        protocols = ["knn"]
        mae = "{small_runs.mae}"
        clusters = "{small_runs.clusters}"
        baseline = "data selection"
        [experts]
        epochs = 1
        [[arms]]
        name = "data selection"
        selected_by = "MoCE"
        [[arms]]
        name = "MoCE"
        options = {{ gate = "cluster" }}
    """)
    carried_out(folder, quiet=True)
    return folder


def carried_out(study: Path, **options: Any) -> dict[str, Any]:
    given = {"out": study / "study", "config": study / "study.toml", "device": "cpu"}
    return moce.study("compare", **{**given, **options})


def selections(out: Path) -> dict[str, dict[str, Any]]:
    return {task: read_json(out / "cells" / "moce" / f"{task}-clusters-seed0.json") for task in TASKS}


def runs(out: Path) -> dict[str, dict[str, Any]]:
    """Result and options of the control's runs, by their path."""
    return {
        str(path): {**read_json(path / "result.json"), **read_json(path / "config.json")["options"]}
        for path in (out / "runs").glob("data-selection-*")
    }


def test_a_group_has_the_same_expert_in_every_layer() -> None:
    routes = torch.tensor([[0, 1, 0, 0, 1], [2, 2, 2, 3, 2]])
    assert [group_of(routes, cluster) for cluster in (0, 1, 3)] == [[0, 2], [1, 4], [3]]


def test_each_task_has_a_run_on_the_clusters_that_its_pictures_vote_for(study: Path, tmp_path: Path) -> None:
    out, there = study / "study", runs(study / "study")
    moce_run = read_json(out / "runs" / "moce-seed0" / "result.json")["fingerprint"]
    table = read_json(out / "runs" / "moce-seed0" / "routing.json")
    for task, found in selections(out).items():
        images = open_task(task, ROOT).train
        own = moce.customize(
            out / "runs" / "moce-seed0", images=images.uri, out=tmp_path / task, quiet=True, device="cpu"
        )
        assert (found["run"], found["train"]) == (moce_run, images.fingerprint())
        assert (found["cluster"], found["votes"]) == (own["cluster"], own["votes"])
        kept = {layer: row["expert"][found["cluster"]] for layer, row in table.items()}
        assert kept == own["experts"]
        alike = [k for k in range(8) if all(table[layer]["expert"][k] == e for layer, e in kept.items())]
        assert found["clusters"] == alike
        cell = read_json(out / "cells" / "data-selection" / f"{task}-knn-seed0.json")
        assert cell["study"]["run"] == there[cell["model"]]["fingerprint"]
        assert there[cell["model"]]["only_clusters"] == alike and there[cell["model"]]["gate"] == "none"
        assert cell["study"]["method"] == "data selection"
    assert len(there) == len({tuple(found["clusters"]) for found in selections(out).values()})


def test_what_is_said_of_the_control(study: Path, tmp_path: Path) -> None:
    out, there = study / "study", runs(study / "study")
    result = read_json(out / "result.json")
    control = result["arms"][0]
    assert result["finished"] and result["alike"] is False
    assert control["selected_by"] == "MoCE" and result["arms"][1]["selected_by"] is None
    assert sorted(control["runs"]) == sorted(Path(path).name for path in there)
    mean = sum(run["seconds"] for run in there.values()) / len(there)
    assert control["seconds"] == pytest.approx(mean) and control["cluster_seconds"] > 0
    every = [*out.glob("runs/*/result.json")]
    total = sum(read_json(path)["seconds"] for path in every)
    assert len(every) == len(there) + 1
    assert result["origin"]["training_seconds"] == pytest.approx(total, abs=0.1)
    tried = csv.DictReader((out / "tried.csv").read_text().splitlines())
    (line,) = [row for row in tried if row["arm"] == "data selection"]
    options = json.loads(line["options"])
    assert (options["gate"], options["selected_by"], options["epochs"]) == ("none", "MoCE", 1)
    cells = [read_json(out / "cells" / "data-selection" / f"{task}-knn-seed0.json") for task in TASKS]
    measured = [cell["study"]["run"] for cell in cells]
    assert line["fingerprint"] == (" ".join(measured) if len(there) > 1 else measured[0])
    assert float(line["train_seconds"]) == pytest.approx(mean, abs=0.06)
    note = "one for each seed and set of clusters that the vote of a task leads to"
    assert note in (out / "table.md").read_text()
    moce.report([out], out=tmp_path / "p.html", quiet=True)
    page = (tmp_path / "p.html").read_text()
    assert note in page and "gate none, clusters selected by MoCE" in page


def times(out: Path) -> dict[str, int]:
    found = [*out.glob("cells/*/*.json"), *out.glob("runs/*/result.json")]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in found}


def test_before_anybody_voted_it_says_how_many_runs_there_may_be(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = carried_out(study, out=tmp_path / "new", budget_minutes=0)
    said = capsys.readouterr().err
    assert "1 run, up to 2 more that depend on votes, and 4 cells, of which 0 and 0 are there" in said
    assert "1 run, up to 2 more that depend on votes, and 4 cells are left" in said
    assert found["runs_left"] == 1 and not (tmp_path / "new" / "runs").exists()


def test_started_again_it_does_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, number = times(study / "study"), 1 + len(runs(study / "study"))
    assert carried_out(study)["finished"]
    assert f"{number} runs and 4 cells, of which {number} and 4 are there" in capsys.readouterr().err
    assert times(study / "study") == before


def test_cells_and_votes_alone_make_up_a_study(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "study" / "cells", tmp_path / "copy" / "cells")
    found = carried_out(study, out=tmp_path / "copy", quiet=True)
    assert found["finished"] and not (tmp_path / "copy" / "runs").exists()
    assert found["arms"][0]["seconds"] == read_json(study / "study" / "result.json")["arms"][0]["seconds"]


def test_votes_of_another_run_are_cast_again(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    shutil.copytree(study / "study", out)
    file = out / "cells" / "moce" / "letters-clusters-seed0.json"
    found = read_json(file)
    write_json(file, {**found, "run": "0" * 16})
    carried_out(study, out=out, budget_minutes=0)
    assert "letters-knn-seed0.json is stale (the votes that say which clusters" in capsys.readouterr().err
    before = times(out)
    assert carried_out(study, out=out)["finished"]
    said = capsys.readouterr().err
    assert f"cluster {found['cluster']} of MoCE, letters, knn, seed 0 has" in said
    assert read_json(file) == found
    changed = {name for name, when in times(out).items() if before[name] != when}
    assert changed == {"cells/moce/letters-clusters-seed0.json"}  # the same clusters: the same run and cell
    file.write_text("{}")
    with pytest.raises(UserError, match="letters-clusters-seed0.json names no clusters; delete it"):
        carried_out(study, out=out, quiet=True)


def test_tasks_of_the_same_clusters_share_a_run(tmp_path: Path) -> None:
    models = {seed: Stage(f"{tmp_path}/runs/moce-seed{seed}", "train-experts") for seed in (0, 1)}
    like = {seed: Stage(f"{tmp_path}/runs/own-seed{seed}", "train-experts") for seed in (0, 1)}
    by = Arm("MoCE", models)
    arms = [by, Arm("own", like, selected_by=by)]
    few = {"knn": {"shots": 5}}
    plan = Plan(
        "compare", tmp_path, arms, ["x/a", "x/b", "x/c"], None, ["knn", "linear"], [0, 1], evaluate=few
    )
    cells = Cells(plan)
    own = [cell for cell in plan.cells() if cell.arm.selected_by is by]
    assert cells.undecided(plan.cells()) == 2 * 2 * 3  # few shots vote for themselves
    assert [stage.path for stage in cells.stages()] == [stage.path for stage in models.values()]
    assert selection_file(plan, Cell(arms[1], "x/a", "knn", 0)).name == "a-clusters-5shots-seed0.json"
    for cell in own:
        clusters = [1, 2] if "c" not in cell.task else [3]
        write_json(selection_file(plan, cell), {"run": "r", "train": "t", "clusters": clusters})
    assert cells.undecided(plan.cells()) == 0
    paths = [stage.path for stage in cells.stages() if "own" in stage.path]
    assert len(paths) == len(set(paths)) == 2 * 2
    first, other = (cells.stage(Cell(arms[1], task, "knn", 1)) for task in ("x/a", "x/b"))
    assert first is not None and other is not None and first.path == other.path
    assert first.options["only_clusters"] == (1, 2)


MAE_STAR = '[[arms]]\nname = "MAE*"\noptions = { gate = "none" }\n'
ARM = '[[arms]]\nname = "MoCE"\noptions = { gate = "cluster" }\n'
OWN = '[[arms]]\nname = "own"\nselected_by = "MoCE"\n'


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (OWN, r"\[\[arms\]\] 1: selected_by 'MoCE' is none of the arms"),
        (OWN.replace("MoCE", "MoCe") + ARM, "'MoCe' is none of the arms. Did you mean 'MoCE'"),
        (OWN.replace("MoCE", "MAE*") + MAE_STAR, r"selected_by 'MAE\*' is an arm without a gate that reads"),
        (OWN.replace("MoCE", "own"), "selected_by 'own' is an arm without a gate"),
        (
            OWN + ARM.replace('"cluster"', '"cluster", shuffle_clusters = true'),
            "'MoCE' is an arm without a gate that reads the clusters as they were found",
        ),
        (OWN + ARM + 'strategy = "oracle"', "whose sub-models are chosen by 'oracle'"),
        (OWN + 'strategy = "vote"\n' + ARM, "trains plain models of its own; leave 'strategy' or it out"),
        (OWN + 'model = "timm:x"\n' + ARM, "trains plain models of its own; leave 'model' or it out"),
        (OWN + 'options = { gate = "token" }\n' + ARM, "without experts; give gate \"none\", not 'token'"),
        (OWN + "options = { only_clusters = [1] }\n" + ARM, "leave 'only_clusters' out"),
        (OWN + "options = { epoch = 1 }\n" + ARM, "There is no option 'epoch'"),
        (OWN + 'protocols = ["detect"]\n' + ARM, "which detect has not; give the arm some of the protocols"),
    ],
)
def test_an_arm_that_cannot_be(tmp_path: Path, arms: str, words: str) -> None:
    given = 'images = "x"\ntasks = ["a"]\nprotocols = ["knn", "detect"]\n'
    arms = arms if "detect" in arms else arms.replace(OWN, OWN + 'protocols = ["knn"]\n')
    arms = arms if "protocols" in arms else arms.replace('name = "own"', 'name = "own"\nprotocols = ["knn"]')
    (tmp_path / "study.toml").write_text(given + arms)
    with pytest.raises(UserError, match=words):
        moce.study("compare", out=tmp_path / "out", config=tmp_path / "study.toml")
    assert not (tmp_path / "out").exists()
