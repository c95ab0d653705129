"""`moce prepare`: every format opens with the pictures, labels and names of the original."""

import contextlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from prepared_formats import FORMATS

import moce
from moce.errors import UserError
from moce.images import reading
from moce.images.augment import centre_crop
from moce.images.decode import decode
from moce.images.loader import centred_batches, survey, training_batches
from moce.images.sampler import Order
from moce.images.shrink import small_jpeg
from moce.images.sources import open_images
from moce.stages import prepare as prepare_module
from moce.stages.prepare import chunks

KEPT = [index for index in range(24) if index != 9]


# What comes out ----------------------------------------------------------------------------------------------------


def test_parquet_opens_with_the_same_labels_and_names(prepared: Path) -> None:
    original, small = open_images(str(prepared / "in")), open_images(str(prepared / "parquet"))
    assert small.classes == original.classes == ["blobs", "rings", "stripes"]
    assert small.labels.tolist() == original.labels[KEPT].tolist()
    assert len(list((prepared / "parquet").glob("*.parquet"))) > 3
    for place, index in enumerate(KEPT):
        assert torch.equal(small.get(place)[0], decode(small_jpeg(original, index, 20, 90).data))
        assert small.name(place).startswith(f"{original.name(index)} (pictures-0000")


def test_parquet_is_what_the_datasets_library_writes(prepared: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted((prepared / "parquet").glob("*.parquet"))
    features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    assert features == datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["blobs", "rings", "stripes"])}
    )
    again = pq.read_schema(files[0])
    assert again.field("image").type == features.arrow_schema.field("image").type
    assert again.field("label").type == features.arrow_schema.field("label").type


def test_tar_files_are_read_by_webdataset_and_tarfile(prepared: Path) -> None:
    original = open_images(str(prepared / "in"))
    samples = {}
    for path in sorted((prepared / "tar").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                samples.setdefault(key, {})[kind] = tar.extractfile(member).read()
    assert list(samples) == sorted(samples) and len(samples) == 23
    assert list(samples)[9] == "000000010-rings_2"
    for index, sample in zip(KEPT, samples.values(), strict=True):
        assert sample["jpg"] == small_jpeg(original, index, 20, 90).data
        assert int(sample["cls"]) == original.labels[index]
    tariterators = pytest.importorskip("webdataset.tariterators")
    with contextlib.ExitStack() as stack:  # the library leaves files open that it opens itself
        streams = [
            {"url": path.name, "stream": stack.enter_context(open(path, "rb"))}
            for path in sorted((prepared / "tar").glob("*.tar"))
        ]
        read = list(tariterators.group_by_keys(tariterators.tar_file_expander(streams)))
    assert [sample["__key__"] for sample in read] == list(samples)
    assert [int(sample["cls"]) for sample in read] == original.labels[KEPT].tolist()
    assert [sample["jpg"] for sample in read] == [sample["jpg"] for sample in samples.values()]


def test_the_array_holds_central_squares(prepared: Path) -> None:
    original, small = open_images(str(prepared / "in")), open_images(str(prepared / "array"))
    assert small.classes == original.classes and small.labels.tolist() == original.labels[KEPT].tolist()
    pixels = np.load(prepared / "array" / "images.npy", mmap_mode="r")
    assert pixels.shape == (23, 3, 20, 20)
    for place, index in enumerate(KEPT):
        square = centre_crop(original.get(index)[0], (20, 20))
        assert torch.equal(small.get(place)[0], square) and np.array_equal(pixels[place], square.numpy())
        assert small.name(place) == original.name(index)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_could_not_be_read_is_listed(prepared: Path, kind: str) -> None:
    assert (prepared / kind / "unreadable.txt").read_text() == "9\trings/1.jpg\n"
    result = json.loads((prepared / kind / "result.json").read_text())
    assert (result["num_images"], result["unreadable"]) == (23, 1)
    assert result["bytes_before"] == sum(
        path.stat().st_size
        for path in (prepared / "in").rglob("*.*")
        if path.name != "1.jpg" or path.parent.name != "rings"
    )
    files = [
        p for p in (prepared / kind).iterdir() if p.suffix in (".parquet", ".tar") or p.name == "images.npy"
    ]
    assert result["bytes_after"] == sum(path.stat().st_size for path in files) and result["files"] == len(
        files
    )
    assert result["decoded_per_second_before"] > 0
    assert (result["decoded_per_second_after"] is None) == (kind == "array")


def test_pictures_that_are_drawn_and_grey_ones(tmp_path: Path) -> None:
    toy = "toyworld://digits?num=40&size=16"
    found = moce.prepare(images=toy, out=tmp_path / "toy", short_side=16, format="array", quiet=True)
    assert found["bytes_before"] is None and found["num_images"] == 40
    assert torch.equal(open_images(str(tmp_path / "toy")).array(), open_images(toy).array())
    moce.prepare(images=toy, out=tmp_path / "jpeg", short_side=16, quiet=True)
    again = moce.prepare(images=tmp_path / "jpeg", out=tmp_path / "again", short_side=16, quiet=True)
    assert again["copied"] == 40
    one, two = (open_images(str(tmp_path / name)) for name in ("jpeg", "again"))
    assert one.fingerprint() == two.fingerprint() and one.name(3).startswith(open_images(toy).name(3))
    moce.prepare(
        images=tmp_path / "jpeg", out=tmp_path / "grey", short_side=16, format="array", channels=1, quiet=True
    )
    grey = open_images(str(tmp_path / "grey"), channels=1)
    assert torch.equal(grey.get(5)[0], open_images(str(tmp_path / "jpeg"), channels=1).get(5)[0])
    with pytest.raises(
        UserError, match="holds pictures of 1 channels and 3 are needed; prepare .* --channels 3"
    ):
        open_images(str(tmp_path / "grey"))


def test_names_come_from_the_source_where_it_keeps_them(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), "red").save(buffer, "PNG")
    data = buffer.getvalue()
    columns = {
        "kept": pa.array([{"bytes": data, "path": "a/b.png"}, {"bytes": data, "path": None}]),
        "plain": pa.array([data, data]),
    }
    for name, column in columns.items():
        pq.write_table(pa.table({"image": column}), tmp_path / f"{name}.parquet")
        images = tmp_path / f"{name}.parquet"
        moce.prepare(images=images, out=tmp_path / name, short_side=8, num_workers=0, quiet=True)
    kept, plain = (open_images(str(tmp_path / name)) for name in columns)
    assert kept.path(0) == "a/b.png" and kept.path(1) == "kept.parquet row 1"
    assert plain.name(1) == "plain.parquet row 1 (pictures-00000.parquet row 1)"
    assert kept.labels is None and kept.classes is None


def test_small_jpegs_of_tar_files_are_kept_byte_for_byte(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 30, 30)).save(data, "JPEG", quality=80)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("red.jpg")
        member.size = len(data.getvalue())
        archive.addfile(member, io.BytesIO(data.getvalue()))
    result = moce.prepare(images=f"wds:{tmp_path}/a.tar", out=tmp_path / "out", short_side=32, quiet=True)
    assert (result["copied"], result["bytes_before"]) == (1, len(data.getvalue()))
    assert open_images(str(tmp_path / "out")).encoded(0) == data.getvalue()  # type: ignore[attr-defined]


def test_prepared_tar_files_are_a_source_too(prepared: Path) -> None:
    original = open_images(str(prepared / "in"))
    small = open_images(str(prepared / "tar"))
    assert small.classes == original.classes and small.labels.tolist() == original.labels[KEPT].tolist()
    assert torch.equal(small.get(9)[0], decode(small_jpeg(original, 10, 20, 90).data))


# Training from it --------------------------------------------------------------------------------------------------


def test_batches_from_the_map_are_those_from_memory_and_from_workers(prepared: Path) -> None:
    source = open_images(str(prepared / "array"))
    order = Order(len(source), 8, seed=1, kind="shards", shards=source.shards())
    found = []
    for cache_gib, workers in ((1.0, 0), (0.0, 0), (0.0, 2)):
        reading.forget()
        found.append(list(training_batches(source, order, 16, 0.2, 5, 0, 6, workers, cache_gib, quiet=True)))
    for batches in found[1:]:
        for a, b in zip(batches, found[0], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    reading.forget()
    assert survey(source, cache_gib=0.0) == ((20, 20), [], 23)
    seen = torch.cat([indices for indices, _ in centred_batches(source, 16, 5, num_workers=2)])
    assert seen.tolist() == list(range(23))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc what is in memory")
def test_a_map_is_not_written_to_and_not_read_whole(tmp_path: Path) -> None:
    """Of a map of 2 GiB (a file with a hole), a few pictures are read."""
    moce.prepare(
        images="toyworld://digits?num=8&size=16",
        out=tmp_path / "a",
        short_side=16,
        format="array",
        quiet=True,
    )
    side, number = 256, 2**31 // (3 * 256 * 256)
    with open(tmp_path / "a" / "images.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (number, 3, side, side)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + number * 3 * side * side)
    np.save(tmp_path / "a" / "labels.npy", np.zeros(number, np.int64))
    (tmp_path / "a" / "names.txt").write_text("a picture\n" * number)
    about = json.loads((tmp_path / "a" / "prepared.json").read_text())
    (tmp_path / "a" / "prepared.json").write_text(json.dumps({**about, "num_images": number}))
    source = open_images(str(tmp_path / "a"))
    order = Order(len(source), 16, seed=0)
    reading.forget()
    before = resident_bytes()
    for cache_gib in (0.5, 4.0):
        batches = list(training_batches(source, order, 16, 0.2, 0, 0, 10, cache_gib=cache_gib, quiet=True))
        assert len(batches) == 10 and not any(batch.images.any() for batch in batches)
    assert resident_bytes() - before < 2**29
    reading.forget()
    source.array()[3] = 7  # stays in this process
    assert not open_images(str(tmp_path / "a")).get(3)[0].any()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def test_a_row_group_is_read_by_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And -1 workers are as many as everywhere else: at most eight."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    column = pa.array([{"bytes": buffer.getvalue(), "path": None}] * 700)
    pq.write_table(pa.table({"image": column}).slice(0, 250), tmp_path / "a.parquet", row_group_size=100)
    pq.write_table(pa.table({"image": column}), tmp_path / "b.parquet", row_group_size=700)
    groups = open_images(f"{tmp_path}/a.parquet")
    assert list(chunks(groups, 0)) == groups.shards() == [range(100), range(100, 200), range(200, 250)]
    assert list(chunks(groups, 130)) == [range(130, 200), range(200, 250)]
    large = list(chunks(open_images(f"{tmp_path}/b.parquet"), 0))
    assert [len(chunk) for chunk in large] == [256, 256, 188]
    toy = list(chunks(open_images("toyworld://digits?num=40"), 20))
    assert toy == [range(20, 36), range(36, 40)]
    asked = []
    plain = prepare_module.in_workers
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    monkeypatch.setattr(
        prepare_module,
        "in_workers",
        lambda work, items, number: asked.append(number) or plain(work, items, 0),
    )
    moce.prepare(images=tmp_path / "a.parquet", out=tmp_path / "out", short_side=4, quiet=True)
    assert asked == [8]


# Damaged folders ---------------------------------------------------------------------------------------------------


def test_damaged_folders_are_told(prepared: Path, tmp_path: Path) -> None:
    cases = {
        "parquet": ("pictures-00001.parquet", "lacks its file pictures-00001.parquet"),
        "array": ("labels.npy", "labels.npy' is damaged"),
    }
    for kind, (name, words) in cases.items():
        shutil.copytree(prepared / kind, tmp_path / kind)
        (tmp_path / kind / name).unlink()
        with pytest.raises(UserError, match=words):
            open_images(str(tmp_path / kind))
    data = (prepared / "array" / "images.npy").read_bytes()
    (tmp_path / "array" / "labels.npy").write_bytes((prepared / "array" / "labels.npy").read_bytes())
    (tmp_path / "array" / "images.npy").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="images.npy' is damaged"):
        open_images(str(tmp_path / "array"))
    (tmp_path / "array" / "images.npy").write_bytes(data)
    names = (tmp_path / "array" / "names.txt").read_bytes()
    for content, words in (
        (names[:-20], "of 23 pictures"),
        (b"\xff" * 23, "can't decode"),
        (None, "No such file"),
    ):
        (tmp_path / "array" / "names.txt").unlink()
        if content is not None:
            (tmp_path / "array" / "names.txt").write_bytes(content)
        with pytest.raises(UserError, match=f"names.txt' is damaged .*{words}.*; prepare the pictures again"):
            open_images(str(tmp_path / "array"))


def test_names_with_odd_ends_of_lines_stay_those_of_their_pictures(tmp_path: Path) -> None:
    names = ["a\rb.png", "c\nd.png", "e\r\nf.png", "g\u2028h\x0b\x0c.png", "i.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / name)
    options = {"short_side": 8, "format": "array", "shard_mib": 0.0003, "num_workers": 0, "quiet": True}
    moce.prepare(images=tmp_path / "in", out=tmp_path / "out", **options)
    found = open_images(str(tmp_path / "out"))
    wanted = [name.replace("\r", " ").replace("\n", " ") for name in names]
    assert [found.name(index) for index in range(5)] == wanted
    (tmp_path / "out" / "names.txt").unlink()
    assert found.name(4) == "i.png", "names are read once"


def test_a_folder_of_pictures_may_hold_a_file_of_that_name(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for content in ("[]", '{"kind": "mine"}'):
        (tmp_path / "prepared.json").write_text(content)
        assert len(open_images(str(tmp_path))) == 1


def test_inspect_tells_what_a_prepared_folder_is(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"parquet": "parquet files", "tar": "webdataset tar files", "array": "squares of 20, 3 channels"}
    for kind, word in words.items():
        found = moce.inspect(prepared / kind)
        assert found["kind"] == "prepared" and found["finished"]
        assert "23 prepared pictures: " in found["summary"] and word in found["summary"]
        json.dumps(found)
        printed = capsys.readouterr().out
        assert "3 classes" in printed and "1 pictures were unreadable" in printed


def test_options_that_are_not_used_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, options, words in (
        ("array", {"quality": 80}, "--quality is not used: an array holds pixels"),
        ("tar", {"channels": 1}, "--channels is not used: tar files keep grey and colour"),
        ("parquet", {"quality": 80}, ""),
    ):
        images = "toyworld://digits?num=2&size=16"
        moce.prepare(images=images, out=tmp_path / kind, short_side=8, format=kind, num_workers=0, **options)
        told = capsys.readouterr().err
        assert words in told and told.count("is not used") == bool(words)


def test_options_are_checked(tmp_path: Path) -> None:
    for options, words in (
        ({}, "--short-side must be given"),
        ({"short_side": 0}, "--short-side must be at least 1"),
        ({"short_side": 8, "format": "zip"}, "--format cannot be 'zip': choose one of parquet, tar, array"),
        ({"short_side": 8, "channels": 2}, "--channels must be 1 or 3, not 2"),
    ):
        with pytest.raises(UserError, match=words):
            moce.prepare(images="toyworld://digits?num=8", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
