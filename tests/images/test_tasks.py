"""Tasks: real folders and parquet files, validation splits that every method shares, and what is refused."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moce.errors import UserError
from moce.images.tasks import few_shots, open_task, open_tasks, split


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (24, 24), (shade % 256, 90, 200))


def folder_split(root: Path, name: str, classes: dict[str, int]) -> None:
    for label, count in classes.items():
        (root / name / label).mkdir(parents=True)
        for number in range(count):
            picture(number).save(root / name / label / f"{number}.png")


def parquet_split(root: Path, name: str, labels: list[int], classes: list[str] | None) -> None:
    root.mkdir(exist_ok=True)
    rows = []
    for label in labels:
        data = io.BytesIO()
        picture(label * 40).save(data, "PNG")
        rows.append({"bytes": data.getvalue(), "path": None})
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, image), "label": pa.array(labels, pa.int64())})
    if classes:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, root / f"{name}.parquet")


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    folder_split(tmp_path, "train", {"ant": 5, "bee": 4, "cat": 3})
    folder_split(tmp_path, "test", {"bee": 2, "cat": 1})
    task = open_task(str(tmp_path), None)
    assert task.classes == ["ant", "bee", "cat"] and task.num_classes == 3 and task.val is None
    assert task.test.labels.tolist() == [1, 1, 2], "classes are matched by name, not by number"
    assert task.test.get(2)[1] == 2 and len(task.test) == 3


def test_a_validation_split_is_used_where_there_is_one(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        folder_split(tmp_path, name, {"ant": 2, "bee": 2})
    assert len(open_task(str(tmp_path), None).val) == 4


def test_parquet_with_and_without_names(tmp_path: Path) -> None:
    for folder, classes in (("named", ["ant", "bee"]), ("numbered", None)):
        parquet_split(tmp_path / folder, "train", [0, 0, 1, 1], classes)
        parquet_split(tmp_path / folder, "test", [1, 0], classes)
    named, numbered = (open_task(name, str(tmp_path)) for name in ("named", "numbered"))
    assert named.classes == ["ant", "bee"] and numbered.classes == ["0", "1"]
    assert named.test.labels.tolist() == [1, 0]


def test_all_takes_every_task_below_the_root(tmp_path: Path) -> None:
    for name in ("one", "two"):
        parquet_split(tmp_path / name, "train", [0, 1], None)
        parquet_split(tmp_path / name, "test", [0], None)
    parquet_split(tmp_path / "only-train", "train", [0, 1], None)
    assert [task.name for task in open_tasks("all", tmp_path)] == ["one", "two"]
    for name in ("cifar10", "pets37"):
        shutil.copytree(tmp_path / "one", tmp_path / name)
    suite = open_tasks("all", tmp_path)
    assert [(t.name, t.metric) for t in suite] == [("cifar10", "top1"), ("pets37", "mean_per_class")]


def test_the_validation_split_is_a_fifth_of_every_class_and_always_the_same() -> None:
    train = open_task("toyworld://digits?num=90&size=16", None).train
    fit, val = split(train)
    assert sorted([*fit, *val]) == list(range(90))
    assert np.bincount(train.labels[val]).tolist() == [3] * 6
    again = split(open_task("toyworld://digits?num=90&size=16", None).train)
    assert np.array_equal(val, again[1])


def test_kinds_of_the_toy_world() -> None:
    task = open_tasks("letters", "toyworld://?num=30&size=16")[0]
    assert task.name == "letters" and task.num_classes == 6 and len(task.train) == len(task.test) == 30
    assert task.train.fingerprint() != task.test.fingerprint()
    assert len(open_tasks("all", "toyworld://?num=6&size=16")) >= 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toyworld://digitts", "Did you mean 'digits'"),
        ("nowhere", "There is no folder 'nowhere'"),
        ("aircraft", "or --data-root and its name there"),
        ("all", "needs --data-root"),
    ],
)
def test_tasks_that_are_not_there(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_tasks(name)


def test_a_name_that_is_not_below_the_root(tmp_path: Path) -> None:
    parquet_split(tmp_path / "flowers", "train", [0, 1], None)
    parquet_split(tmp_path / "flowers", "test", [0], None)
    with pytest.raises(UserError, match="Did you mean 'flowers'"):
        open_tasks("flower", tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        open_tasks("flowers", tmp_path / "elsewhere")


def test_splits_that_cannot_be_used(tmp_path: Path) -> None:
    folder_split(tmp_path / "no-test", "train", {"ant": 2})
    with pytest.raises(UserError, match="has no test split"):
        open_task(str(tmp_path / "no-test"), None)
    folder_split(tmp_path / "new-class", "train", {"ant": 2})
    folder_split(tmp_path / "new-class", "test", {"ant": 1, "wasp": 1})
    with pytest.raises(UserError, match="'wasp', which the train split lacks"):
        open_task(str(tmp_path / "new-class"), None)
    for name in ("train", "test"):
        (tmp_path / "bare" / name).mkdir(parents=True)
        picture(3).save(tmp_path / "bare" / name / "a.png")
    with pytest.raises(UserError, match="has no labels"):
        open_task(str(tmp_path / "bare"), None)


def test_a_class_that_has_a_name_but_no_training_picture(tmp_path: Path) -> None:
    parquet_split(tmp_path, "train", [0, 0, 1, 1], ["ant", "bee", "wasp"])
    parquet_split(tmp_path, "test", [0, 2], ["ant", "bee", "wasp"])
    with pytest.raises(UserError, match="'wasp', which the train split lacks"):
        open_task(str(tmp_path), None)


def test_classes_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    parquet_split(tmp_path, "train", [0, 0, 1, 1], ["ant", "bee"])
    parquet_split(tmp_path, "test", [0, 0, 1], ["bee", "ant"])
    test = open_task(str(tmp_path), None).test
    assert test.labels.tolist() == [1, 1, 0] and test.classes == ["ant", "bee"]
    assert test.get(0)[1] == 1 and test.name(2) and len(test.fingerprint()) == 16


def test_a_validation_split_needs_two_pictures_of_a_class(tmp_path: Path) -> None:
    folder_split(tmp_path, "train", {"ant": 1, "bee": 2})
    folder_split(tmp_path, "test", {"ant": 1})
    fit, val = split(open_task(str(tmp_path), None).train)
    assert fit.tolist() in ([0, 1], [0, 2]) and len(val) == 1
    shutil.rmtree(tmp_path / "train" / "bee")
    with pytest.raises(UserError, match="No class of .*train' has two pictures"):
        split(open_task(str(tmp_path), None).train)


def test_an_empty_validation_folder_is_named(tmp_path: Path) -> None:
    for name in ("train", "test"):
        folder_split(tmp_path, name, {"ant": 2})
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="val' is empty"):
        open_task(str(tmp_path), None)


def test_a_toy_task_is_both_splits() -> None:
    with pytest.raises(UserError, match="leave 'split=' out"):
        open_task("toyworld://digits?split=test", None)


def test_shots_are_drawn_by_the_seed_and_fewer_are_among_more(tmp_path: Path) -> None:
    folder_split(tmp_path, "train", {"ant": 9, "bee": 7})
    folder_split(tmp_path, "val", {"ant": 1, "bee": 1})
    folder_split(tmp_path, "test", {"ant": 1, "bee": 1})
    task = open_task(str(tmp_path), None)
    one, five, again, other = (few_shots(task, num, seed) for num, seed in ((1, 0), (5, 0), (5, 0), (5, 1)))
    names = [{t.train.name(i) for i in range(len(t.train))} for t in (one, five, again, other)]
    assert names[0] < names[1] == names[2] != names[3]
    assert five.train.labels.tolist() == [0] * 5 + [1] * 5 and five.train.get(7)[1] == 1
    assert (five.shots, five.val, len(five.test)) == (5, None, 2) and task.shots is None
    assert five.train.fingerprint() != other.train.fingerprint() != task.train.fingerprint()
    with pytest.raises(UserError, match="--shots 8 is more than the 7 pictures of the class 'bee'"):
        few_shots(task, 8, 0)
    for name in sorted(names[0]):
        (tmp_path / "train" / name).write_bytes(b"no picture")
    replaced = few_shots(task, 6, 0)
    assert not names[0] & {replaced.train.name(i) for i in range(len(replaced.train))}


def test_a_data_set_of_the_hub_has_its_splits_by_name(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for name, labels in (("train", [0, 0, 1, 1]), ("validation", [1, 0]), ("test", [1, 1, 0])):
        parquet_split(tmp_path / "birds", name, labels, ["ant", "bee"])
    uri = f"hf://{tmp_path / 'birds'}"
    task = open_task(uri, None)
    assert task.classes == ["ant", "bee"] and task.test.labels.tolist() == [1, 1, 0] and task.val is None
    assert len(open_task(f"{uri}?val=validation", None).val) == 2
    assert open_task(f"{uri}?test=validation", None).test.labels.tolist() == [1, 0]
    with pytest.raises(UserError, match="not split="):
        open_task(f"{uri}?split=train", None)
    with pytest.raises(UserError, match="cannot be opened"):
        open_task(f"{uri}?test=exam", None)


@pytest.mark.packs
def test_the_small_suite(packs: Path) -> None:
    tasks = open_tasks("all", packs)
    assert len(tasks) == 11 and all(len(t.classes) >= 8 and len(t.test) for t in tasks)
    per_class = sorted(t.name for t in tasks if t.metric == "mean_per_class")
    assert per_class == ["caltech101", "flowers17", "pets37"]
