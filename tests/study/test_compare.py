"""A small comparison: what is made, continued, passed over, made again; and configurations that cannot be."""

import csv
import fcntl
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import MAE, MAE_STAR, ROOT, again, settings, times

import moce
from moce.engine.endings import Interruption, leave_by
from moce.engine.files import held, read_json
from moce.engine.processes import group
from moce.errors import UserError
from moce.images.loader import Batch
from moce.study.budget import Budget, Spent
from moce.study.cells import Waits, evaluate_options
from moce.study.plan import Arm, Cell, Plan, Stage
from moce.study.table import is_evaluation
from moce.transfer.finetune import Classification


def test_runs_cells_and_tables(study: Path, small_runs: Any) -> None:
    out = study / "study"
    assert sorted(p.name for p in (out / "runs").iterdir()) == ["mae-star-seed0", "moce-seed0"]
    assert {str(p.relative_to(out / "cells")) for p in out.glob("cells/*/*.json")} == {
        f"{arm}/{task}-knn-seed0.json"
        for arm in ("mae-star", "moce", "moce-random")
        for task in ("letters", "plants")
    }
    cell = json.loads((out / "cells" / "moce-random" / "letters-knn-seed0.json").read_text())
    assert is_evaluation(cell)
    assert (cell["method"], cell["study"]["method"]) == ("MoCE random", "MoCE (random)")
    run = json.loads((out / "runs" / "moce-seed0" / "result.json").read_text())
    assert cell["study"]["run"] == run["fingerprint"]
    assert cell["study"]["options"] == {"strategy": "random"}
    assert cell["study"]["cost"]["cluster_seconds"] > 0
    result = json.loads((out / "result.json").read_text())
    assert result["finished"] and result["tables"]["knn"]["shared"] == ["letters", "plants"]
    tried = list(csv.DictReader((out / "tried.csv").read_text().splitlines()))
    options = {row["arm"]: json.loads(row["options"]) for row in tried}
    assert options["MAE*"]["gate"] == "none" and options["MoCE"]["epochs"] == 1  # of [experts]
    assert [row["evaluation"] for row in tried] == ["{}", "{}", '{"strategy": "random"}']
    assert (
        "| task | MAE* | MoCE | MoCE random (reference: one drawn at random) |"
        in (out / "table.md").read_text()
    )


def test_a_study_says_how_its_numbers_were_got(study: Path) -> None:
    found, runs = read_json(study / "study" / "result.json")["origin"], study / "study" / "runs"
    text = (study / "study" / "table.md").read_text()
    assert found["config"] == (study / "study.toml").read_text()
    assert found["config"].strip() in text and "`moce study compare` with this file" in text
    seconds = [read_json(path)["seconds"] for path in runs.glob("*/result.json")]
    assert found["training_seconds"] == pytest.approx(sum(seconds), abs=0.1) and len(seconds) > 1
    cells = [read_json(path)["study"]["seconds"] for path in (study / "study" / "cells").glob("*/*.json")]
    assert found["evaluation_seconds"] == pytest.approx(sum(cells), abs=0.1)
    assert found["torch"] == [torch.__version__] and {"cores": os.cpu_count(), "gpu": None} in found["hosts"]


def test_each_seed_may_have_clusters_of_its_own(small_runs: Any, tmp_path: Path) -> None:
    file = settings(
        small_runs,
        tmp_path,
        more="clusters_per_seed = true\nseeds = [0, 1]\n[cluster]\nnum_clusters = 4",
        arms='[[arms]]\nname = "MoCE"\noptions = { gate = "cluster" }',
    )
    with pytest.raises(UserError, match="'clusters' names one run for all seeds.* leave one of the two out"):
        again(tmp_path, quiet=True)
    of_each = file.read_text().replace(f'clusters = "{small_runs.clusters}"', "")
    file.write_text(of_each)
    assert again(tmp_path, quiet=True)["finished"]
    runs = tmp_path / "study" / "runs"
    assert sorted(run.name for run in runs.iterdir()) == [
        "moce-seed0", "moce-seed1", "seed0-clusters", "seed1-clusters",
    ]  # fmt: skip
    labels = [np.load(runs / f"seed{seed}-clusters" / "labels.npy") for seed in (0, 1)]
    assert not np.array_equal(*labels)
    for seed in (0, 1):
        run = read_json(runs / f"moce-seed{seed}" / "config.json")
        assert run["options"]["clusters"] == str(runs / f"seed{seed}-clusters")
    # Before clusters for all seeds are made it is said that the runs which are there have others.
    file.write_text(of_each.replace("clusters_per_seed = true", ""))
    made_from = "moce-seed0 was made from .*seed0-clusters, and this study would make clusters for it"
    with pytest.raises(UserError, match=made_from):
        again(tmp_path, quiet=True)
    assert not (runs / "clusters").exists()


def test_a_cell_says_what_evaluate_says(study: Path) -> None:
    cell = json.loads((study / "study" / "cells" / "moce" / "plants-knn-seed0.json").read_text())
    alone = moce.evaluate(study / "study" / "runs" / "moce-seed0", task="plants", data_root=ROOT, quiet=True)
    assert cell["predicted"] == alone["predicted"] and cell["value"] == alone["value"]


def test_started_again_it_does_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(study / "study")
    again(study, tried=study / "all.csv")
    said = capsys.readouterr()
    assert times(study / "study") == before
    assert "2 runs and 6 cells, of which 2 and 6 are there" in said.err
    assert said.out.splitlines()[0].split() == ["knn", "MAE*", "MoCE", "MoCE", "random"]
    assert len((study / "all.csv").read_text().splitlines()) == 4


def test_what_another_process_writes_is_waited_for(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    holding, ends = threading.Event(), []

    def other() -> None:
        with held(tmp_path / "s" / "study" / ".locks" / "result"):
            holding.set()
            time.sleep(1)
            ends.append(time.time())

    thread = threading.Thread(target=other)
    thread.start()
    holding.wait()
    (tmp_path / "s" / "study" / "result.json").unlink()
    again(tmp_path / "s", quiet=True, budget_minutes=0)
    thread.join()
    assert (tmp_path / "s" / "study" / "result.json").stat().st_mtime >= ends[0] - 0.05


def test_a_list_of_what_was_tried_that_is_none_is_refused_at_the_start(study: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("name,age\nann,7\n")
    before = times(study / "study")
    with pytest.raises(UserError, match="mine.csv has other columns"):
        again(study, quiet=True, tried=tmp_path / "mine.csv")
    assert times(study / "study") == before


def test_without_time_it_trains_nothing_and_writes_tables(study: Path, tmp_path: Path) -> None:
    found = again(study, out=tmp_path / "new", budget_minutes=0, quiet=True)
    assert not found["finished"] and found["cells"] == {"there": 0, "left": 6} and found["runs_left"] == 2
    assert "0 of 6 cells" in (tmp_path / "new" / "table.md").read_text()
    assert not (tmp_path / "new" / "runs").exists()


def test_cells_alone_make_up_a_study(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study / "study" / "cells", tmp_path / "copy" / "cells")
    found = again(study, out=tmp_path / "copy", quiet=True)
    assert found["finished"] and not (tmp_path / "copy" / "runs").exists()
    assert found["arms"][1]["parameters"] is not None


def test_what_a_verb_refuses_keeps_nothing_else_from_being_made(
    small_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = """
        [[arms]]
        name = "broken"
        options = { gate = "cluster", layers = [0, 99] }
        [[arms]]
        name = "MAE"
    """
    file = settings(small_runs, tmp_path, arms=arms)
    with pytest.raises(UserError, match=r"runs/broken-seed0: .*99.*result.json has what could be made"):
        moce.study("compare", out=tmp_path / "study", config=file, device="cpu")
    found = read_json(tmp_path / "study" / "result.json")
    assert found["cells"] == {"there": 2, "left": 2} and list(found["failed"]) == [
        str(tmp_path / "study" / "runs" / "broken-seed0")
    ]
    assert "**Failed**: " in (tmp_path / "study" / "table.md").read_text()
    assert "What needs it is passed over" in capsys.readouterr().err


def test_what_one_number_stands_for_is_measured_with_the_first_seed_of_all(tmp_path: Path) -> None:
    dense, own = Stage("mae"), {s: Stage(f"moce {s}") for s in (1, 2)}
    arms = [Arm("MAE", dict.fromkeys((0, 1, 2), dense)), Arm("MoCE", own)]
    plan = Plan("compare", tmp_path, arms, ["a"], None, ["knn"], [1, 2], all_seeds=(0, 1, 2))
    assert [(c.arm.name, c.seed) for c in plan.cells()] == [("MAE", 0), ("MoCE", 1), ("MoCE", 2)]
    late = Plan("compare", tmp_path, arms[1:], ["a"], None, ["finetune"], [2, 1], lr_from="MoCE")
    assert [c.seed for c in late.cells()] == [2, 1]  # in the order of the file, not of the numbers


@pytest.mark.parametrize("content", ['{"schema": 1, "task"', "[]", '{"schema": 1}'])
def test_a_broken_cell_is_named(study: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(study / "study", tmp_path / "study")
    file = tmp_path / "study" / "cells" / "moce" / "letters-knn-seed0.json"
    file.write_text(content)
    with pytest.raises(
        UserError, match="letters-knn-seed0.json .*; delete it, and the same command measures it again"
    ):
        again(study, out=tmp_path / "study", quiet=True)


def test_a_run_that_another_process_trains_is_passed_over(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    shutil.copytree(study / "study", out)
    (out / "runs" / "moce-seed0" / "result.json").unlink()
    shutil.rmtree(out / "cells" / "moce")
    (out / "cells" / "mae-star" / "plants-knn-seed0.json").unlink()
    with open(out / "runs" / "moce-seed0" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = again(study, out=out)
    said = capsys.readouterr().err
    assert "Another process is working in" in said and "passed over for now" in said
    assert found["cells"] == {"there": 4, "left": 2}  # the cell of MAE* was measured meanwhile
    assert "2 cells are left" in said and "the same command continues" in said


def test_a_cell_that_another_process_measures_is_passed_over(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    shutil.copytree(study / "study", out)
    (out / "cells" / "mae-star" / "plants-knn-seed0.json").unlink()
    lock = out / ".locks" / "mae-star-plants-knn-seed0.lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        again(study, out=out)
    assert "another process measures it; passed over for now" in capsys.readouterr().err
    assert again(study, out=out, quiet=True)["finished"]


def test_the_learning_rate_of_fine_tuning_is_chosen_once(small_runs: Any, tmp_path: Path) -> None:
    arms = MAE + MAE_STAR + "[evaluate]\nepochs = 1\nlrs = [1e-3, 4e-3]"
    file = settings(small_runs, tmp_path, more='lr_from = "MAE*"', arms=arms)
    text = file.read_text().replace('"knn"', '"finetune"').replace('"letters", ', "")
    file.write_text(text)
    moce.study("compare", out=tmp_path / "study", config=file, quiet=True, device="cpu")
    cells = [tmp_path / "study" / "cells" / arm / "plants-finetune-seed0.json" for arm in ("mae-star", "mae")]
    chooser, other = (json.loads(path.read_text())["settings"] for path in cells)
    assert chooser["grid"]["lr"] == [1e-3, 4e-3]
    assert other["grid"]["lr"] == [chooser["lr"]]


@pytest.mark.parametrize(("lr_seed", "lr"), [(None, 1e-3), (1, 4e-3)])
def test_every_seed_takes_the_learning_rate_of_the_first(
    tmp_path: Path, lr_seed: int | None, lr: float
) -> None:
    arms = [Arm(name, {s: Stage(f"{name} {s}") for s in (0, 1)}) for name in ("MAE*", "MoCE")]
    plan = Plan(
        "compare",
        tmp_path,
        arms,
        ["a"],
        None,
        ["finetune"],
        [0, 1],
        lr_from="MAE*",
        all_seeds=() if lr_seed is None else (lr_seed, 1 - lr_seed),
    )
    for seed, rate in enumerate((1e-3, 4e-3)):
        chosen = {"schema": 1, "task": "a", "protocol": "finetune", "metric": "top1", "value": 0.5}
        chosen |= {"settings": {"lr": rate}, "study": {}, "model": "m", "method": "MAE*", "num_test": 8}
        path = tmp_path / "cells" / Cell(arms[0], "a", "finetune", seed).file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(chosen))
    own = {(c.arm.name, c.seed): evaluate_options(plan, c) for c in plan.cells()}
    assert own.pop(("MAE*", lr_seed or 0)) == {}
    assert list(own.values()) == [{"lrs": [lr]}] * 3


def test_what_the_chooser_of_another_process_has_not_chosen_yet_is_waited_for(tmp_path: Path) -> None:
    arms = [Arm(name, {s: Stage(f"{name} {s}") for s in (1, 2)}) for name in ("MAE*", "MoCE")]
    plan = Plan(
        "compare", tmp_path, arms, ["a"], None, ["finetune"], [1, 2], lr_from="MAE*", all_seeds=(0, 1, 2)
    )
    waits = [evaluate_options(plan, cell) for cell in plan.cells()]
    assert [str(w.cell) for w in waits if isinstance(w, Waits)] == ["MAE*, a, finetune, seed 0"] * 4


def test_an_interrupted_fine_tuning_goes_on(
    small_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = """
        [[arms]]
        name = "MAE"
        [evaluate]
        epochs = 4
        batch_size = 4
        lrs = [1e-3]
        checkpoint_steps = 2
    """
    file = settings(small_runs, tmp_path, arms=arms)
    file.write_text(file.read_text().replace('"knn"', '"finetune"').replace('"letters", ', ""))
    options: dict[str, Any] = {"config": file, "quiet": True, "device": "cpu"}
    forward, steps = Classification.forward, list[list[int]]()

    def counted(self: Classification, batch: Batch) -> Any:
        steps.append(batch.indices.tolist())
        if len(steps) == 6 and not (tmp_path / "whole").exists():
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(Classification, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        moce.study("compare", out=tmp_path / "cut", **options)
    before = steps[:4]
    cell = "mae/plants-finetune-seed0"
    assert list((tmp_path / "cut/evaluations" / cell).rglob("step-000000004.safetensors"))
    (tmp_path / "whole").mkdir()
    trained = {}
    for name in ("cut", "whole"):
        steps.clear()
        moce.study("compare", out=tmp_path / name, **options)
        trained[name] = list(steps)
    assert before + trained["cut"] == trained["whole"] and len(trained["cut"]) > 1
    cut, uncut = (
        json.loads((tmp_path / name / f"cells/{cell}.json").read_text()) for name in ("cut", "whole")
    )
    assert cut["predicted"] == uncut["predicted"]
    assert "folder" not in cut and not (tmp_path / "cut/evaluations" / cell).exists()


# Time


def test_training_ends_at_a_checkpoint_when_the_time_is_up() -> None:
    budget, checkpoints = Budget(0.4 / 60), []

    def train() -> None:
        with budget.within(), Interruption(group()) as interruption:
            interruption.worth_saving = True
            for _ in range(1000):
                time.sleep(0.01)
                if interruption.signal:
                    checkpoints.append("written")
                    leave_by(interruption.signal)

    with pytest.raises(Spent):
        train()
    assert checkpoints == ["written"]
    with pytest.raises(Spent):
        budget.require()


def test_what_ends_in_time_is_not_interrupted_later() -> None:
    with Budget(0.2 / 60).within():
        pass
    time.sleep(0.3)


def test_somebody_else_s_signal_is_no_end_of_the_budget() -> None:
    with pytest.raises(SystemExit) as stop, Budget(5).within():
        leave_by(15)
    assert stop.value.code == 143


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('tasks = ["letters", "plants"]', 'tasks = ["letters", "plant"]'), "Did you mean 'plants'"),
        (('protocols = ["knn"]', 'protocols = ["detect"]'), "There is no folder toyworld"),
        (
            ('strategy = "random"', 'strategy = "random"\n[[arms]]\nname = "T"\nmodel = "timm:vit_tinny"'),
            "no model",
        ),
    ],
)
def test_what_can_never_be_measured_is_known_before_training(
    small_runs: Any, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    file = settings(small_runs, tmp_path)
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UserError, match=words):
        moce.study("compare", out=tmp_path / "out", config=file, quiet=True, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pictures", ["photographs", "photographs/*.parquet"])
def test_pictures_that_are_not_there_are_known_before_anything_is_written(
    small_runs: Any, tmp_path: Path, pictures: str
) -> None:
    file = settings(small_runs, tmp_path)
    file.write_text(file.read_text().replace(str(small_runs.images), pictures))
    with pytest.raises(
        UserError, match=f"(There is no folder or file|No file matches) '{re.escape(pictures)}'"
    ):
        moce.study("compare", out=tmp_path / "out", config=file, quiet=True, device="cpu")
    assert not (tmp_path / "out").exists()


def test_without_the_pictures_what_is_trained_is_still_measured(small_runs: Any, tmp_path: Path) -> None:
    ready = f'[[arms]]\nname = "MAE"\nmodel = "{small_runs.mae}"\n'
    file = settings(small_runs, tmp_path, arms=MAE_STAR + ready)
    file.write_text(file.read_text().replace(str(small_runs.images), "photographs"))
    with pytest.raises(UserError, match=r"There is no folder or file 'photographs'.* has what could be made"):
        moce.study("compare", out=tmp_path / "out", config=file, quiet=True, device="cpu")
    assert read_json(tmp_path / "out" / "result.json")["cells"] == {"there": 2, "left": 2}


def test_a_study_of_another_kind_stays_as_it_is(study: Path) -> None:
    before = times(study / "study")
    with pytest.raises(UserError, match="holds a study of another kind, compare; name another folder"):
        moce.study("negative-transfer", out=study / "study", budget_minutes=0, quiet=True)
    with pytest.raises(UserError, match="holds a study of another kind"):
        moce.study("efficiency", out=study / "study", budget_minutes=0, quiet=True)
    assert times(study / "study") == before
