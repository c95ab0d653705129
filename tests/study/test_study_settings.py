"""The file of a study: what it may hold, and what is refused before anything is made of it."""

from pathlib import Path

import pytest

import moce
from moce.config import StudyConfig
from moce.errors import UserError
from moce.study.arms import arms_of
from moce.study.cells import Cells
from moce.study.compare import SMALL, plan_of
from moce.study.plan import Stage
from moce.study.settings import read_settings
from moce.study.starts import Start, Starts
from moce.verbs import resolve

ARM = '[[arms]]\nname = "MoCE"\noptions = { gate = "cluster" }\n'
GIVEN = 'images = "x"\ntasks = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("images = ", "study.toml cannot be read as TOML"),
        ('image = "x"', "study.toml: there is no key 'image'. Did you mean 'images'"),
        ('images = "x"', "study.toml: 'tasks' must be given"),
        (GIVEN + "seeds = 3", "'seeds' must be a list of whole numbers, not 3"),
        (GIVEN + "seeds = [0, -1]", "seeds must be at least 0, not -1"),
        (GIVEN + "[experts]\ndevices = 2", r"\[experts\]: a study runs in one process; leave 'devices' out"),
        (GIVEN + ARM.replace("}", ", top_k = 2 }"), "with top_k 2 no sub-model of the dense size"),
        (
            GIVEN + ARM.replace('"cluster"', '"token", shuffle_clusters = true'),
            r"\[arms: MoCE\]: --shuffle-clusters is for --gate cluster, not token",
        ),
        (
            GIVEN + 'seeds = [0, 1]\nmae = ["a"]',
            r"'mae' lists 1 runs, 'seeds' is \[0, 1\]; give the file as many different seeds as runs",
        ),
        (
            GIVEN + 'mae = "a"\nmae_per_seed = true',
            "'mae' names one run for all seeds, 'mae_per_seed' has a dense model made for each.* leave one",
        ),
        (
            GIVEN + 'clusters = "a"\nmae_per_seed = true',
            "with a dense model for each seed each has its own clusters; list those that lie there",
        ),
        (GIVEN + 'seeds = [0]\nmae = ["nowhere"]', "There is no folder nowhere"),
        (GIVEN + 'seeds = [0, 0]\nmae = ["a", "b"]', r"'mae' lists 2 runs, 'seeds' is \[0, 0\]"),
        (GIVEN + 'mae = ["a", "b"]', r"'mae' lists 2 runs, 'seeds' is \[\]"),
        (GIVEN + 'mae = ["a"]\nmae_per_seed = true', "'mae' names runs, 'mae_per_seed' has"),
        (
            GIVEN + "mae_per_seed = true\nclusters_per_seed = false",
            "leave 'clusters' and 'clusters_per_seed' out",
        ),
        (
            GIVEN + 'mae_per_seed = true\nseeds = [0]\nclusters = ["a"]',
            "made that they are not of; list these in 'mae'",
        ),
        (GIVEN + "mae = 3", "'mae' must be a text or a list of texts, not 3"),
        (GIVEN + "mae_per_seed = 1", "'mae_per_seed' must be true or false, not 1"),
        (GIVEN + "clusters_per_seed = 1", "'clusters_per_seed' must be true or false, not 1"),
        (GIVEN + "[experts]\ngats = 3", r"\[experts\]: There is no option 'gats' here. Did you mean 'gate'"),
        (GIVEN + '[experts]\nout = "y"', r"\[experts\]: 'out' is said by the study itself"),
        (GIVEN + '[experts]\nmodel = "y"', r"\[experts\]: 'model' is said by the study itself"),
        (GIVEN + "[experts]\nseed = 3", r"\[experts\]: 'seed' is said by the study itself"),
        (GIVEN + '[[arms]]\nname = "a"\noptions = { images = "y" }', "'images' is said by the study itself"),
        (GIVEN + 'protocols = ["knn", "liner"]', "there is no protocol 'liner'.* Did you mean 'linear'"),
        (GIVEN + 'protocols = ["knn,linear"]', "there is no protocol 'knn,linear'"),
        (GIVEN + ARM + 'strategy = "cluster:abc"', "--strategy cluster:abc: name a cluster"),
        (
            GIVEN
            + '[experts]\ngate = "none"\n[[arms]]\nname = "a"\noptions = { epochs = 1 }\nstrategy = "vote"',
            "'vote' needs sub-models to choose from",
        ),
        ('images = "x"\ntasks = ["all", "a"]', "'all' stands for every task of data_root; give it alone"),
        (GIVEN + "[cluster]\nnum_clusters = 1", r"\[cluster\]: --num-clusters must be at least 2"),
        (
            GIVEN + "[evaluate.lineer]\nk = [1]",
            r"\[evaluate.lineer\] is for none of .* Did you mean 'linear'",
        ),
        (GIVEN + '[evaluate]\nstrategy = "vote"', r"\[evaluate\]: 'strategy' is said by the study itself"),
        (GIVEN + "[[arms]]\noptions = {}", r"\[\[arms\]\] 1: 'name' must be given"),
        (GIVEN + ARM + ARM, r"\[\[arms\]\] 2: another arm is called 'MoCE'"),
        (GIVEN + ARM + 'strategies = "vote"', "there is no key 'strategies'. Did you mean 'strategy'"),
        (GIVEN + ARM + 'strategy = "orakle"', "There is no strategy 'orakle'.* Did you mean 'oracle'"),
        (GIVEN + ARM + 'model = "timm:x"', "'model' is evaluated as it is"),
        (GIVEN + ARM + 'protocols = ["kn"]', "'kn' is none of the study's protocols. Did you mean 'knn'"),
        (GIVEN + '[[arms]]\nname = "MAE"\nstrategy = "vote"', "'vote' needs sub-models to choose from"),
        (GIVEN + 'baseline = "MAE+"\n', r"baseline 'MAE\+' is none of the arms. Did you mean 'MAE"),
        (GIVEN + 'method = "MAE*"\n', r"method and baseline are both 'MAE\*'"),
        (
            GIVEN + 'protocols = ["linear", "finetune"]\nlr_from = "MoCE"\n' + ARM + 'protocols = ["linear"]',
            "lr_from 'MoCE' has other protocols and is never fine-tuned, .*; name an arm that is",
        ),
        (
            GIVEN + 'protocols = "finetune"\nlr_from = "MoCE oracle"\n',
            "lr_from 'MoCE oracle' is a reference and is never fine-tuned",
        ),
        (GIVEN + 'mae = "nowhere"\n', "There is no folder nowhere"),
        ('images = "x"\ntasks = ["p/a", "q/a"]', "two tasks are called 'a'"),
        ('images = "x"\ntasks = "all"', "--task all needs --data-root"),
    ],
)
def test_a_file_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    given = {"kind": "compare", "out": tmp_path / "out", "config": tmp_path / "study.toml"}
    with pytest.raises(UserError, match=words):
        moce.study(**given)
    assert not (tmp_path / "out").exists()


def test_the_file_in_the_documentation_can_be(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (tmp_path / "study.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    read = read_settings(str(tmp_path / "study.toml"), SMALL)
    start = Start(Stage("mae"), Stage("clusters"))
    arms = arms_of(read, tmp_path, Starts({0: start, 1: start}, [start.dense], shared=True))
    assert [arm.name for arm in arms] == ["MAE", "MAE*", "MoCE oracle", "data selection", "MoCE", "ViT-B"]
    assert arms[3].selected_by is arms[4] and arms[4].models[0].path == arms[2].models[0].path
    assert arms[1].models[1].arguments() == {
        "mae": "mae", "clusters": "clusters", "images": read.images, "seed": 1, "preset": "tiny-imagenet",
        "epochs": 5, "gate": "none", "out": str(tmp_path / "runs" / "mae-star-seed1"),
    }  # fmt: skip
    assert read.evaluate == {"knn": {}, "linear": {}, "finetune": {"epochs": 20}}


def test_the_dense_model_may_be_of_any_architecture(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(GIVEN + '[pretrain]\nmodel = "test_vit"')
    assert read_settings(str(tmp_path / "study.toml"), SMALL).options("pretrain")["model"] == "test_vit"


def test_a_file_or_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "studi.toml").write_text("")
    with pytest.raises(
        UserError, match="There is no file .*study.toml .--config.. Did you mean 'studi.toml'"
    ):
        moce.study("compare", out=tmp_path / "out", config=tmp_path / "study.toml")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        moce.study("compare", out=tmp_path)
    with pytest.raises(UserError, match="is a file; name a folder"):
        moce.study("compare", out=tmp_path / "studi.toml")
    with pytest.raises(UserError, match="never overwritten"):
        moce.study("compare", out=tmp_path / "out", overwrite=True)


def test_the_default_is_every_control_with_runs_in_common() -> None:
    config = resolve(StudyConfig, {"kind": "compare", "out": "o", "seeds": "0,1"})
    plan = plan_of(config, read_settings(None, SMALL))
    names = ["mae", "clusters"] + [
        f"{arm}-seed{seed}"
        for seed in (0, 1)
        for arm in ("mae-star", "tokenmoe", "sdr", "random-clusters", "moce")
    ]
    assert sorted(Path(s.path).name for s in Cells(plan).stages()) == sorted(names)
    probed = [c for c in plan.cells() if c.arm.name == "MAE"]
    assert {c.seed for c in probed} == {0}  # another seed would give the same number
    tuned = plan_of(config, read_settings(None, {**SMALL, "protocols": ["linear", "finetune"]}))
    assert {c.arm.name for c in tuned.cells() if c.protocol == "finetune"} == {
        "MAE", "MAE*", "TokenMoE", "SDR", "random clusters", "MoCE",
    }  # fmt: skip


def test_runs_are_called_after_the_method_and_not_after_a_reference_to_it(tmp_path: Path) -> None:
    options = 'options = { gate = "cluster" }\n'
    random = f'[[arms]]\nname = "MoCE random"\nstrategy = "random"\n{options}'
    for text in (ARM + random, random + ARM, random):
        (tmp_path / "study.toml").write_text(GIVEN + text)
        read = read_settings(str(tmp_path / "study.toml"), SMALL)
        start = Start(Stage("m"), Stage("c"))
        arms = arms_of(read, tmp_path, Starts({0: start}, [start.dense], shared=True))
        name = "moce-seed0" if ARM in text else "moce-random-seed0"
        assert {Path(arm.models[0].path).name for arm in arms} == {name}
