"""The list of what was tried: a line for each, once, whoever writes."""

import csv
import fcntl
import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cells import ARMS, LABELS, RESULTS, arm, cell, plan

from moce.errors import UserError
from moce.study.plan import Arm, Stage
from moce.study.runner import Progress
from moce.study.tried import COLUMNS, add_to, alone, lines, options_before


def test_what_was_tried_is_written_once_and_only_when_whole(tmp_path: Path) -> None:
    progress = Progress([r for r in RESULTS if not (r["method"] == "MoCE" and r["task"] == "b")], [])
    found = list(lines(plan(ARMS), progress))
    assert [(row["arm"], row["seed"]) for row in found] == [
        ("MAE", "0"), ("MAE*", "0"), ("MAE*", "1"), ("MoCE oracle", "0"),
    ]  # fmt: skip
    file = tmp_path / "results" / "tried.csv"
    assert add_to(file, found) == 4
    assert add_to(file, found) == 0
    assert add_to(file, list(lines(plan(ARMS), Progress(list(RESULTS), [])))) == 2
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert len(rows) == 6 and tuple(rows[0]) == COLUMNS
    last = rows[-1]
    assert (last["arm"], last["seed"], last["protocol"], last["tasks"]) == ("MoCE", "1", "linear", "a b")
    assert float(last["test"]) == pytest.approx((7 / 8 + 4 / 8) / 2)
    assert (last["val_score"], last["train_seconds"], last["corpus"]) == ("0.50000", "60.0", "photos")
    assert json.loads(last["options"]) == {}


def test_other_options_of_evaluation_are_another_line(tmp_path: Path) -> None:
    def of(name: str, options: dict[str, Any], labels: list[int] = LABELS) -> list[dict[str, str]]:
        own = cell("MAE*", "a", "11110000")
        own["study"]["options"] = options
        return list(lines(plan([arm("MAE*", [0])], ["a"], [0]), Progress([{**own, "labels": labels}], [])))

    file = tmp_path / "tried.csv"
    assert [add_to(file, of("MAE*", options)) for options in ({}, {"k": [3]}, {"k": [3]}, {})] == [1, 1, 0, 0]
    assert add_to(file, of("MAE*", {}, LABELS[::-1])) == 1  # of other pictures
    assert [row["evaluation"] for row in csv.DictReader(file.read_text().splitlines())] == [
        "{}", '{"k": [3]}', "{}",
    ]  # fmt: skip


def test_a_learning_rate_that_was_chosen_elsewhere_is_no_option_of_a_line() -> None:
    arms, cells = [arm("MAE*"), arm("MoCE")], []
    for one in arms:
        for seed in (0, 1):
            own = cell(one.name, "a", "11110000", seed, protocol="finetune")
            own["study"]["options"] = {
                "epochs": 2,
                "lrs": [1e-3, 4e-3] if one == arms[0] and not seed else [4e-3],
            }
            cells.append(own)
    tried = plan(arms, ["a"], lr_from="MAE*")
    tried.protocols[:] = ["finetune"]
    found = {(row["arm"], row["seed"]): row["evaluation"] for row in lines(tried, Progress(cells, []))}
    assert found.pop(("MAE*", "0")) == '{"epochs": 2, "lrs": [0.001, 0.004]}'
    assert list(found.values()) == ['{"epochs": 2}'] * 3  # MAE*'s later seed takes those of the first, too


def test_lines_of_an_older_version_stay(tmp_path: Path) -> None:
    (new,) = lines(plan([arm("MAE*", [0])], ["a"], [0]), Progress([cell("MAE*", "a", "11110000")], []))
    old = {name: value for name, value in new.items() if name not in ("evaluation", "data")}
    text = ",".join(old) + "\n" + ",".join(["then", *list(old.values())[1:]]) + "\n"
    (tmp_path / "tried.csv").write_text(text)
    assert add_to(tmp_path / "tried.csv", [new]) == 0, "the same, as far as the old line says"
    assert add_to(tmp_path / "tried.csv", [new, {**new, "seed": "1"}]) == 1
    rows = list(csv.DictReader((tmp_path / "tried.csv").read_text().splitlines()))
    assert [row["date"] for row in rows] == ["then", new["date"]] and rows[0]["data"] == ""


def test_two_processes_lose_no_line(tmp_path: Path) -> None:
    file = tmp_path / "tried.csv"
    (new,) = lines(plan([arm("MAE*", [0])], ["a"], [0]), Progress([cell("MAE*", "a", "11110000")], []))

    def add(first: int) -> None:
        for number in range(first, first + 20):
            add_to(file, [{**new, "seed": str(number)}])

    threads = [Thread(target=add, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read_text().splitlines()) == 61
    assert [path.name for path in tmp_path.iterdir()] == ["tried.csv"]  # no lock is left


def test_a_lock_that_was_removed_while_one_waited_is_no_lock(tmp_path: Path) -> None:
    path, inside = tmp_path / ".lock", []

    def work(name: str) -> None:
        with alone(path):
            inside.append(name)
            assert path.exists()

    path.touch()
    with open(path) as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        waiting = Thread(target=work, args=("waited",))
        waiting.start()
        waiting.join(0.2)
        path.unlink()  # what the holder does at its end
        work("new")  # another file, which the one who waits does not hold
        assert inside == ["new"]
    waiting.join()
    assert inside == ["new", "waited"] and not path.exists()


def test_another_table_is_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("name,age\nann,7\n")
    with pytest.raises(UserError, match="mine.csv has other columns"):
        add_to(tmp_path / "mine.csv", [])
    assert (tmp_path / "mine.csv").read_text() == "name,age\nann,7\n"
    for row in ("a,b", ",".join("x" * (len(COLUMNS) + 1))):
        (tmp_path / "mine.csv").write_text(",".join(COLUMNS) + "\n" + row + "\n")
        with pytest.raises(UserError, match="mine.csv, line 2: it has more or fewer columns"):
            add_to(tmp_path / "mine.csv", [])


def test_what_the_own_clusters_of_an_arm_are_stands_in_its_line() -> None:
    clusters = Stage("runs/c", "cluster", {"num_clusters": 7, "images": "x"}, {"enc": Stage("runs/mae")})
    needs = {"mae": Stage("runs/mae"), "clusters": clusters}
    for gate, told in (("cluster", {"num_clusters": 7}), ("none", None)):  # which reads none
        own = {"images": "x", "gate": gate, "epochs": 3, "preset": "debug"}
        stage = Stage("runs/moce-seed0", "train-experts", own, needs)
        one = plan([Arm("MoCE", {0: stage})], tasks=["a"], seeds=[0])
        row = next(lines(one, Progress([cell("MoCE", "a", "1" * 8)], [])))
        assert json.loads(row["options"]).get("cluster") == told


def test_a_line_says_which_seed_the_models_before_it_have() -> None:
    def trained(first: int) -> dict[str, Any]:
        dense = Stage("m", "pretrain", {"images": "x", "preset": "debug", "seed": first})
        clusters = Stage("c", "cluster", {"images": "x", "seed": first}, {"enc": dense})
        needs = {"mae": dense, "clusters": clusters}
        return options_before(Stage("e", "train-experts", {"gate": "cluster"}, needs), 1)

    assert trained(0)["pretrain"]["seed"] == 0 and trained(0)["cluster"] == {"seed": 0}
    assert "seed" not in trained(1)["pretrain"] and "cluster" not in trained(1)
