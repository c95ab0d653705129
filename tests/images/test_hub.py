"""Data sets of the Hugging Face hub, from folders laid out like theirs and from the local cache; never the network."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_checks import check_fork, check_protocol, picture, refusal, values

from moce.errors import UserError
from moce.images.decode import UnreadableImage
from moce.images.sources import open_images

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's own folders."""
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def rows(count: int, start: int = 0, **columns: Any) -> Any:
    """A data set with pictures of value start, start + 1, ..., and two classes."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    content = {
        "image": [{"bytes": picture(start + i), "path": f"{i}.png"} for i in range(count)],
        "label": [i % 2 for i in range(count)],
    }
    found = datasets.Dataset.from_dict(content, features=datasets.Features(features))
    for name, column in columns.items():
        found = found.add_column(name, column)
    return found


def write(folder: Path, **splits: Any) -> Path:
    """The layout that the hub's own tools upload."""
    datasets.disable_progress_bars()
    for split, content in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        content.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_folder_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", train=rows(10), test=rows(4, 100))
    source = open_images(f"hf://{folder}?split=train")
    check_protocol(source)
    check_fork(source)
    assert values(source) == list(range(10)) and source.shards() == [range(10)]
    assert source.labels is not None and source.labels.tolist() == [0, 1] * 5
    assert source.classes == ["cat", "dog"] and source.name(3) == "train row 3"
    assert source.path(3) == "3.png"  # type: ignore[attr-defined]
    assert values(open_images(f"hf://{folder}")) == list(range(10))  # train where nothing is said
    assert values(open_images(f"hf://{folder}?split=test")) == [100, 101, 102, 103]
    assert values(open_images(f"hf://{folder}?split=train[2:4]")) == [2, 3]
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_images(f"hf://{moved}").fingerprint() == source.fingerprint()
    assert open_images(f"hf://{folder}?split=test").fingerprint() != source.fingerprint()


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for value, name in enumerate(["train/dög/a.png", "train/cat/b.png", "test/cat/c.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(value))
    source = open_images(f"hf://{tmp_path}/set")
    check_protocol(source)
    assert source.classes == ["cat", "dög"] and source.labels is not None
    assert dict(zip(values(source), source.labels.tolist())) == {0: 1, 1: 0}


def test_rows_may_name_files_of_their_own_folders_only(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "files").mkdir(parents=True)
    for path in (tmp_path / "secret", folder / "files" / "own"):
        path.write_bytes(picture(7))
    (folder / "files" / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    named = [
        str(folder / "files" / "own"), str(folder / "pipe"), str(folder / "files" / "link"),
        str(tmp_path / "secret"), f"{folder}/files/../../secret", "/dev/zero", "../secret",
    ]  # fmt: skip
    rows_of = pa.array([{"bytes": None, "path": path} for path in named])
    kind = datasets.Features({"image": datasets.Image()}).arrow_schema
    pq.write_table(
        pa.table([rows_of.cast(kind.field(0).type)], kind), folder / "train-00000-of-00001.parquet"
    )
    source = open_images(f"hf://{folder}")
    assert source.get(0)[0][0, 0, 0] == 7 and source.path(0) == "files/own"  # type: ignore[attr-defined]
    with pytest.raises(UnreadableImage, match="not a regular file"):
        source.get(1)
    for index in range(2, len(named)):
        with pytest.raises(UnreadableImage, match="leads out of the data set"):
            source.get(index)


def test_configurations_and_columns(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder / "one", train=rows(3))
    write(folder / "two", train=rows(2, 50, kind=["b", "a"], number=[4, 0], bare=[picture(8), picture(9)]))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one/data/*\n"
        "- config_name: two\n  data_files: two/data/*\n---\n"
    )
    assert values(open_images(f"hf://{folder}?config=one")) == [0, 1, 2]
    named = open_images(f"hf://{folder}?config=two&label=kind")
    assert named.classes == ["a", "b"] and named.labels is not None and named.labels.tolist() == [1, 0]
    numbers = open_images(f"hf://{folder}?config=two&label=number&column=bare")
    assert numbers.classes == list("01234") and values(numbers) == [8, 9]
    check_protocol(numbers)
    assert "['one', 'two']" in refusal(f"hf://{folder}") and "?config=" in refusal(f"hf://{folder}")
    assert "['one', 'two']" in refusal(f"hf://{folder}?config=three")
    text = refusal(f"hf://{folder}?config=two&column=imgae")
    assert "'imgae'" in text and "image (Image)" in text and "Did you mean 'image'?" in text
    assert "only label, kind, number" in refusal(f"hf://{folder}?config=two&label=no")


def test_a_downloaded_data_set_opens_without_a_network(cache: Path) -> None:
    repo = cache / "datasets--somebody--pictures"
    write(repo / "snapshots" / ("0" * 40), train=rows(5))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    source = open_images("hf://somebody/pictures?split=train")
    check_protocol(source)
    assert values(source) == [0, 1, 2, 3, 4] and source.classes == ["cat", "dog"]
    assert "Unknown split" in refusal("hf://somebody/pictures?split=x")


def test_a_data_set_that_was_opened_once_opens_without_a_network(tmp_path: Path) -> None:
    folder = write(tmp_path / "pictures", train=rows(5), test=rows(2, 30))
    first = open_images(f"hf://{folder}")
    # What the library prepares of somebody/pictures has the name of its owner before it.
    (tmp_path / "prepared" / "pictures").rename(tmp_path / "prepared" / "somebody___pictures")
    shutil.rmtree(folder)
    source = open_images("hf://somebody/pictures")
    assert values(source) == [0, 1, 2, 3, 4] and source.fingerprint() == first.fingerprint()
    assert values(open_images("hf://somebody/pictures?split=test")) == [30, 31]


def test_names_that_are_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", train=rows(2), test=rows(1))
    text = refusal("hf://somebody/else")
    assert "somebody/else" in text and "local cache" in text
    assert "there is no folder" in refusal(f"hf://{tmp_path}/none")
    text = refusal(f"hf://{folder}?split=trian")
    assert "trian" in text and "train" in text and "test" in text
    assert "only split, config, column, label" in refusal(f"hf://{folder}?splt=x")
    assert "write hf://" in refusal("hf:somebody/pictures") and "names nothing" in refusal("hf://")
    assert "twice" in refusal(f"hf://{folder}?split=train&split=test")
    assert "cannot be opened" in refusal("hf://a/b/c")


def test_streams_and_empty_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", train=rows(2))
    assert "by its index" in refusal(f"hf://{folder}?streaming=true")
    assert len(open_images(f"hf://{folder}?streaming=false")) == 2
    assert "no data" in refusal(f"hf://{folder}?split=train[:0]")
    assert "no data" in refusal(f"hf://{write(tmp_path / 'none', train=rows(0))}")
    write(tmp_path / "text", train=datasets.Dataset.from_dict({"text": ["a"]}))
    assert "no image column" in refusal(f"hf://{tmp_path}/text") and "text (string)" in refusal(
        f"hf://{tmp_path}/text"
    )


def test_damaged_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", train=rows(20))
    file = folder / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    assert "cannot be opened" in refusal(f"hf://{folder}") and "Parquet" in refusal(f"hf://{folder}")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install moce[hub]" in refusal("hf://somebody/pictures")


def test_what_save_to_disk_left(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    rows(6).save_to_disk(tmp_path / "one")
    assert values(open_images(f"hf://{tmp_path / 'one'}")) == list(range(6))
    datasets.DatasetDict(train=rows(4), test=rows(2, 50)).save_to_disk(tmp_path / "both")
    assert values(open_images(f"hf://{tmp_path / 'both'}?split=test")) == [50, 51]
    with pytest.raises(UserError, match="no split 'trian' but train, test"):
        open_images(f"hf://{tmp_path / 'both'}?split=trian")
