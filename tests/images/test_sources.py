"""A picture is found by its index, whatever it is stored in; bad input is refused in one sentence."""

import errno
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_checks import check_protocol, picture, refusal, values

from moce.errors import UserError
from moce.images import parquet
from moce.images.decode import UnreadableImage
from moce.images.sources import FolderImages, Source, open_images


def fill(folder: Path, *names: str) -> Path:
    """Pictures of value 0, 1, ... in the order of `names`."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(value))
    return folder


def write_parquet(
    path: Path,
    values: list[int],
    labels: list[int | None] | None = None,
    names: list[str] | None = None,
    plain: bool = False,
    rows_in_group: int = 3,
    column: str = "image",
) -> Path:
    """A file like those of the hub: picture i has the value values[i]."""
    data = [picture(value) for value in values]
    columns = {column: pa.array(data) if plain else pa.array([{"bytes": d, "path": None} for d in data])}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    table = pa.table(columns)
    if names:
        features = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows_in_group)
    return path


# Folders -----------------------------------------------------------------------------------------------------------


def test_sub_folders_are_the_labels(tmp_path: Path) -> None:
    source = open_images(str(fill(tmp_path, "a/1.png", "a/x/2.png", "b/0.png", "c/9.png")))
    check_protocol(source)
    assert source.classes == ["a", "b", "c"] and source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 2] and source.labels.dtype == np.int64
    assert [source.name(i) for i in range(4)] == ["a/1.png", "a/x/2.png", "b/0.png", "c/9.png"]
    assert values(source) == [0, 1, 2, 3]
    assert source.get(2)[0].shape == (3, 4, 5) and source.get(2)[1] == 1


def test_one_picture_outside_the_sub_folders_means_no_labels(tmp_path: Path) -> None:
    source = open_images(str(fill(tmp_path, "a/1.png", "z.png")))
    check_protocol(source)
    assert source.classes is None and source.labels is None and source.get(0)[1] is None


def test_extensions_in_any_case_and_nothing_hidden(tmp_path: Path) -> None:
    fill(
        tmp_path,
        *[f"{i}.{e}" for i, e in enumerate(["jpg", "JPEG", "Png", "webp", "BMP", "tif", "TIFF", "gif"])],
    )
    fill(tmp_path, ".hidden.png", ".thumbs/1.png", "notes.txt", "png", "._9.jpg")
    source = open_images(str(tmp_path))
    assert [source.name(i)[:2] for i in range(len(source))] == [f"{i}." for i in range(8)]


def test_order_is_by_name_and_odd_names_work(tmp_path: Path) -> None:
    fill(tmp_path, "a-b/1.png", "a/1.png", "ä ö/1.png", "Z/10.png", "Z/9.png")
    os.rename(os.fsencode(tmp_path / "Z/9.png"), os.fsencode(tmp_path) + b"/Z/\xff.png")
    source = open_images(str(tmp_path))
    names = [os.fsencode(source.name(i)) for i in range(len(source))]
    assert names == sorted(names) and b"Z/\xff.png" in names
    check_protocol(source)


def test_class_folders_may_be_called_anything(tmp_path: Path) -> None:
    names = sorted(["<b onclick=x>&", "日本 語", "Ελληνικά", "a&amp;b", "x\n.. y", "%20", "{0..2}", "*"])
    source = open_images(
        str(fill(tmp_path / "ü*[", *[f"{name}/{i}.png" for name in names for i in range(2)]))
    )
    check_protocol(source)
    assert source.classes == names and values(source) == list(range(2 * len(names)))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "real", "1.png", "2.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cats").symlink_to(tmp_path / "real")
    (tmp_path / "set/dogs").symlink_to(tmp_path / "real")
    (tmp_path / "real/again").symlink_to(tmp_path / "set")
    source = open_images(str(tmp_path / "set"))
    names = [source.name(i) for i in range(len(source))]
    assert "cats/1.png" in names and "dogs/2.png" in names and len(names) < 30


def test_a_folder_knows_its_fingerprint_wherever_it_lies(tmp_path: Path) -> None:
    one = open_images(str(fill(tmp_path / "one", "a/1.png", "b/2.png"))).fingerprint()
    assert open_images(str(fill(tmp_path / "two", "a/1.png", "b/2.png"))).fingerprint() == one
    assert open_images(str(fill(tmp_path / "three", "a/1.png", "b/3.png"))).fingerprint() != one
    (tmp_path / "two/b/2.png").write_bytes(picture(1) + b"longer")
    assert open_images(str(tmp_path / "two")).fingerprint() != one


def test_broken_files_are_unreadable_not_fatal(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "2.png").write_bytes(b"rubbish")
    source = open_images(str(tmp_path))
    (tmp_path / "3.png").unlink()
    for index in (1, 2):
        with pytest.raises(UnreadableImage):
            source.get(index)
    assert source.fingerprint()


def test_one_file_may_be_bad_but_a_disk_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(str(fill(tmp_path / "set", *[f"{i}.png" for i in range(5)])))
    for number, kind in enumerate([Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)]):
        (tmp_path / "set" / f"{number}.png").unlink()
        kind(tmp_path / "set" / f"{number}.png")
        with pytest.raises(UnreadableImage):
            source.get(number)

    def stale(*_: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", stale)
        with pytest.raises(UserError, match=r"3.png' cannot be read \(Stale file handle\): see to the disk"):
            source.get(3)
    assert source.get(3)[0][0, 0, 0] == 3
    (tmp_path / "set").rename(tmp_path / "unmounted")
    for _ in range(2):  # nothing is left of it, then an empty folder, on which it was mounted
        with pytest.raises(UserError, match="set' was taken away while it was read; bring it back"):
            source.get(3)
        (tmp_path / "set").mkdir(exist_ok=True)


def test_a_folder_travels_light() -> None:
    source = FolderImages.__new__(FolderImages)
    names = [b"n%08d/%012d.jpg" % (i // 1000, i) for i in range(100_000)]
    source._names, source._starts = b"".join(names), np.cumsum([0] + [len(name) for name in names])
    assert source.name(54_321) == "n00000054/000000054321.jpg"
    assert len(pickle.dumps(source)) < 40 * len(names)


def test_grey_pictures_on_request(tmp_path: Path) -> None:
    assert open_images(str(fill(tmp_path, "1.png")), channels=1).get(0)[0].shape == (1, 4, 5)


# Parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_a_file_of_the_hub(tmp_path: Path, plain: bool) -> None:
    path = write_parquet(
        tmp_path / "train.parquet", list(range(10)), [i % 2 for i in range(10)], ["cat", "dog"], plain
    )
    source = open_images(str(path))
    check_protocol(source)
    assert source.classes == ["cat", "dog"] and source.labels is not None
    assert source.labels.tolist() == [0, 1] * 5 and source.labels.dtype == np.int64
    assert values(source) == list(range(10))
    assert source.shards() == [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
    assert source.name(4) == "train.parquet row 4"


def test_a_glob_joins_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "b.parquet", [5, 6], [1, 0])
    write_parquet(tmp_path / "a.parquet", [1, 2, 3, 4], [0, 1, 2, 3])
    source = open_images(str(tmp_path / "*.parquet"))
    check_protocol(source)
    assert values(source) == [1, 2, 3, 4, 5, 6]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 2, 3, 1, 0]
    assert source.classes == ["0", "1", "2", "3"]
    assert source.name(5) == "b.parquet row 1"


def test_labels_may_be_absent(tmp_path: Path) -> None:
    without = open_images(str(write_parquet(tmp_path / "a.parquet", [1, 2])))
    check_protocol(without)
    assert without.labels is None and without.classes is None and without.get(0)[1] is None
    hidden = open_images(str(write_parquet(tmp_path / "b.parquet", [1, 2], [-1, -1], ["x"])))
    assert hidden.labels is None and hidden.classes is None


def test_the_only_column_of_bytes_holds_the_pictures(tmp_path: Path) -> None:
    assert values(open_images(str(write_parquet(tmp_path / "a.parquet", [7, 8], [0, 1], column="img")))) == [
        7,
        8,
    ]


def test_little_is_kept_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(range(12)))
    source = open_images(str(path))
    assert isinstance(source, parquet.ParquetImages)
    monkeypatch.setattr(parquet, "CACHE_BYTES", 600)
    assert values(source) == list(range(12))
    assert sum(group.nbytes for group in source._groups.values()) <= 600
    assert [int(source.get(i)[0][0, 0, 0]) for i in (11, 0, 5, 11)] == [11, 0, 5, 11]


def test_what_is_kept_is_weighed_once_and_not_at_every_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_images(str(write_parquet(tmp_path / "a.parquet", list(range(90)), rows_in_group=1)))
    assert isinstance(source, parquet.ParquetImages)
    weighed = []

    class Weighed:
        def __init__(self, rows: pa.ChunkedArray) -> None:
            self.rows = rows

        @property
        def nbytes(self) -> int:
            weighed.append(self)
            return self.rows.nbytes

    for index in range(80):
        source.get(index)
    monkeypatch.setattr(parquet, "CACHE_BYTES", sum(group.nbytes for group in source._groups.values()))
    for group, rows in source._groups.items():
        source._groups[group] = Weighed(rows)
    for index in range(80, 90):
        source.get(index)
    assert len(weighed) <= 20 and 60 < len(source._groups) < 90


def test_threads_may_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "CACHE_BYTES", 600)
    source = open_images(str(write_parquet(tmp_path / "a.parquet", list(range(60)))))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: int(source.get(i)[0][0, 0, 0]), [*range(60)] * 3)) == [*range(60)] * 3


def test_a_row_without_bytes_is_unreadable(tmp_path: Path) -> None:
    table = pa.table(
        {"image": pa.array([{"bytes": None, "path": "x.png"}, None, {"bytes": picture(3), "path": None}])}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_images(str(tmp_path / "a.parquet"))
    for index in (0, 1):
        with pytest.raises(UnreadableImage, match="no bytes"):
            source.get(index)
    assert source.get(2)[0][0, 0, 0] == 3


def test_a_parquet_fingerprint_tells_contents_apart(tmp_path: Path) -> None:
    def fingerprint(folder: str, **options: object) -> str:
        (tmp_path / folder).mkdir()
        path = write_parquet(tmp_path / folder / "train.parquet", **options)  # type: ignore[arg-type]
        return open_images(str(path)).fingerprint()

    same = [fingerprint("a", values=[1, 2, 3]), fingerprint("b", values=[1, 2, 3])]
    assert same[0] == same[1]
    assert fingerprint("c", values=[1, 2]) != same[0]
    assert fingerprint("d", values=[1, 2, 3], labels=[0, 0, 1]) != same[0]


def test_a_forked_process_reads_on(tmp_path: Path) -> None:
    import multiprocessing

    source = open_images(str(write_parquet(tmp_path / "a.parquet", list(range(9)))))
    assert isinstance(source, parquet.ParquetImages)
    source.get(0)
    with source._lock:  # as if another thread were reading just now
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(values, (source,)).get(60) == list(range(9))


# What is refused ---------------------------------------------------------------------------------------------------


def test_unknown_schemes(tmp_path: Path) -> None:
    assert "s3://bucket/x" in refusal("s3://bucket/x")
    assert "toy world has no kind" in refusal("toyworld://dragons")


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    text = refusal(tmp_path / "flower")
    assert (
        "no folder or file" in text and str(tmp_path / "flower") in text and "Did you mean 'flowers'?" in text
    )
    assert "No file matches" in refusal(tmp_path / "*.parquet")


def test_folders_without_pictures(tmp_path: Path) -> None:
    assert "is empty" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "No picture is in" in refusal(tmp_path) and str(tmp_path) in refusal(tmp_path)
    write_parquet(tmp_path / "train.parquet", [1])
    assert "train.parquet" in refusal(tmp_path)  # not opened silently: test.parquet often lies beside it


def test_files_that_are_not_parquet(tmp_path: Path) -> None:
    fill(tmp_path, "1.png")
    assert "one picture" in refusal(tmp_path / "1.png")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing of the kind")
    assert "not a parquet file" in refusal(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "not a parquet file" in refusal(tmp_path / "a.parquet")


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(range(50)))
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut off" in refusal(path) and str(path) in refusal(path)


def test_damage_inside_a_parquet_file_names_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 256, 3000, dtype=np.uint8).tobytes() for _ in range(20)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(data)}), path, row_group_size=10, write_page_checksum=True)
    raw = bytearray(path.read_bytes())
    raw[4:400] = bytes(396)
    path.write_bytes(raw)
    source = open_images(str(path))
    with pytest.raises(UserError, match="a.parquet' is damaged"):
        source.get(0)


def test_a_parquet_file_without_pictures_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "label": [1]}), tmp_path / "a.parquet")
    assert "no image column" in refusal(tmp_path / "a.parquet") and "text (string)" in refusal(
        tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"]}), tmp_path / "b.parquet")
    assert "several image columns" in refusal(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "c.parquet")
    assert "no rows" in refusal(tmp_path / "c.parquet")


def test_labels_that_cannot_be(tmp_path: Path) -> None:
    assert "none in row 1" in refusal(write_parquet(tmp_path / "a.parquet", [1, 2, 3], [0, None, 1]))
    for number, kind in ((3_000_000_000, pa.int64()), (2**63 + 7, pa.uint64()), (1_000_000, pa.int32())):
        rows = {"image": [picture(1), picture(2)], "label": pa.array([0, number], kind)}
        pq.write_table(pa.table(rows), tmp_path / "large.parquet")
        text = refusal(tmp_path / "large.parquet")
        assert f"has the label {number}; class numbers must be below 1,000,000" in text
    assert "names for 1 classes" in refusal(write_parquet(tmp_path / "b.parquet", [1, 2], [0, 1], ["only"]))
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    write_parquet(tmp_path / "x/1.parquet", [1], [0], ["cat"])
    write_parquet(tmp_path / "x/2.parquet", [1], [0], ["dog"])
    assert "other classes" in refusal(tmp_path / "x/*.parquet")
    write_parquet(tmp_path / "y/1.parquet", [1], [0])
    write_parquet(tmp_path / "y/2.parquet", [1])
    assert "some have none" in refusal(tmp_path / "y/*.parquet")


def test_the_toy_world_is_a_source() -> None:
    source = open_images("toyworld://all?split=train&size=32&num=40")
    assert isinstance(source, Source) and len(source) == 40


@pytest.mark.packs
def test_every_pack_opens(packs: Path) -> None:
    for path in sorted(packs.glob("*/t*.parquet")):
        source = open_images(str(path))
        first, last = source.get(0), source.get(len(source) - 1)
        assert first[0].shape[0] == last[0].shape[0] == 3
        assert source.labels is None or (source.classes and source.labels.max() < len(source.classes))


def test_small_pictures_of_our_own_runs_are_no_data(tiny_folder: Path, tmp_path: Path) -> None:
    """`--images .` in a folder that has runs in it."""
    shutil.copytree(tiny_folder, tmp_path / "photos")
    run = tmp_path / "runs" / "clusters"
    shutil.copytree(tiny_folder, run / "thumbs")
    for name in (".lock", "config.json"):
        (run / name).write_text("{}")
    assert len(open_images(str(tmp_path))) == len(open_images(str(tiny_folder)))
    assert len(open_images(str(run))) == 24  # asked for by name
