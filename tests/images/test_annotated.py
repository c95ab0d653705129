"""Sets of another kind than the protocol's are sent to the protocol that takes them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moce.errors import UserError
from moce.images.annotated import annotations_of
from moce.images.tasks import open_tasks
from moce.transfer.detect.cocoset import open_coco
from moce.transfer.segment.maskset import open_mask_task


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A set of each kind and layout, without a picture that could be read."""
    file = {"bytes": b"-", "path": "a.png"}
    for name, column, value in (
        ("masks", "mask", file),
        ("notes", "annotation", b"-"),
        ("classes", "label", 1),
    ):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            pq.write_table(pa.table({"image": [file], column: [value]}), tmp_path / name / f"{split}.parquet")
    for part in ("images/training", "annotations/training"):
        (tmp_path / "ade" / part).mkdir(parents=True)
    for name in ("coco/annotations/instances_train2017.json", "small/instances_val.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps({}))
    for split in ("train", "test"):
        (tmp_path / "folders" / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "folders" / split / "cat" / "a.png")
    return tmp_path


def test_what_a_set_is_annotated_with(sets: Path) -> None:
    kinds = {path.name: annotations_of(path) for path in sets.iterdir()}
    assert kinds == {
        "masks": ["masks"],
        "notes": ["masks"],
        "ade": ["masks"],
        "classes": ["classes"],
        "folders": ["classes"],
        "coco": ["boxes"],
        "small": ["boxes"],
    }
    assert annotations_of(sets / "masks" / "test.parquet") == ["masks"]
    (sets / "cut.parquet").write_bytes(b"PAR1")
    for nothing in ("cut.parquet", "nowhere"):
        assert annotations_of(sets / nothing) == []


@pytest.mark.parametrize(
    "name", ["masks", "masks/train.parquet", "notes", "ade", "classes", "folders", "coco", "small"]
)
def test_the_protocol_that_takes_a_set_is_named(sets: Path, name: str) -> None:
    path = str(sets / name)
    opened = {
        "classes": lambda: open_tasks(path),
        "boxes": lambda: open_coco(path, None),
        "masks": lambda: open_mask_task(path, None, 3),
    }
    protocols = {"classes": "knn, linear or finetune", "boxes": "detect", "masks": "segment"}
    [own] = annotations_of(sets / name)
    for needed, open_it in opened.items():
        if needed != own:
            sentence = f"The pictures of {path} have {own} and no {needed}: give --protocol {protocols[own]}."
            with pytest.raises(UserError) as told:
                open_it()
            assert str(told.value) == sentence


def test_names_below_the_root_are_looked_at_too(sets: Path) -> None:
    with pytest.raises(UserError, match="have masks and no classes: give --protocol segment"):
        open_tasks("masks", sets)
    with pytest.raises(UserError, match="have classes and no boxes: give --protocol knn"):
        open_coco("classes", str(sets))
    with pytest.raises(UserError, match="have boxes and no masks: give --protocol detect"):
        open_mask_task("coco", str(sets), 3)
