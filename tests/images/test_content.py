"""Fingerprints by all bytes: what names, sizes and number cannot tell apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import moce
from moce.engine.runs import BYTES
from moce.errors import UserError
from moce.images.content import content_fingerprint
from moce.images.sources import open_images
from moce.images.subset import Subset


@pytest.fixture
def bitmaps(tmp_path: Path) -> Path:
    """40 pictures in files of one size, whatever they show."""
    folder = tmp_path / "bitmaps"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.bmp")
    return folder


def touch_one_pixel(folder: Path) -> None:
    path = sorted(folder.iterdir())[7]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def both(path: Path | str) -> tuple[str, str]:
    source = open_images(str(path))
    return source.fingerprint(), content_fingerprint(source)


def test_one_bit_of_one_picture_is_seen(bitmaps: Path, tmp_path: Path) -> None:
    shutil.copytree(bitmaps, tmp_path / "elsewhere")
    before = both(bitmaps)
    assert both(tmp_path / "elsewhere") == before  # wherever they lie
    touch_one_pixel(bitmaps)
    after = both(bitmaps)
    assert after[0] == before[0] and after[1] != before[1]


def test_broken_pictures_count_as_such(bitmaps: Path) -> None:
    (bitmaps / "03.bmp").write_bytes(b"not a picture")
    held = both(bitmaps)[1]
    (bitmaps / "03.bmp").unlink()
    (bitmaps / "03.bmp").symlink_to("nowhere.bmp")
    gone = both(bitmaps)[1]
    assert held != gone == both(bitmaps)[1]


@pytest.mark.parametrize("form", ["parquet", "tar", "array"])
def test_pictures_in_containers_have_bytes_too(bitmaps: Path, tmp_path: Path, form: str) -> None:
    found = []
    for name in ("before", "after"):
        out = tmp_path / f"{form}-{name}"
        moce.prepare(images=bitmaps, out=out, short_side=32, format=form, quiet=True, num_workers=0)
        found.append(content_fingerprint(open_images(str(out))))
        found.append(content_fingerprint(open_images(str(out))))
        for path in bitmaps.iterdir():
            Image.fromarray(np.flip(np.asarray(Image.open(path)), 0)).save(path)
    assert found[0] == found[1] != found[2] == found[3]


def test_drawn_pictures_and_subsets_have_them_as_well(
    bitmaps: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    toys = [open_images(f"toyworld://plants?size=32&num=24&seed={seed}") for seed in (0, 0, 1)]
    digests = [content_fingerprint(toy) for toy in toys]
    assert digests[0] == digests[1] != digests[2]
    (tmp_path / "classes.txt").write_text("blobs\nrings\n")
    part = content_fingerprint(open_images(f"classes:{tmp_path / 'classes.txt'}:{tiny_folder}"))
    shutil.copytree(tiny_folder, tmp_path / "two", ignore=shutil.ignore_patterns("stripes"))
    assert part == content_fingerprint(open_images(str(tmp_path / "two")))


def test_a_run_does_not_go_on_with_other_bytes(bitmaps: Path, tmp_path: Path, capsys) -> None:
    common = {"images": bitmaps, "preset": "debug", "quiet": True, "num_workers": 0, "hash_content": True}
    dense = {**common, "out": tmp_path / "mae", "epochs": 1, "image_size": 32}
    moce.pretrain(**dense)
    assert moce.pretrain(**dense)["verb"] == "pretrain"  # finished, and left alone
    clusters = {**common, "out": tmp_path / "clusters", "num_clusters": 4}
    moce.cluster(tmp_path / "mae", **clusters)
    inputs = [
        json.loads((tmp_path / run / "config.json").read_text())["inputs"] for run in ("mae", "clusters")
    ]
    assert inputs[0][BYTES] == inputs[1][BYTES] == both(bitmaps)[1]

    touch_one_pixel(bitmaps)
    with pytest.raises(UserError, match="other options: not the same bytes of the images; repeat"):
        moce.pretrain(**dense)
    with pytest.raises(UserError, match="other options: not the same bytes of the images; repeat"):
        moce.cluster(tmp_path / "mae", **clusters)
    experts = {**common, "out": tmp_path / "moce", "epochs": 1}
    with pytest.raises(UserError, match="names and sizes are the same, but not all bytes"):
        moce.train_experts(tmp_path / "mae", tmp_path / "clusters", **experts)
    assert not (tmp_path / "moce").exists()
    # Who does not ask is not told: names and sizes are all that is compared then, also when a run is continued.
    without = {**experts, "hash_content": False}
    result = moce.train_experts(tmp_path / "mae", tmp_path / "clusters", **without)
    assert moce.pretrain(**{**dense, "hash_content": False})["verb"] == "pretrain"
    # A run that was made without is not refused, and nothing is read for it.
    capsys.readouterr()
    assert (
        moce.train_experts(tmp_path / "mae", tmp_path / "clusters", **{**experts, "quiet": False}) == result
    )
    assert (
        "moce was begun without --hash-content: of its pictures no bytes are compared"
        in capsys.readouterr().err
    )
    asked = {**common, "out": tmp_path / "unasked", "num_clusters": 4, "hash_content": False}
    moce.cluster(tmp_path / "mae", **asked)
    capsys.readouterr()
    moce.train_experts(
        tmp_path / "mae", tmp_path / "unasked", **{**experts, "out": tmp_path / "b", "quiet": False}
    )
    assert "unasked was made without --hash-content: whether its pictures had" in capsys.readouterr().err


def test_an_unfinished_run_that_goes_on_without_forgets_the_bytes(bitmaps: Path, tmp_path: Path) -> None:
    common = {"images": bitmaps, "preset": "debug", "quiet": True, "num_workers": 0, "image_size": 32}
    moce.pretrain(**common, out=tmp_path / "mae", epochs=1, hash_content=True)
    (tmp_path / "mae" / "result.json").unlink()

    def inputs() -> dict[str, str]:
        return json.loads((tmp_path / "mae" / "config.json").read_text())["inputs"]

    before = inputs()
    touch_one_pixel(bitmaps)
    with pytest.raises(UserError, match="not the same bytes of the images"):
        moce.pretrain(**common, out=tmp_path / "mae", epochs=1, hash_content=True)
    assert inputs() == before
    moce.pretrain(**common, out=tmp_path / "mae", epochs=1)
    assert inputs() == {name: value for name, value in before.items() if name != BYTES}


@pytest.mark.parametrize("form", ["parquet", "tar", "array"])
def test_a_picture_at_a_time_or_all_at_once(bitmaps: Path, tmp_path: Path, form: str, monkeypatch) -> None:
    moce.prepare(images=bitmaps, out=tmp_path / "p", short_side=32, format=form, quiet=True, num_workers=0)
    found = {content_fingerprint(open_images(str(tmp_path / "p"))) for _ in range(2)}
    monkeypatch.setattr("moce.images.content.read_all", lambda *_, **__: None)
    assert found == {content_fingerprint(open_images(str(tmp_path / "p")))}


def test_code_of_others_is_run_by_one_thread() -> None:
    """torchvision's FakeData draws with the generator of the whole process."""
    uri = "torchvision://FakeData?size=200&image_size=3,8,8"
    assert len({content_fingerprint(open_images(uri)) for _ in range(3)}) == 1
    part = np.arange(150)
    assert len({content_fingerprint(Subset(uri, open_images(uri), part)) for _ in range(3)}) == 1


def test_what_can_be_refused_is_refused_before_all_is_read(
    bitmaps: Path, tmp_path: Path, monkeypatch
) -> None:
    common = {"images": bitmaps, "preset": "debug", "quiet": True, "num_workers": 0, "image_size": 32}
    moce.pretrain(**common, out=tmp_path / "mae", epochs=1)
    monkeypatch.setattr("moce.stages.pictures.content_fingerprint", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match="--epochs was 1 and is now 2"):
        moce.pretrain(**common, out=tmp_path / "mae", epochs=2, hash_content=True)


def test_what_was_decoded_before_is_not_trained_on(bitmaps: Path, tmp_path: Path) -> None:
    """Names and sizes are the same, so the pictures that this process keeps would be taken for these."""
    common = {"images": bitmaps, "preset": "debug", "quiet": True, "num_workers": 0, "image_size": 32}
    results = []
    for name in ("before", "after", "again"):
        results.append(
            moce.pretrain(**common, out=tmp_path / name, epochs=1, hash_content=True)["fingerprint"]
        )
        if name == "before":
            for path in bitmaps.iterdir():
                Image.fromarray(np.flip(np.asarray(Image.open(path)), 0)).save(path)
    assert results[0] != results[1] == results[2]


def test_prepare_and_customise_know_bytes_too(small_runs, bitmaps: Path, tmp_path: Path, capsys) -> None:
    runs = {
        "prepare": lambda: moce.prepare(
            images=bitmaps,
            out=tmp_path / "prepare",
            short_side=16,
            hash_content=True,
            quiet=True,
            num_workers=0,
        ),
        "customize": lambda: moce.customize(
            small_runs.moce,
            images=bitmaps,
            out=tmp_path / "customize",
            hash_content=True,
            quiet=True,
            num_workers=0,
        ),
    }
    for run in runs.values():
        run()
    touch_one_pixel(bitmaps)
    for run in runs.values():
        with pytest.raises(UserError, match="not the same bytes of the images"):
            run()
    moce.customize(small_runs.moce, out=tmp_path / "blind", strategy="cluster:0", hash_content=True)
    assert "--hash-content is not used: there are no --images" in capsys.readouterr().err


def test_pictures_in_lists_are_read_as_pixels(tmp_path: Path) -> None:
    """A list in a column of parquet would become a Python number for each of its values."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for name, content in (("a", pixels), ("b", pixels), ("c", pixels[::-1])):
        kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
        column = pa.array([picture.tolist() for picture in content], kind)
        pq.write_table(pa.table({"image": column}), tmp_path / f"{name}.parquet")
    sources = [open_images(str(tmp_path / f"{name}.parquet")) for name in "abc"]
    assert sources[0].encoded(0) is None
    a, b, c = map(content_fingerprint, sources)
    assert a == b != c
