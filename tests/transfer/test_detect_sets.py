"""Sets in COCO's format: where they lie, what is refused, masks in three ways of writing, jitter."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_coco import draw_set, read, runs, write
from faster_coco_eval.core import mask as masks
from PIL import Image

from moce.errors import UserError
from moce.images.sampler import Order
from moce.images.sources import Source
from moce.transfer.detect.annotations import run_lengths
from moce.transfer.detect.cocoset import CocoTask, mask_of, open_coco
from moce.transfer.detect.jitter import JitteredBatches, boxes_of, frame, scaled_size
from moce.transfer.detect.protocol import told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_set(tmp_path / "shapes", num_train=3, num_val=2)


def opened(folder: Path) -> CocoTask:
    return open_coco(str(folder), None)


def changed(folder: Path, split: str = "train", annotation: int = 0, **changes: Any) -> None:
    content = read(folder, split)
    content["annotations"][annotation] |= changes
    write(folder, split, content)


# Where it lies


def test_a_set_is_a_source_with_boxes_and_masks(folder: Path) -> None:
    task = opened(folder)
    assert isinstance(task.train, Source)
    assert (task.name, len(task.train), len(task.test), task.tested_on) == ("shapes", 3, 2, "val")
    assert task.train.classes == ["square", "disc"]
    found, labels = task.train.instances(0)
    assert labels.tolist() == [2, 1]  # a disc and a square
    boxes = [a["bbox"] for a in read(folder)["annotations"][:2]]
    for own, (left, top, width, height) in zip(boxes_of(found).tolist(), boxes):
        assert own == pytest.approx([left, top, left + width, top + height], abs=1)


def test_a_zip_and_coco_s_own_layout_hold_the_same(folder: Path, tmp_path: Path) -> None:
    zipped, original = tmp_path / "zipped", tmp_path / "original"
    for new in (zipped, original / "annotations"):
        new.mkdir(parents=True)
    with zipfile.ZipFile(zipped / "images.zip", "w") as archive:
        for path in (folder / "images").rglob("*.jpg"):
            archive.write(path, path.relative_to(folder / "images"))
    for split in ("train", "val"):
        shutil.copy(folder / f"instances_{split}.json", zipped)
        content = read(folder, split)
        for image in content["images"]:
            image["file_name"] = Path(image["file_name"]).name
        (original / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        shutil.copytree(folder / "images" / split, original / f"{split}2017")
    plain = opened(folder)
    for other in (opened(zipped), opened(original)):
        for index in range(3):
            assert torch.equal(other.train.get(index)[0], plain.train.get(index)[0])
            assert torch.equal(other.train.instances(index)[0], plain.train.instances(index)[0])
    assert opened(zipped).train.fingerprint() == plain.train.fingerprint()


def test_a_set_is_found_by_its_name(folder: Path) -> None:
    assert open_coco("shapes", str(folder.parent)).name == "shapes"
    with pytest.raises(UserError, match="no set 'shape' in .*there are shapes.*Did you mean 'shapes'"):
        open_coco("shape", str(folder.parent))
    with pytest.raises(UserError, match="no folder 'nowhere'"):
        open_coco("nowhere", None)


def test_a_test_split_is_taken_before_val(folder: Path) -> None:
    shutil.copy(folder / "instances_val.json", folder / "instances_test.json")
    assert opened(folder).tested_on == "test"


def test_both_splits_are_of_the_latest_year_that_has_both(folder: Path) -> None:
    def copied(split: str, year: str, place: Path = folder) -> None:
        shutil.copy(folder / f"instances_{split}.json", place / f"instances_{split}{year}.json")

    (folder / "annotations").mkdir()
    for split, year in (("train", "2014"), ("val", "2014"), ("train", "2017")):
        copied(split, year, folder / "annotations")

    def names() -> list[str]:
        task = opened(folder)
        return [Path(task.train.uri).name, Path(task.test.uri).name]

    assert names() == ["instances_train2014.json", "instances_val2014.json"]  # and not train2017 with val2014
    copied("val", "2017")  # beside the folder that its train lies in
    assert names() == ["instances_train2017.json", "instances_val2017.json"]
    for name in ("instances_train.json", "instances_val.json", "instances_val2017.json"):
        (folder / name).unlink()
    (folder / "annotations" / "instances_train2014.json").unlink()
    words = r"no year with both a train and a val .*there is instances_train2017.json, instances_val2014.json"
    with pytest.raises(UserError, match=words):
        opened(folder)


def test_a_file_that_is_there_twice_is_refused(folder: Path) -> None:
    (folder / "annotations").mkdir()
    shutil.copy(folder / "instances_val.json", folder / "annotations")
    with pytest.raises(UserError, match="has instances_val.json twice, in it and in its annotations/"):
        opened(folder)


def test_pictures_that_are_learned_from_are_not_tested(folder: Path) -> None:
    train, val = read(folder), read(folder, "val")
    opened(folder)  # ids of both splits are the same numbers, which says nothing
    write(folder, "val", train)
    with pytest.raises(
        UserError, match=r"3 of the 3 pictures of .*_val.json are also in .*_train.json .*000.jpg"
    ):
        opened(folder)
    copy = {**val["images"][0], "file_name": "val/copy.jpg", "id": train["images"][2]["id"]}
    shutil.copy(folder / "images" / "train" / "002.jpg", folder / "images" / "val" / "copy.jpg")
    objects = [{**val["annotations"][0], "image_id": copy["id"]}]
    write(folder, "val", {**val, "images": [*val["images"], copy], "annotations": objects})
    with pytest.raises(
        UserError, match=r"1 of the 3 pictures .*first: val/copy.jpg"
    ):  # another name, the same id
        opened(folder)
    for split in ("train/002.jpg", "val/copy.jpg"):
        (folder / "images" / split).write_bytes(b"no picture")
    opened(folder)  # which the survey of broken pictures tells


# Masks


def test_polygons_and_both_kinds_of_run_lengths_are_the_same_mask() -> None:
    drawn = np.zeros((20, 30), np.uint8)
    drawn[5:12, 8:19] = 1
    packed = masks.encode(np.asfortranarray(drawn))
    text = packed["counts"].decode() if isinstance(packed["counts"], bytes) else packed["counts"]
    polygon = [[8, 5, 19, 5, 19, 12, 8, 12]]
    for written in (runs(drawn), {"size": [20, 30], "counts": text}, polygon):
        assert np.array_equal(mask_of(written, 20, 30), drawn)
    assert run_lengths(text) == runs(drawn)["counts"]


def test_run_lengths_are_read_as_the_library_writes_them() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        drawn = (
            random.random((random.integers(1, 90), random.integers(1, 90))) < 0.5 * random.random()
        ).astype(np.uint8)
        text = masks.encode(np.asfortranarray(drawn))["counts"]
        text = text.decode() if isinstance(text, bytes) else text
        found = run_lengths(text)
        assert found is not None and sum(found) == drawn.size
        assert found == runs(drawn)["counts"] or found == [*runs(drawn)["counts"], 0]


def test_boxes_without_an_area_and_crowds_are_not_learned_from_but_stay_in_the_test(folder: Path) -> None:
    for split in ("train", "val"):
        changed(folder, split, 0, bbox=[5, 5, 0, 8])
        changed(folder, split, 2, iscrowd=1)
    task = opened(folder)
    assert task.train.split.num_flat == 1
    assert told(task, [0, 1, 2], [[], []]) == (
        "shapes: objects to learn from in 3 of 3 pictures of instances_train.json; 1 box has no area and is not "
        "learned from"
    )
    assert [len(objects) for objects in task.train.split.usable] == [1, 1, 2]
    truth = task.test.ground_truth([0, 1])["annotations"]
    assert len(truth) == 4 and [a["id"] for a in truth] == [1, 2, 3, 4]
    assert [a["iscrowd"] for a in truth] == [0, 0, 1, 0]


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_id": 99}, "annotation 1 is of image 99, which the file does not list"),
        ({"category_id": 4}, "annotation 1 has the category 4; the file lists 3, 7"),
        ({"bbox": [60, 10, 20, 20]}, "less than half lies in its picture of 64 x 56"),
        ({"bbox": [-500, -500, 20, 20]}, "less than half lies"),
        (
            {"bbox": [40, 10, -30, 20]},
            r"the box \[40, 10, -30, 20\], with a width of -30: write left, top, width, height, .* x2 - x1",
        ),
        ({"bbox": [4, 10, 30, -2.5]}, "with a height of -2.5: write left, top, width, height"),
        ({"bbox": [1, 2, 3]}, "needs a bbox of four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "needs a bbox of four numbers"),
        (
            {"segmentation": {"size": [64, 56], "counts": [3584]}},
            r"a mask of \[64, 56\]; its picture is \[56, 64\]",
        ),
        ({"segmentation": {"size": [56, 64], "counts": [7]}}, "a mask of 7 pixels; its picture has 3584"),
        ({"segmentation": {"size": [56, 64], "counts": "zzz"}}, "run lengths that are no whole numbers"),
        ({"segmentation": {"size": [56, 64], "counts": [-1, 3585]}}, "run lengths that are no whole numbers"),
        ({"segmentation": []}, "has no mask"),
        ({"segmentation": [[1, 2, 3, 4]]}, "has no mask"),
        ({"segmentation": None}, "has no mask"),
    ],
)
def test_annotations_that_cannot_be_used(folder: Path, changes: dict[str, Any], words: str) -> None:
    changed(folder, **changes)
    with pytest.raises(UserError, match=words):
        opened(folder)


def test_a_box_that_reaches_out_a_little_is_taken(folder: Path) -> None:
    changed(folder, bbox=[-2, -2, 20, 20])
    assert len(opened(folder).train.split.usable[0]) == 2


def test_splits_files_and_pictures_that_are_missing(folder: Path) -> None:
    (folder / "images" / "train" / "001.jpg").unlink()
    with pytest.raises(
        UserError, match=r"1 of the 3 pictures of .*train.json are not in .*first: train/001.jpg"
    ):
        opened(folder)
    shutil.rmtree(folder / "images" / "train")
    with pytest.raises(UserError, match="None of the 3 pictures"):
        opened(folder)
    (folder / "instances_val.json").unlink()
    with pytest.raises(
        UserError, match=r"no val or test split: it needs instances_val.json.*there is instances_train.json"
    ):
        opened(folder)
    (folder / "instances_train.json").write_text("{")
    with pytest.raises(UserError, match="no val or test split"):
        opened(folder)


def test_files_of_another_kind(folder: Path, tmp_path: Path) -> None:
    content = read(folder)
    for key, wrong, words in [
        ("images", None, "no list 'images'"),
        ("images", [], "lists no picture"),
        ("images", [content["images"][0]] * 2, "the image id 10 twice"),
        ("images", [{"id": 10}], "image 10 needs a file_name"),
        (
            "images",
            [{**content["images"][0], "width": "64"}],
            "image 10 has the width '64' as a text: write it as a number, without quotes",
        ),
        ("images", [{**content["images"][0], "height": 56.0}], "whole numbers above 0"),
        ("images", [{**i, "file_name": "../../up.jpg"} for i in content["images"]], "leads out of the set"),
        ("categories", [{"name": "square"}], "without a whole number as its id"),
        ("annotations", [], "no object to learn from"),
        ("annotations", ["square"], "the annotation square, which is no entry"),
        ("annotations", [{"id": 5, "image_id": [1]}], r"annotation 5 is of image \[1\]"),
    ]:
        write(folder, "train", {**content, key: wrong})
        with pytest.raises(UserError, match=words):
            opened(folder)
    write(folder, "train", content)
    other = read(folder, "val")
    write(folder, "val", {**other, "categories": [*other["categories"], {"id": 9, "name": "cross"}]})
    with pytest.raises(UserError, match="the category 9 'cross', which .* lacks"):
        opened(folder)
    write(folder, "val", {**other, "annotations": []})
    with pytest.raises(UserError, match="nothing to compare with"):
        opened(folder)
    (folder / "instances_val.json").write_text('{"images": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        opened(folder)


def test_a_picture_of_another_size_and_a_damaged_zip(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(folder / "images" / "train" / "000.jpg")
    with pytest.raises(UserError, match="has 30 x 20 pixels and .* says 64 x 56"):
        opened(folder).train.get(0)
    shutil.rmtree(folder / "images")
    (folder / "images.zip").write_bytes(b"PK no zip")
    with pytest.raises(UserError, match="not a zip file or is cut off"):
        opened(folder)


# Jitter


def bright(image: torch.Tensor) -> torch.Tensor:
    """Where the shapes are: the ground is dark in at least two channels and the padding grey."""
    return (image.float().mean(dim=0) > 140).to(torch.uint8)


def test_masks_stay_on_their_shapes(folder: Path) -> None:
    source = opened(folder).train
    batches = JitteredBatches(source, Order(3, 3, seed=1), 64, (0.6, 1.6), (0.3, 0.3, 0.3), seed=1)
    sizes = set()
    for step in range(6):
        batch = batches[step]
        assert batch.images.shape == (3, 3, 64, 64)
        for image, size, target in zip(batch.images, batch.sizes, batch.targets):
            size = tuple(size.tolist())
            sizes.add(size)
            there = target["masks"].any(dim=0).byte() if len(target["masks"]) else torch.zeros(64, 64).byte()
            assert (bright(image) != there).float().mean() < 0.06  # edges, at most
            assert not there[size[0] :].any() and not there[:, size[1] :].any()
            if len(target["masks"]):
                boxes = boxes_of(target["masks"])
                assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(sizes) > 8
    again = batches[3]
    assert torch.equal(again.images, batches[3].images) and torch.equal(again.sizes, batches[3].sizes)


def test_for_testing_the_longer_side_fills_the_square() -> None:
    assert scaled_size(100, 200, 64) == (32, 64)
    picture, nothing = (
        torch.full((3, 100, 200), 255, dtype=torch.uint8),
        torch.zeros(0, 100, 200, dtype=torch.uint8),
    )
    framed = frame(picture, nothing, torch.zeros(0, dtype=torch.int64), 64, (0.5, 0.5, 0.5))
    assert framed.size == (32, 64)
    assert (framed.image[:, :32] == 255).all() and (framed.image[:, 32:] == 128).all()
    assert framed.masks.shape == (0, 64, 64)


def test_objects_of_which_nothing_is_left_are_gone() -> None:
    picture = torch.zeros(3, 100, 100, dtype=torch.uint8)
    masks_here = torch.zeros(2, 100, 100, dtype=torch.uint8)
    masks_here[0, 90:, 90:] = 1
    masks_here[1, 10:30, 10:20] = 1
    framed = frame(picture, masks_here, torch.tensor([1, 2]), 50, (0.5,) * 3, scale=2.0, mirror=True)
    assert framed.labels.tolist() == [2]
    assert boxes_of(framed.masks).tolist() == [[30, 10, 40, 30]]
