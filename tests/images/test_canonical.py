"""The data sets of the field by name: splits, classes and metric of each, and what is said where files are missing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from miniatures import BUILDERS, jpeg, voc_annotation
from source_checks import check_protocol

from moce.errors import UserError
from moce.images.canonical import SETS
from moce.images.sources import Source
from moce.images.tasks import few_shots, open_task, open_tasks
from moce.images.voc import VOC_CLASSES, shown

# (metric, classes, pictures to train, to validate, to test); the miniatures hold few of each class
SPLITS = {
    "aircraft": ("mean_per_class", 100, 100, 100, 100),
    "caltech101": ("mean_per_class", 102, 30 * 102, None, 103),
    "cars": ("top1", 196, 196, None, 196),
    "cifar10": ("top1", 10, 100, None, 20),
    "cifar100": ("top1", 100, 200, None, 200),
    "dtd": ("top1", 47, 47, 47, 47),
    "flowers102": ("mean_per_class", 102, 102, 102, 204),
    "food101": ("top1", 101, 101, None, 101),
    "pets": ("mean_per_class", 37, 37, None, 37),
    "sun397": ("top1", 397, 397, None, 397),
    "imagenet1k": ("top1", 1000, 1000, None, 1000),
}


def check_labels(source: Source) -> None:
    """The grey of some pictures is their label's."""
    assert source.labels is not None
    for index in np.linspace(0, len(source) - 1, 12).astype(int).tolist():
        image, label = source.get(index)
        assert label == source.labels[index]
        assert abs(int(image[0].float().mean().round()) - label % 250) <= 2


def refused(name: str, root: Path, *words: str, download: bool = False) -> None:
    with pytest.raises(UserError) as caught:
        open_tasks(name, root, download=download)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("name", SPLITS)
def test_a_data_set_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUILDERS[name](tmp_path, monkeypatch)
    task = open_task(name, str(tmp_path))
    metric, num_classes, *lengths = SPLITS[name]
    assert (task.name, task.metric, task.num_classes) == (name, metric, num_classes)
    assert [None if s is None else len(s) for s in (task.train, task.val, task.test)] == lengths
    for source in (task.train, task.val, task.test):
        if source is not None:
            check_labels(source)
            assert source.labels is not None and len(np.unique(source.labels)) == num_classes
    check_protocol(task.test) if name != "imagenet1k" else None
    assert len({s.fingerprint() for s in (task.train, task.test)}) == 2
    assert task.train.fingerprint() == open_task(name, str(tmp_path)).train.fingerprint()


def test_voc2007_has_several_classes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUILDERS["voc2007"](tmp_path, monkeypatch)
    task = open_task("voc2007", str(tmp_path))
    assert (task.metric, task.num_classes, len(task.train), len(task.test)) == ("mAP11", 20, 21, 21)
    assert task.val is not None and len(task.val) == 21 and task.train.labels is None
    targets = task.test.targets  # type: ignore[attr-defined]
    assert targets[0].tolist() == [1, 1] + [0] * 18
    assert targets[20].tolist() == [-1 if name == "sheep" else 0 for name in VOC_CLASSES]
    assert (targets[:20] == 1).sum(axis=0).tolist() == [2] * 20
    check_protocol(task.test)
    assert task.test.name(3).endswith("JPEGImages/000203.jpg")
    with pytest.raises(UserError, match="--shots counts pictures of one class each"):
        few_shots(task, 1, 0)


def test_what_an_annotation_says(tmp_path: Path) -> None:
    def classes(objects: list[tuple[str, bool]]) -> dict[str, int]:
        (tmp_path / "a.xml").write_text(voc_annotation(objects))
        return {VOC_CLASSES[i]: int(v) for i, v in enumerate(shown(tmp_path / "a.xml")) if v}

    assert classes([("dog", False)]) == {"dog": 1}
    assert classes([("dog", True), ("cat", False)]) == {"dog": -1, "cat": 1}
    assert classes([("dog", True), ("dog", False), ("dog", True)]) == {"dog": 1}
    assert classes([]) == {}
    with pytest.raises(UserError, match=r"a\.xml is not an annotation of VOC2007"):
        classes([("wolf", False)])
    (tmp_path / "a.xml").write_text("<annotation>")
    with pytest.raises(UserError, match="is not an annotation"):
        shown(tmp_path / "a.xml")


def test_thirty_pictures_of_each_class_of_caltech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUILDERS["caltech101"](tmp_path, monkeypatch)
    with_background, without = (open_task(n, str(tmp_path)) for n in ("caltech101", "caltech101?classes=101"))
    assert "BACKGROUND_Google" in with_background.classes and "BACKGROUND_Google" not in without.classes
    assert (without.num_classes, len(without.train), len(without.test)) == (101, 30 * 101, 102)
    assert without.name == "caltech101?classes=101" and without.metric == "mean_per_class"
    for task in (with_background, without):
        names = [{s.name(i) for i in range(len(s))} for s in (task.train, task.test)]
        assert not names[0] & names[1]
        assert task.train.labels is not None and set(np.bincount(task.train.labels)) == {30}
        assert sum("accordion" in name for name in names[1]) == 2
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    (folder / "accordion" / "image_0001.jpg").unlink()
    (folder / "accordion" / "image_0002.jpg").unlink()
    refused("caltech101", tmp_path, "not unpacked completely", "accordion", "30 pictures")
    shutil.rmtree(folder / "accordion")
    refused("caltech101", tmp_path, "shows 101 classes, not 102")
    refused("caltech101?classes=100", tmp_path, "no task 'caltech101?classes=100'", "caltech101?classes=101")
    jpeg(folder / "stray.jpg", 0)
    refused("caltech101", tmp_path, "lie in no folder of a class")


def test_the_split_of_a_class_of_caltech_depends_on_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BUILDERS["caltech101"](tmp_path, monkeypatch)

    def tested() -> set[str]:
        test = open_task("caltech101", str(tmp_path)).test
        return {test.name(i) for i in range(len(test))}

    before = tested()
    kept = sorted(name for name in before if "accordion/" in name)
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    (folder / kept[0]).unlink()  # one of the two that test: the other one stays
    assert tested() == before - {kept[0]}
    numbers = {name.rpartition("_")[2] for name in before}
    assert len(numbers) > 20, "classes whose pictures have the same names are drawn apart"


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_that_is_not_there(name: str, tmp_path: Path) -> None:
    hand = name in ("cars", "imagenet1k")
    refused(
        name, tmp_path, f"needs {SETS[name].needs[0]} in {tmp_path}", "by hand" if hand else "add --download"
    )
    assert list(tmp_path.iterdir()) == []


def test_files_that_torchvision_cannot_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (
        ("cars", "stanford_cars/cars_test_annos_withlabels.mat"),
        ("sun397", "SUN397/Partitions/Testing_01.txt"),
    ):
        BUILDERS[name](tmp_path, monkeypatch)
        (tmp_path / file).unlink()
        refused(name, tmp_path, f"needs {file}", "by hand")
        refused(name, tmp_path, f"needs {file}", "by hand", download=True)


def test_a_data_set_that_is_half_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in (
        ("food101", "food-101/images/waffles/1100.jpg"),
        ("pets", "oxford-iiit-pet/images/Abyssinian_100.jpg"),
        ("sun397", "SUN397/a/abbey/sun_testing.jpg"),
        ("voc2007", "VOCdevkit/VOC2007/JPEGImages/000205.jpg"),
    ):
        BUILDERS[name](tmp_path, monkeypatch)
        (tmp_path / file).unlink()
        refused(name, tmp_path, f"The task {name} is not unpacked completely: 1 of the", f"first: {file}")
    jpeg(tmp_path / "VOCdevkit/VOC2007/JPEGImages/000205.jpg", 0)
    (tmp_path / "VOCdevkit/VOC2007/Annotations/000205.xml").unlink()
    refused("voc2007", tmp_path, "000205.xml", "unpacked completely")


def test_other_classes_than_there_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUILDERS["pets"](tmp_path, monkeypatch)
    for split in ("trainval", "test"):
        lines = (tmp_path / f"oxford-iiit-pet/annotations/{split}.txt").read_text().splitlines()
        (tmp_path / f"oxford-iiit-pet/annotations/{split}.txt").write_text("\n".join(lines[:-1]) + "\n")
    refused("pets", tmp_path, "shows 36 classes, not 37")
    (tmp_path / "imagenet1k/train/n01440764").mkdir(parents=True)
    for split in ("train/n01440764", "val"):
        jpeg(tmp_path / "imagenet1k" / split / "a.JPEG", 0)
    refused("imagenet1k", tmp_path, "test split of imagenet1k", "has no labels")


def test_download_gets_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def unpack(url: str, download_root: str, **_: object) -> None:
        calls.append(url)
        BUILDERS["dtd"](Path(download_root).parent, monkeypatch)

    monkeypatch.setattr("torchvision.datasets.dtd.download_and_extract_archive", unpack)
    for _ in range(2):
        assert len(open_tasks("dtd", tmp_path, download=True)[0].train) == 47
    assert len(calls) == 1
    refused("birds", tmp_path, "--download is for the data sets that torchvision has", download=True)

    def fail(url: str, *_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.food101.download_and_extract_archive", fail)
    refused("food101", tmp_path, "no route to host", download=True)


def test_a_folder_of_the_name_goes_before_torchvision_s_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BUILDERS["dtd"](tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)  # where the folder dtd is no task of its own
    assert open_task("dtd", str(tmp_path)).num_classes == 47
    for split in ("train", "test"):
        for label, kind in enumerate(("dotted", "wavy")):
            jpeg(tmp_path / "dtd" / split / kind / "1.jpg", label)
    assert open_task("dtd", str(tmp_path)).classes == ["dotted", "wavy"]
    BUILDERS["pets"](tmp_path, monkeypatch)
    BUILDERS["imagenet1k"](tmp_path, monkeypatch)
    assert [task.name for task in open_tasks("all", tmp_path)] == ["dtd", "pets"]
    shutil.rmtree(tmp_path / "dtd" / "test")
    shutil.rmtree(tmp_path / "dtd" / "dtd")
    refused("dtd", tmp_path, "has no test split")
