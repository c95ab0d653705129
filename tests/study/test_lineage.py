"""From which runs a model comes: what a cell keeps of it, and what of that is compared when."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from moce.config import CONFIGS
from moce.engine.files import write_json
from moce.study.lineage import other_training, stage_is_done, training_of
from moce.study.plan import Stage, corpus
from moce.verbs import resolve


def lay(stage: Stage, **inputs: str) -> None:
    """A finished run of a stage, without anything in it but what says so."""
    options = dataclasses.asdict(resolve(CONFIGS[str(stage.verb)], stage.arguments()))
    write_json(Path(stage.path) / "config.json", {"verb": stage.verb, "options": options, "inputs": inputs})
    write_json(Path(stage.path) / "result.json", {"verb": stage.verb, "fingerprint": Path(stage.path).name})


def chain(
    folder: Path, gate: str = "cluster", dense: Any = (), clusters: Any = (), experts: Any = ()
) -> Stage:
    """The stages of one run of experts, of which nothing lies there."""
    common = {"images": "data/photos", "preset": "debug", "seed": 0}
    mae = Stage(str(folder / "mae"), "pretrain", {**common, **dict(dense)})
    cut = Stage(str(folder / "clusters"), "cluster", {**common, **dict(clusters)}, {"enc": mae})
    own = {**common, "gate": gate, **dict(experts)}
    return Stage(str(folder / "moce"), "train-experts", own, {"mae": mae, "clusters": cut})


@pytest.mark.parametrize(
    ("images", "name"),
    [
        ("/disk/photos", "photos"),
        ("/disk/photos/train.parquet", "photos/train.parquet"),
        ("wds:/disk/shards/a-*.tar", "wds:shards/a-*.tar"),
        ("classes:/out/halves/A.txt:/disk/photos/train.parquet", "classes:A.txt:photos/train.parquet"),
        ("classes:/out/halves/A.txt:toyworld://all?num=3", "classes:A.txt:toyworld://all?num=3"),
        ("torchvision://CIFAR10?root=/disk&train=true", "torchvision://CIFAR10?train=true"),
        ("torchvision://CIFAR10?root=/disk", "torchvision://CIFAR10"),
        ("hf://user/set?split=train", "hf://user/set?split=train"),
    ],
)
def test_pictures_are_called_the_same_wherever_they_lie(images: str, name: str) -> None:
    assert corpus(images) == name


def test_what_is_gone_is_compared_and_nothing_else(tmp_path: Path) -> None:
    stage = chain(tmp_path)
    kept = training_of(stage)
    for one in stage.chain():
        lay(one)
    other = chain(tmp_path, experts={"epochs": 9})
    assert not other_training(kept, other)  # all lies here: what the run says counts
    (tmp_path / "mae" / "result.json").unlink()
    assert not other_training(kept, other)  # of the run that lies here nothing is compared
    for changed in ({"epochs": 9}, {"preset": "demo"}, {"init": "/disk/weights"}, {"images": "data/others"}):
        assert other_training(kept, chain(tmp_path, dense=changed)), changed
    moved = {"init": "/elsewhere/run/weights"}
    assert not other_training(
        training_of(chain(tmp_path, dense={"init": "/disk/weights"})), chain(tmp_path, dense=moved)
    )
    (tmp_path / "moce" / "result.json").unlink()
    assert other_training(kept, other)


def test_clusters_that_are_not_read_change_nothing(tmp_path: Path) -> None:
    for gate, changes in (("cluster", True), ("none", False), ("token", False)):
        kept = training_of(chain(tmp_path, gate))
        assert other_training(kept, chain(tmp_path, gate, clusters={"num_clusters": 5})) is changes


def test_a_cell_of_an_older_version_names_options_alone(tmp_path: Path) -> None:
    stage = chain(tmp_path, dense={"preset": "demo"})
    dense, cut, own = {"seed": 0}, {"seed": 0}, {"seed": 0, "gate": "cluster"}
    older = [["pretrain", dense], ["pretrain", dense], ["cluster", cut], ["train-experts", own]]
    assert not other_training(older, stage)
    assert other_training(older, chain(tmp_path, dense={"epochs": 9}))


def test_a_run_that_is_named_is_told_from_another(tmp_path: Path) -> None:
    models = []
    for name in ("one", "two"):
        named = Stage(str(tmp_path / name))
        lay(Stage(named.path, "pretrain", {"images": "x", "preset": "debug"}))
        options = {"images": "x", "preset": "debug", "gate": "none"}
        models.append(
            Stage(str(tmp_path / "moce"), "train-experts", options, {"mae": named, "clusters": named})
        )
    assert training_of(models[0])[0] == [None, "one"]
    assert other_training(training_of(models[0]), models[1])
    assert not other_training(training_of(models[0]), models[0])


def test_other_initial_weights_are_another_run(tmp_path: Path) -> None:
    stage = chain(tmp_path).needs["mae"]
    lay(stage)
    assert stage_is_done(stage)
    (tmp_path / "weights").mkdir()
    assert not stage_is_done(chain(tmp_path, dense={"init": str(tmp_path / "weights")}).needs["mae"])
    begun = chain(tmp_path / "other", dense={"init": "/gone/weights"}).needs["mae"]
    lay(begun)
    assert stage_is_done(begun) and not stage_is_done(chain(tmp_path / "other").needs["mae"])
    # Spelled in another way: the verb looks whether these are others, where they are.
    assert not stage_is_done(
        chain(tmp_path / "other", dense={"init": str(tmp_path / "weights")}).needs["mae"]
    )
    assert stage_is_done(chain(tmp_path / "other", dense={"init": "/gone/too"}).needs["mae"])
