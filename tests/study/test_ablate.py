"""One factor at a time: levels, what is shared between them, and the study from end to end."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import moce
from moce.config import ClusterConfig, ExpertsConfig, StudyConfig
from moce.errors import UserError
from moce.study import ablate
from moce.study.factors import BUILT_IN, Base, factors_of
from moce.study.page.factors import factor_sections
from moce.study.pairs import CHANCE
from moce.study.plan import Plan
from moce.study.report import environment
from moce.study.settings import read_settings
from moce.verbs import resolve

SMALL = """
images = "toyworld://all?split=train&size=32&num=216"
preset = "debug"
tasks = ["creatures", "letters"]
data_root = "toyworld://?size=32&num=48"
protocols = ["knn"]
"""


@pytest.fixture
def base() -> Base:
    places = {"images": "-", "out": "-", "preset": "tiny-imagenet"}
    cluster = resolve(ClusterConfig, {**places, "enc": "-"})
    return Base(cluster, resolve(ExpertsConfig, {**places, "mae": "-", "clusters": "-"}), 12, "vote")


def levels(given: Any, base: Base) -> dict[str, list[dict[str, Any]]]:
    return {f.name: [level.options for level in f.levels] for f in factors_of(given, base, "a.toml")}


def test_built_in_levels_are_relative_to_the_base(base: Base) -> None:
    found = levels(None, base)
    assert list(found) == list(BUILT_IN)  # every factor has a level that is not the base's
    assert found["experts"] == [{"num_experts": 2}, {"num_experts": 4}, {"num_experts": 16}]
    assert found["clusters"] == [{"num_clusters": 16}, {"num_clusters": 32}, {"num_clusters": 128}]
    chosen = [options["layers"] for options in found["layers"]]
    assert chosen == [(11,), (10, 11), (1, 3, 5, 7, 9, 11), (5, 7)]  # 9 and 11 are the base
    few = dataclasses.replace(base, experts=dataclasses.replace(base.experts, num_experts=4))
    assert levels(["experts"], few)["experts"] == [{"num_experts": 2}, {"num_experts": 8}]  # none twice
    assert found["balance"] == [{"balance": 0.0}, {"balance": 0.1}]
    assert {"embedding": "random"} in found["gate input"] and {"gate": "token"} in found["gate input"]


def test_levels_that_a_gate_does_not_use_are_left_out(base: Base) -> None:
    subnets = dataclasses.replace(base, experts=dataclasses.replace(base.experts, gate="sdr"))
    found = levels(None, subnets)
    assert not {"shared gradient", "balance", "gate noise"} & set(found)
    assert {"gate": "token"} in found["gate input"] and len(found["experts"]) == 3


def test_levels_that_a_gate_cannot_have_are_left_out(base: Base) -> None:
    tokens = dataclasses.replace(base, experts=dataclasses.replace(base.experts, gate="token"))
    assert not {"meaning", "strategy"} & set(levels(None, tokens))
    random = dataclasses.replace(base, experts=dataclasses.replace(base.experts, shuffle_clusters=True))
    assert {"gate": "token"} not in levels(None, random)["gate input"]


def test_levels_that_cannot_be_are_refused_where_they_are_written(tmp_path: Path) -> None:
    factors = '[factors]\nstrategy = ["knn"]\n'
    with pytest.raises(UserError, match=r"\[strategy knn\]: gate 'token' has no sub-models to choose from"):
        planned(tmp_path, SMALL + "[experts]\ngate = 'token'\n" + factors)
    with pytest.raises(UserError, match=r"\[base\]: with top_k 2 no sub-model"):
        planned(tmp_path, SMALL + "[experts]\ntop_k = 2\n" + factors)


def test_a_level_of_clusters_has_the_seed_of_the_clusters_that_are_named(
    tmp_path: Path, small_runs: Any
) -> None:
    shutil.copytree(small_runs.clusters, tmp_path / "clusters")
    config = json.loads((tmp_path / "clusters" / "config.json").read_text())
    config["options"]["seed"] = 3
    (tmp_path / "clusters" / "config.json").write_text(json.dumps(config))
    runs = f'mae = "{small_runs.mae}"\nclusters = "{tmp_path / "clusters"}"\n'
    plan = planned(tmp_path, 'factors = ["rounding"]\n' + runs + SMALL)
    assert plan.arms[1].models[0].needs["clusters"].options["seed"] == 3


def test_a_file_names_factors_or_gives_its_own(base: Base) -> None:
    assert list(levels(["rounding", "strategy"], base)) == ["rounding", "strategy"]
    own = {"num_experts": [8, 2], "layers": [[9, 11], [3]], "no gates": [{"gate": "none", "distill": 0.5}]}
    assert levels(own, base) == {
        "num_experts": [{"num_experts": 2}],
        "layers": [{"layers": [3]}],
        "no gates": [{"gate": "none", "distill": 0.5}],
    }
    assert [level.name for f in factors_of(own, base, "") for level in f.levels] == [
        "num experts 2",
        "layers 3",
        "gate none, distill 0.5",
    ]


def planned(folder: Path, text: str, **options: Any) -> Plan:
    (folder / "study.toml").write_text(text)
    given = {"kind": "ablate", "out": folder / "out", "config": folder / "study.toml", **options}
    config = resolve(StudyConfig, given)
    settings = read_settings(config.config, ablate.DEFAULTS, ablate.OWN_KEYS)
    return ablate.plan_of(config, settings)[0]


def test_levels_share_what_they_do_not_change(tmp_path: Path) -> None:
    factors = 'factors = ["experts", "clusters", "strategy"]\n'
    plan = planned(tmp_path, factors + SMALL, seeds="0,1")
    arms = {arm.name: arm for arm in plan.arms}
    base = arms["base"].models
    assert arms["strategy per-layer"].models is base and arms["strategy oracle"].reference
    other = arms["num experts 2"].models[1]
    assert other.options["num_experts"] == 2 and other.options["seed"] == 1
    assert other.needs["clusters"] is base[0].needs["clusters"] and other.needs["mae"] is base[0].needs["mae"]
    clusters = arms["num clusters 4"].models[0].needs["clusters"]
    assert clusters.options["num_clusters"] == 4 and clusters.needs["enc"] is base[0].needs["mae"]
    assert Path(clusters.path).name == "clusters-num-clusters-4"
    assert "num_clusters" not in arms["num clusters 4"].models[0].options


def test_the_study_measures_each_level_beside_the_base(tmp_path: Path, small_runs: Any) -> None:
    runs = f'mae = "{small_runs.mae}"\nclusters = "{small_runs.clusters}"\n'
    images = SMALL.replace("216", "256")  # what these were made of
    factors = '[factors]\nnum_experts = [2]\nrounding = ["argmax"]\nstrategy = ["per-layer", "oracle"]\n'
    (tmp_path / "a.toml").write_text(runs + images + factors)
    result = moce.study("ablate", out=tmp_path / "s", config=tmp_path / "a.toml", quiet=True, device="cpu")
    assert result["finished"] and result["cells"]["there"] == 2 * 5
    assert sorted(p.name for p in (tmp_path / "s/runs").iterdir()) == [
        "base-seed0",
        "clusters-rounding-argmax",
        "num-experts-2-seed0",
        "rounding-argmax-seed0",
    ]
    assert result["factors"][0] == {
        "name": "num_experts",
        "about": "",
        "base": {"num_experts": "4"},
        "levels": ["num experts 2"],
    }
    assert result["factors"][2]["base"] == {"strategy": "vote"}
    pairs = {pair["arm"]: pair for pair in result["differences"]["knn"]}
    assert list(pairs) == ["num experts 2", "rounding argmax", "strategy per-layer", "strategy oracle"]
    values = result["tables"]["knn"]["mean"]
    assert pairs["num experts 2"]["value"] == pytest.approx(values["num experts 2"] - values["base"])
    text = (tmp_path / "s/table.md").read_text("utf-8")
    assert "## One factor at a time" in text and "| num_experts | num experts 4 | num experts 2 |" in text
    assert moce.report([tmp_path / "s"], out=tmp_path / "p.html", quiet=True)["sections"] == ["factors"]
    page = (tmp_path / "p.html").read_text("utf-8")
    assert page.count('<svg class="forest"') == 5  # the axis and a row for each level
    assert "<bdi>strategy oracle</bdi>" in page and "There is one seed" in page
    saved = json.loads((tmp_path / "s/runs/clusters-rounding-argmax/config.json").read_text())["options"]
    made = json.loads((small_runs.clusters / "config.json").read_text())["options"]
    differ = {name for name in saved if saved[name] != made[name]} & set(ablate.CLUSTER_OPTIONS)
    assert differ == {"rounding"}  # the rest is that of the run that was named


def test_the_page_explains_dots_where_they_are_drawn() -> None:
    pair = {
        "arm": "two",
        "against": "base",
        "value": 0.1,
        "seeds": {"0": 0.1, "1": 0.1},
        "tasks": 1,
        "trainings": 2,
    }
    study = {
        "kind": "ablate",
        "out": "s",
        "corpus": "photos",
        "seeds": [0, 1],
        "tasks": ["a"],
        "finished": True,
    }
    study["factors"] = [{"name": "experts", "about": "", "base": {"num_experts": "4"}, "levels": ["two"]}]
    study["tables"] = {"knn": {"mean": {"base": 0.5}, "shared": ["a"]}}
    for pictures, said in (([0.05, 0.15], True), (None, False)):
        sections = factor_sections([{**study, "differences": {"knn": [{**pair, "pictures": pictures}]}}])
        template = environment().get_template("factors.html.j2")
        text = template.render(sections={"factors": sections})
        assert [word in text for word in ("<svg", "A dot right", "95 % intervals", CHANCE)] == [said] * 4
        assert "+10.0" in text and ("(filled dots)" in text) == said


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ('factors = ["expert"]\n', "there is no factor 'expert': .* Did you mean 'experts'"),
        ("factors = [3]\n", "'factors' must be a list of names or a table of levels"),
        ("factors = 3\n", "'factors' must be a list of names or a table of levels, not 3"),
        ("[factors]\nnum_expert = [3]\n", "'num_expert' is no option .* Did you mean 'num_experts'"),
        ("[factors]\nnum_experts = 3\n", "'num_experts' must be a list of values or of options"),
        ("[factors]\nnum_experts = [1]\n", "--num-experts must be at least 2"),
        ("[factors]\nnum_experts = [2, 2]\n", "two levels are called 'num experts 2' or nearly so"),
        ('[factors]\nstrategy = ["vot"]\n', "There is no strategy 'vot': .* Did you mean 'vote'"),
    ],
)
def test_factors_that_cannot_be_are_refused(tmp_path: Path, factors: str, said: str) -> None:
    text = SMALL + factors if factors.startswith("[") else factors + SMALL
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        moce.study("ablate", out=tmp_path / "out", config=tmp_path / "study.toml", quiet=True)
    assert not (tmp_path / "out").exists()
