"""Halves of the pictures against all of them: the plan, what is counted, and the study from end to end."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import moce
from moce.config import StudyConfig
from moce.errors import UserError
from moce.study import negative_transfer
from moce.study.plan import Plan
from moce.study.settings import read_settings
from moce.study.summary import Measured
from moce.study.transfer_tables import halves_tables, verdict
from moce.verbs import resolve

SMALL = """
images = "toyworld://all?split=train&size=32&num=216"
preset = "debug"
tasks = ["creatures", "letters"]
data_root = "toyworld://?size=32&num=48"
protocols = ["knn"]
"""


def planned(folder: Path, text: str, **options: Any) -> Plan:
    (folder / "study.toml").write_text(text)
    given = {"kind": "negative-transfer", "out": folder / "out", "config": folder / "study.toml", **options}
    config = resolve(StudyConfig, given)
    settings = read_settings(config.config, negative_transfer.DEFAULTS, negative_transfer.OWN_KEYS)
    return negative_transfer.plan_of(config, settings, negative_transfer.halved(settings))


def test_halves_are_trained_for_as_many_updates_or_as_many_epochs(tmp_path: Path) -> None:
    plan = planned(tmp_path, SMALL.replace("216", "210"), seeds="0,3")
    steps = {arm.name: [stage.options.get("steps") for stage in arm.models.values()] for arm in plan.arms}
    assert steps == {
        "all": [None, None],  # 2 epochs of 210 pictures in batches of 32
        "A, equal updates": [14, 14],
        "B, equal updates": [14, 14],
        "A, equal epochs": [7, 7],  # 14 * 108 / 210
        "B, equal epochs": [7, 7],  # 14 * 102 / 210
    }
    for arm in plan.arms[1:]:
        half = arm.name[0]
        assert arm.models[3].options["images"] == f"classes:{plan.out}/halves/{half}.txt:{plan.images}"
        assert arm.models[3].options["seed"] == 3
    assert planned(tmp_path, SMALL + "[pretrain]\nsteps = 5\n").arms[1].options == {"steps": 5}


def test_only_one_of_the_two_can_be_asked_for(tmp_path: Path) -> None:
    names = [arm.name for arm in planned(tmp_path, 'equal = ["epochs"]\n' + SMALL).arms]
    assert names == ["all", "A, equal epochs", "B, equal epochs"]


def cell(arm: str, task: str, right: list[int], val: float | None) -> dict[str, Any]:
    """A cell of one seed: which of the test pictures were named correctly."""
    return {
        "method": arm,
        "task": task,
        "protocol": "knn",
        "metric": "top1",
        "seed": 0,
        "value": sum(right) / len(right),
        "labels": [1] * len(right),
        "predicted": right,
        "num_test": len(right),
        "settings": {"val_score": val},
    }


def test_the_better_half_is_chosen_on_validation_and_judged_on_test(tmp_path: Path) -> None:
    plan = planned(tmp_path, 'equal = "updates"\n' + SMALL)
    a, b = "A, equal updates", "B, equal updates"
    cells = [
        cell("all", "creatures", [1] * 5 + [0] * 5, 0.5),
        cell(a, "creatures", [1] * 8 + [0] * 2, 0.4),
        cell(b, "creatures", [1] * 4 + [0] * 6, 0.6),  # validation prefers what the test pictures do not
        cell("all", "letters", [0] * 40, 0.5),
        cell(a, "letters", [1] * 30 + [0] * 10, 0.9),
        cell(b, "letters", [0] * 40, 0.1),
    ]
    (found,) = negative_transfer.transfer(plan, Measured(plan, cells), ["updates"])
    creatures, letters = found["tasks"]
    assert (creatures["better"], creatures["chosen_on"]) == ("B", "val")
    assert creatures["improvement"]["value"] == pytest.approx(-0.1)
    assert creatures["A"]["value"] == pytest.approx(0.3)
    assert letters["better"] == "A" and letters["improvement"]["value"] == pytest.approx(0.75)
    assert letters["improvement"]["pictures"][0] > 0.5
    assert (found["improved"], found["either"]) == (1, 2)
    assert found["separable"] == {"better": 1, "worse": 0}
    assert found["better_half"]["value"] == pytest.approx((0.75 - 0.1) / 2)
    for one in cells:
        one["settings"]["val_score"] = None
    (found,) = negative_transfer.transfer(plan, Measured(plan, cells), ["updates"])
    assert (found["tasks"][0]["better"], found["tasks"][0]["improvement"]) == (None, None)
    assert (found["improved"], found["separable"], found["better_half"]) == (None, None, None)
    assert found["either"] == 2 and verdict(found).startswith("No score on validation")
    assert "| creatures | +30.00 (" in halves_tables([found]) and "| – | – |" in halves_tables([found])
    assert negative_transfer.transfer(plan, Measured(plan, cells[:2]), ["updates"]) == []  # not yet


def test_the_page_explains_whiskers_where_they_are_drawn(tmp_path: Path) -> None:
    own = {"value": 0.1, "pictures": [0.05, 0.15]}
    row = {"task": "creatures", "A": own, "B": {**own, "value": 0.2}, "better": None, "improvement": None}
    found = {"protocol": "knn", "equal": "updates", "tasks": [row], "either": 1}
    found |= dict.fromkeys(("improved", "separable", "better_half"))
    numbers = {"num_images": {"all": 4, "A": 2, "B": 2}, "classes": {"A": 1, "B": 1, "C": 0}, "by": "kinds"}
    result = {"verb": "study", "kind": "negative-transfer", "out": "study", "corpus": "photos", "seeds": [0]}
    result |= {"halves": numbers, "finished": True, "transfer": [found]}
    (tmp_path / "study/cells").mkdir(parents=True)
    for pictures, said in (([0.05, 0.15], True), (None, False)):
        row["A"]["pictures"] = row["B"]["pictures"] = pictures
        (tmp_path / "study/result.json").write_text(json.dumps(result))
        moce.report([tmp_path / "study"], out=tmp_path / "page.html", quiet=True)
        text = (tmp_path / "page.html").read_text("utf-8")
        assert ("How to read it: whiskers" in text) == said
        assert "Which half is the better one is chosen on validation pictures" in text


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole small study."""
    folder = tmp_path_factory.mktemp("negative-transfer")
    (folder / "small.toml").write_text(SMALL)
    options = {"config": folder / "small.toml", "quiet": True, "device": "cpu"}
    moce.study("negative-transfer", out=folder / "study", **options)
    return folder


def test_the_study_trains_on_halves_and_says_what_they_are_worth(study: Path) -> None:
    result = json.loads((study / "study" / "result.json").read_text())
    assert result["finished"] and result["cells"] == {"there": 10, "left": 0}
    assert result["halves"]["num_images"] == {"all": 216, "A": 108, "B": 108}
    assert result["halves"]["classes"] == {"A": 36, "B": 36, "C": 0}
    trained = json.loads((study / "study/runs/a-equal-epochs-seed0/result.json").read_text())
    assert (trained["num_images"], trained["steps"]) == (108, 7)
    costs = {arm["name"]: (arm["seconds"], arm["dense_seconds"]) for arm in result["arms"]}
    assert costs["A, equal epochs"] == (pytest.approx(trained["seconds"]), 0)
    assert [(part["protocol"], part["equal"]) for part in result["transfer"]] == [
        ("knn", "updates"),
        ("knn", "epochs"),
    ]
    by_arm = result["tables"]["knn"]["values"]["letters"]
    row = result["transfer"][1]["tasks"][1]
    assert row["task"] == "letters"
    expected = by_arm["B, equal epochs"]["mean"] - by_arm["all"]["mean"]
    assert row["B"]["value"] == pytest.approx(expected)
    text = (study / "study" / "table.md").read_text("utf-8")
    assert "## Halves against all" in text and "### knn, equal updates" in text
    for way in ("updates", "epochs"):
        ElementTree.parse(study / "study" / f"improvement-knn-equal-{way}.svg")


def test_the_page_shows_the_bars(study: Path) -> None:
    found = moce.report([study / "study"], out=study / "page.html", quiet=True)
    assert found["sections"] == ["halves"]
    text = (study / "page.html").read_text("utf-8")
    assert text.count('<svg class="bars-by-task"') == 2 and "no evidence" in text
    assert "half A has 108 of 36 classes" in text and "letters, half B minus all" in text
    assert moce.inspect(study / "study", quiet=True)["summary"] == "study (negative-transfer), finished"


def test_the_same_command_measures_nothing_again(study: Path) -> None:
    folder = study / "study"
    cells = {p: p.stat().st_mtime_ns for p in (folder / "cells").rglob("*.json")}
    runs = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*.safetensors")}
    moce.study("negative-transfer", out=folder, config=study / "small.toml", quiet=True, device="cpu")
    assert len(cells) == 10 and cells == {p: p.stat().st_mtime_ns for p in cells}
    assert len(runs) >= 5 and runs == {p: p.stat().st_mtime_ns for p in runs}


def test_other_halves_need_another_folder(study: Path) -> None:
    (study / "halves.txt").write_text("creatures/cat A\nletters/A B\n")
    (study / "other.toml").write_text(f'halves = "{study / "halves.txt"}"\n' + SMALL)
    before = (study / "study/halves/A.txt").read_text()
    with pytest.raises(UserError, match="names other classes than half A .* choose another --out"):
        moce.study("negative-transfer", out=study / "study", config=study / "other.toml", quiet=True)
    assert (study / "study/halves/A.txt").read_text() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('equal = "steps"\n', "'equal' cannot be 'steps': choose one of updates, epochs"),
        ('halves = "wordnet"\n', "no WordNet ids"),
        ('halfs = "wordnet"\n', "there is no key 'halfs'. Did you mean 'halves'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "study.toml").write_text(text + SMALL)
    with pytest.raises(UserError, match=said):
        moce.study("negative-transfer", out=tmp_path / "out", config=tmp_path / "study.toml", quiet=True)
    assert not (tmp_path / "out").exists()


def test_pictures_without_labels_have_no_halves(tmp_path: Path, tiny_folder: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, picture in enumerate(sorted(tiny_folder.rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(picture.read_bytes())
    (tmp_path / "study.toml").write_text(f'images = "{flat}"\ntasks = ["creatures"]\n')
    with pytest.raises(UserError, match="have no labels, so nobody knows their halves"):
        moce.study("negative-transfer", out=tmp_path / "out", config=tmp_path / "study.toml", quiet=True)
