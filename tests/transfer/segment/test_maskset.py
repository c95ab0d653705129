import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from moce.engine.files import write_json
from moce.errors import UserError
from moce.images.decode import FORMATS
from moce.images.sources import Source
from moce.transfer.segment.masks import IGNORE, class_numbers, named
from moce.transfer.segment.maskset import MaskTask, open_mask_task, parquet_set


def opened(path: Path, quiet: bool = True) -> MaskTask:
    return open_mask_task(str(path), None, 3).checked(0, quiet)


def numbers(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def rows(count: int, highest: int) -> list[dict[str, dict[str, bytes]]]:
    """Pictures of 6 x 5 pixels whose masks hold 0 to `highest`."""
    made = []
    for i in range(count):
        mask = (np.arange(30).reshape(5, 6) % (highest + 1)).astype(np.uint8)
        made.append({"image": {"bytes": png(np.full((5, 6, 3), i, np.uint8))}, "mask": {"bytes": png(mask)}})
    return made


def write(path: Path, content: list[dict[str, dict[str, bytes]]]) -> None:
    pq.write_table(pa.Table.from_pylist(content), path)


def test_ade20k_s_numbers_become_classes(tiny_ade: Path) -> None:
    task = opened(tiny_ade)
    assert task.classes is not None and task.classes.names == ["meadow", "ball", "box"]
    image, classes = task.test.get(0)
    stored = numbers(tiny_ade / "annotations" / "validation" / "ADE_00001000.png")
    assert image.shape[1:] == classes.shape == stored.shape
    assert (classes.numpy() == stored.astype(int) - 1).all()
    assert (classes[0] == IGNORE).all()


def test_parquet_with_a_void_class(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        write(tmp_path / f"{split}.parquet", rows(count, 3))
    write_json(tmp_path / "classes.json", ["sky", "road", "Void", "car"])
    task = opened(tmp_path)
    assert [len(part) for part in task.splits] == [3, 1, 2]
    assert task.classes is not None and task.classes.names == ["sky", "road", "car"]
    assert task.train.get(0)[1][0].tolist() == [0, 1, IGNORE, 2, 0, 1]


def test_one_file_is_split_and_without_names_classes_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "streets.parquet", rows(10, 2))
    task = opened(tmp_path / "streets.parquet")
    assert (task.name, len(task.train), task.val, len(task.test)) == ("streets", 8, None, 2)
    assert sorted(task.train.of + task.test.of) == list(range(10))
    assert task.test.of == opened(tmp_path / "streets.parquet").test.of
    assert isinstance(task.train.pictures, Source)
    for part in (task.train, task.test):  # rows are filled with their number
        assert [int(part.get(i)[0].max()) for i in range(len(part))] == part.of
        assert part.pictures.name(1) == f"streets.parquet row {part.of[1]}"
    assert task.classes is not None and task.classes.names == ["0", "1", "2"]


@pytest.mark.packs
def test_camvid(packs: Path) -> None:
    task = open_mask_task("camvid", str(packs), 3)
    assert [len(part) for part in task.splits] == [367, 101, 233]
    assert (
        task.classes is not None and task.classes.names[-1] == "bicyclist" and len(task.classes.names) == 11
    )


def test_a_palette_is_not_looked_up_and_sixteen_bits_are_read() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 0), 1)
    file = io.BytesIO()
    image.save(file, format="PNG")
    assert class_numbers(file.getvalue(), "m").tolist() == [[0, 1]]
    assert class_numbers(png(np.array([[300, 2]], np.uint16)), "m").tolist() == [[300, 2]]


def stored(form: str, size: tuple[int, int] = (16, 8), **options: Any) -> bytes:
    """A mask of left 0, right 2 in a file of this format."""
    image = Image.new("L", size)
    image.paste(2, (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM"])
def test_formats_that_give_back_the_numbers(form: str) -> None:
    assert class_numbers(stored(form), "m").tolist() == [[0] * 8 + [2] * 8] * 8
    if form in ("PNG", "TIFF"):
        assert class_numbers(stored(form, exif=turned(1)), "m").shape == (8, 16)


@pytest.mark.parametrize("form", ["JPEG", "JPEG2000", "WEBP", "AVIF", "GIF"])
def test_a_mask_of_a_format_that_may_change_numbers_is_refused(form: str) -> None:
    if form not in FORMATS:
        pytest.skip(f"this Pillow reads no {form}")
    sentence = rf"The mask m is a {form} file, which may change numbers .* as PNG, TIFF, BMP or PPM\.$"
    with pytest.raises(UserError, match=sentence):
        class_numbers(stored(form), "m")


def test_a_tiff_with_a_jpeg_inside_is_refused() -> None:
    with pytest.raises(UserError, match="The mask m is a TIFF compressed as jpeg, which may change numbers"):
        class_numbers(stored("TIFF", compression="jpeg"), "m")


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_that_a_tag_turns_is_refused(form: str, orientation: int) -> None:
    with pytest.raises(
        UserError, match="The mask m has an orientation tag: store it upright, as its picture"
    ):
        class_numbers(stored(form, exif=turned(orientation)), "m")


def test_the_mask_of_a_turned_picture_is_of_the_picture_as_it_is_shown(tmp_path: Path) -> None:
    path, picture = (
        tmp_path / "one.parquet",
        stored("PNG", exif=turned(6)),
    )  # its left half is shown as the upper one
    write(path, [{"image": {"bytes": picture}, "mask": {"bytes": stored("PNG")}}])
    with pytest.raises(
        UserError, match=r"16 x 8 pixels and its picture 8 x 16; .*, that of the picture as it is shown"
    ):
        parquet_set(path, 1).stored(0)
    upright = io.BytesIO()
    with Image.open(io.BytesIO(stored("PNG"))) as mask:
        mask.transpose(Image.Transpose.ROTATE_270).save(upright, format="PNG")
    write(path, [{"image": {"bytes": picture}, "mask": {"bytes": upright.getvalue()}}])
    image, numbers = parquet_set(path, 1).stored(0)
    assert image.shape == (1, 16, 8) and image[0].tolist() == numbers.tolist()


def test_classes_from_their_table() -> None:
    classes = named(["void", "a", "b"], 0, "classes.json")
    assert classes.of(np.array([[0, 1, 2, 255]]), "m").tolist() == [[IGNORE, 0, 1, IGNORE]]
    with pytest.raises(UserError, match=r"The mask m has the class number 3: by classes.json they end at 2"):
        classes.of(np.array([[3]]), "m")


# What is wrong with a set


def drop_mask(folder: Path) -> None:
    (folder / "annotations" / "training" / "ADE_00000003.png").unlink()


def drop_picture(folder: Path) -> None:
    (folder / "images" / "validation" / "ADE_00001002.jpg").unlink()


def drop_many(folder: Path) -> None:
    for path in sorted((folder / "annotations" / "training").iterdir())[4:]:
        path.unlink()


def same_name(folder: Path) -> None:
    images = folder / "images" / "training"
    shutil.copy(images / "ADE_00000003.jpg", images / "ADE_00000003.jpeg")


def smaller_mask(folder: Path) -> None:
    Image.new("L", (7, 9)).save(folder / "annotations" / "training" / "ADE_00000003.png")


def far_class(folder: Path) -> None:
    path = folder / "annotations" / "validation" / "ADE_00001002.png"
    mask = numbers(path)
    mask[4, 4] = 77
    Image.fromarray(mask).save(path)


def colour_mask(folder: Path) -> None:
    path = folder / "annotations" / "training" / "ADE_00000003.png"
    Image.fromarray(numbers(path)).convert("RGB").save(path)


def no_split(folder: Path) -> None:
    shutil.rmtree(folder / "images" / "validation")


def half_unpacked(folder: Path) -> None:
    shutil.rmtree(folder / "annotations")


def cut_off(folder: Path) -> None:
    path = folder / "images" / "training" / "ADE_00000003.jpg"
    path.write_bytes(path.read_bytes()[:200])


def cut_off_mask(folder: Path) -> None:
    path = folder / "annotations" / "training" / "ADE_00000003.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_mask, r"ADE_00000003.jpg of .*training has no mask in .*training: unpack the set again"),
        (drop_picture, r"ADE_00001002.png of .*validation has no picture in .*images/validation: unpack"),
        (drop_many, r"ADE_00000004.jpg of .* has no mask in .*, and 11 others have none either: unpack"),
        (same_name, r"ADE_00000003.jpeg and ADE_00000003.jpg of .* have one name"),
        (smaller_mask, r"The mask ADE_00000003.png of .* has 7 x 9 pixels and its picture \d+ x \d+"),
        (far_class, r"ADE_00001002.png of .* has the class number 77: by objectInfo150.txt they end at 3"),
        (
            colour_mask,
            r"The mask ADE_00000003.png of .* is in colour \(RGB\): a mask has one number per pixel",
        ),
        (
            no_split,
            r"tiny-ade has no images/validation: in the layout of ADE20K there are images and annotations",
        ),
        (half_unpacked, r"tiny-ade has no annotations/training: .* unpack all of it"),
        (cut_off, r"The picture ADE_00000003.jpg of .* cannot be read \(.*\); put it right"),
        (cut_off_mask, r"The mask ADE_00000003.png of .* cannot be read \(.*\); put it right"),
    ],
)
def test_a_spoiled_set_is_named_in_a_sentence(
    tiny_ade: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    folder = tmp_path / "tiny-ade"
    shutil.copytree(tiny_ade, folder)
    spoil(folder)
    with pytest.raises(UserError, match=sentence):
        opened(folder)


def test_sentences_about_parquet_and_places(tmp_path: Path, tiny_ade: Path) -> None:
    with pytest.raises(UserError, match=r"no segmentation task '.*tiny-aed': .* Did you mean 'tiny-ade'\?"):
        opened(tiny_ade.parent / "tiny-aed")
    write(tmp_path / "train.parquet", rows(3, 2))
    with pytest.raises(UserError, match="has no test split: it needs test.parquet with image and mask"):
        opened(tmp_path)
    write(tmp_path / "test.parquet", rows(2, 4))
    with pytest.raises(UserError, match="has the class number 3: by the train split they end at 2"):
        opened(tmp_path)
    write(tmp_path / "test.parquet", [{"image": row["image"], "other": row["mask"]} for row in rows(2, 2)])
    with pytest.raises(
        UserError, match=r"test.parquet' has no column 'mask' of pictures: its columns are image"
    ):
        opened(tmp_path)
    write_json(tmp_path / "classes.json", {"0": "sky"})
    write(tmp_path / "test.parquet", rows(2, 2))
    with pytest.raises(UserError, match=r"classes.json must be a list of names"):
        opened(tmp_path)
    (tmp_path / "classes.json").unlink()
    write(tmp_path / "test.parquet", [*rows(1, 2), {**rows(1, 2)[0], "mask": None}])
    with pytest.raises(
        UserError, match=r"The mask test.parquet row 1 of .* cannot be read \(no bytes in this row\)"
    ):
        opened(tmp_path)
    write(tmp_path / "one.parquet", rows(1, 2))
    with pytest.raises(UserError, match="has one picture, so none can be set aside"):
        opened(tmp_path / "one.parquet")
    (tmp_path / "masks.zip").touch()
    with pytest.raises(UserError, match="is no parquet file; give one, or the folder"):
        opened(tmp_path / "masks.zip")
    for split in ("images", "annotations"):
        shutil.copytree(tiny_ade / split, tmp_path / "blank" / split)
    for path in (tmp_path / "blank" / "annotations" / "training").iterdir():
        Image.fromarray(np.zeros_like(numbers(path))).save(path)
    with pytest.raises(UserError, match="have class numbers up to 0: there must be one from 1"):
        opened(tmp_path / "blank")
