"""Pictures in tar files as webdataset writes them: found by index, the index kept, nothing taken on trust."""

import io
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from source_checks import check_fork, check_protocol, picture, refusal, values

from moce.errors import UserError
from moce.images import tarindex
from moce.images.decode import UnreadableImage
from moce.images.sources import EXTENSIONS, open_images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indexes are kept; a file counts as settled at once, so that a test need not wait."""
    monkeypatch.setenv("MOCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tarindex, "SETTLED", 0.0)
    return tmp_path / "cache"


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# Reading


def test_shards_written_by_webdataset(tmp_path: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(tmp_path / "set-%03d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"{i:05d}", "png": picture(i), "cls": i % 3, "txt": "a caption"})
    source = open_images(f"wds:{tmp_path}/set-{{000..002}}.tar")
    check_protocol(source)
    check_fork(source)
    assert values(source) == list(range(10))
    assert source.labels is not None and source.labels.tolist() == [i % 3 for i in range(10)]
    assert source.classes == ["0", "1", "2"]
    assert source.shards() == [range(0, 4), range(4, 8), range(8, 10)]
    assert source.name(5) == "set-001.tar 00005.png"
    by_glob = open_images(f"wds:{tmp_path}/set-*.tar")
    assert by_glob.fingerprint() == source.fingerprint()
    assert values(open_images(str(tmp_path / "set-001.tar"))) == [4, 5, 6, 7]  # without wds: too
    assert values(open_images(f"{tmp_path}/set-{{002,001}}.tar")) == [8, 9, 4, 5, 6, 7]  # in the order given


def test_every_format_that_a_folder_takes_is_found_in_a_tar_too(tmp_path: Path) -> None:
    members = {f"{i:02d}{extension.upper()}": picture(i) for i, extension in enumerate(EXTENSIONS)}
    members |= {"50.npy": b"x", "00.ppm": picture(99), "00.avif": picture(99)}
    (tmp_path / "files").mkdir()
    for name, data in members.items():
        (tmp_path / "files" / name).write_bytes(data)
    tar, folder = (
        open_images(f"wds:{write_tar(tmp_path / 'a.tar', members)}"),
        open_images(f"{tmp_path}/files"),
    )
    assert values(tar) == list(range(len(EXTENSIONS))) == [value for value in values(folder) if value != 99]
    assert {".ppm", ".pgm", ".jp2", ".j2k"} < set(EXTENSIONS)


def test_what_belongs_together_and_what_is_passed_over(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        {
            "./x/1.cls": b" 1\n",  # before its picture, and behind other members
            "readme": b"no extension",
            "__meta__/0.png": picture(99),
            ".hidden.png": picture(99),
            "x/1.seg.png": picture(50),  # a mask
            "x/2.png": picture(2),
            "x/1.JPG": picture(10, "JPEG"),
            "alone.txt": b"no picture",
            "x/2.cls": b"0",
            "x/1.png": picture(51),
        },
    )
    source = open_images(f"wds:{path}")
    check_protocol(source)
    assert [source.name(i) for i in range(len(source))] == ["a.tar x/1.JPG", "a.tar x/2.png"]
    assert values(source) == [10, 2]
    assert source.labels is not None and source.labels.tolist() == [1, 0]


def test_classes_from_json_and_by_name(tmp_path: Path) -> None:
    pictures = {f"{i}.png": picture(i) for i in range(3)}
    numbers = {"0.json": b'{"label": 2}', "1.json": b'{"cls": 0, "url": "x"}', "2.json": b'{"label": 1}'}
    source = open_images(f"wds:{write_tar(tmp_path / 'a.tar', pictures | numbers)}")
    assert source.labels is not None and source.labels.tolist() == [2, 0, 1]
    names = {"0.cls": "größe".encode(), "1.cls": b"cat", "2.cls": b"cat", "2.json": b'{"label": "dog"}'}
    source = open_images(f"wds:{write_tar(tmp_path / 'b.tar', pictures | names)}")
    assert source.labels is not None and source.labels.tolist() == [1, 0, 0]
    assert source.classes == ["cat", "größe"]
    other = {f"{i}.json": b'{"label": [1], "width": 3}' for i in range(3)}
    assert open_images(f"wds:{write_tar(tmp_path / 'c.tar', pictures | other)}").labels is None


def test_a_broken_picture_is_unreadable_not_fatal(tmp_path: Path) -> None:
    source = open_images(f"wds:{write_tar(tmp_path / 'a.tar', {'1.jpg': b'rubbish', '2.png': picture(2)})}")
    with pytest.raises(UnreadableImage):
        source.get(0)
    assert source.get(1)[0][0, 0, 0] == 2


def test_workers_of_the_loader_read_tars(tmp_path: Path) -> None:
    from moce.images.loader import centred_batches

    for file in range(2):
        write_tar(
            tmp_path / f"{file}.tar", {f"{i}.png": picture(10 * file + i, size=(9, 7 + i)) for i in range(5)}
        )
    source = open_images(f"wds:{tmp_path}/*.tar")
    found = [
        (i, v)
        for n, x in centred_batches(source, 6, 3, num_workers=2)
        for i, v in zip(n.tolist(), x[:, 0, 0, 0].tolist())
    ]
    assert found == list(enumerate([*range(5), *range(10, 15)]))


def test_the_fingerprint_tells_pictures_apart_wherever_they_lie(tmp_path: Path) -> None:
    def fingerprint(folder: str, members: dict[str, bytes]) -> str:
        (tmp_path / folder).mkdir()
        return open_images(f"wds:{write_tar(tmp_path / folder / '0.tar', members)}").fingerprint()

    first = fingerprint("a", {"1.png": picture(1), "1.cls": b"0"})
    assert fingerprint("b", {"1.png": picture(1), "1.cls": b"0"}) == first
    assert fingerprint("c", {"2.png": picture(1), "2.cls": b"0"}) != first
    assert fingerprint("d", {"1.png": picture(1) + b"longer", "1.cls": b"0"}) != first
    assert fingerprint("e", {"1.png": picture(1), "1.cls": b"1"}) != first


# The index that is kept


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The tars that are gone through from now on."""
    seen: list[Path] = []
    plain = tarindex._read
    monkeypatch.setattr(tarindex, "_read", lambda path, stamp: seen.append(path) or plain(path, stamp))
    return seen


def test_a_tar_is_gone_through_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(
        tmp_path / "a.tar", {"é.png": picture(1), "é.cls": "ü".encode(), "b.png": picture(2), "b.cls": b"x"}
    )
    seen = reads(monkeypatch)
    first = open_images(f"wds:{path}")
    again = open_images(f"wds:{path}")
    assert seen == [path] and len(list(cache.iterdir())) == 1
    assert values(again) == [1, 2] and again.classes == first.classes == ["x", "ü"]
    assert again.fingerprint() == first.fingerprint()
    kept = next(cache.iterdir())
    for count, damaged in enumerate([b"damaged", kept.read_bytes()[:-30]], start=2):
        kept.write_bytes(damaged)
        assert open_images(f"wds:{path}").fingerprint() == first.fingerprint() and len(seen) == count


def test_an_index_that_looked_for_less_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1), "b.ppm": picture(2)})
    with monkeypatch.context() as earlier:  # as version 1 wrote it
        earlier.setattr(tarindex, "VERSION", 1)
        earlier.setattr(tarindex, "PICTURES", ["png"])
        assert len(open_images(f"wds:{path}")) == 1
    assert values(open_images(f"wds:{path}")) == [1, 2]


def test_a_changed_tar_is_gone_through_again(tmp_path: Path, cache: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1), "b.png": picture(2)})
    before = path.stat()
    assert values(open_images(f"wds:{path}")) == [1, 2]
    write_tar(path, {"a.png": picture(2), "c.png": picture(3)})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    assert path.stat().st_size == before.st_size
    source = open_images(f"wds:{path}")
    assert values(source) == [2, 3] and source.name(1) == "a.tar c.png"
    assert len(list(cache.iterdir())) == 1  # the old index is gone


def test_a_tar_that_may_still_be_changing_is_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarindex, "SETTLED", 1000.0)
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1)})
    assert len(open_images(f"wds:{path}")) == 1 and not cache.exists()


def test_no_place_to_keep_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1)})
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MOCE_CACHE", str(tmp_path / "file" / "cache"))
    assert values(open_images(f"wds:{path}")) == [1]
    for variable in ("MOCE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert tarindex.cache_folder() is None and values(open_images(f"wds:{path}")) == [1]
    monkeypatch.setenv("HOME", "/somewhere")
    assert tarindex.cache_folder() == Path("/somewhere/.cache/moce")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert tarindex.cache_folder() == Path("/elsewhere/moce")


def test_a_tar_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1)})
    source = open_images(f"wds:{path}")
    time.sleep(0.02)
    write_tar(path, {"b.png": picture(1), "a.png": picture(1)})
    with pytest.raises(UserError, match="was changed while it was being read"):
        source.get(0)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        source.get(0)


# What is refused


@pytest.mark.parametrize("name", ["../up.png", "/etc/up.png", "a/../../up.txt", "./../up.png"])
def test_a_member_whose_path_climbs_out(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "a.tar", {"good.png": picture(1), name: picture(2)})
    text = refusal(f"wds:{path}")
    assert name in text and "not to be trusted" in text and str(path) in text


def test_tars_without_pictures_or_cut_off(tmp_path: Path) -> None:
    assert "holds no picture" in refusal(f"wds:{write_tar(tmp_path / 'none.tar', {'1.txt': b'x'})}")
    assert "holds no picture" in refusal(f"wds:{write_tar(tmp_path / 'empty.tar', {})}")
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": np.random.default_rng(i).bytes(5000) for i in range(4)})
    whole = path.read_bytes()
    # Within a picture, within a header, between two members, and damaged in the middle.
    for part in (whole[:8000], whole[: 5632 + 100], whole[:5632], whole[:5632] + b"x" * 512 + whole[6144:]):
        path.write_bytes(part)
        assert "is cut off" in refusal(f"wds:{path}")
    for rubbish in (b"", b"not a tar at all" * 100):
        path.write_bytes(rubbish)
        assert "not a tar file" in refusal(f"wds:{path}")


@pytest.mark.parametrize(("mode", "word"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tars(tmp_path: Path, mode: str, word: str) -> None:
    path = tmp_path / ("a.tar." + mode[2:])
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("1.png"), io.BytesIO())
    assert word in refusal(f"wds:{path}") and "unpack" in refusal(path)


def test_members_that_are_there_twice(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", [("1.png", picture(1)), ("2.png", picture(2)), ("1.png", picture(3))]
    )
    assert "'1.png' twice" in refusal(f"wds:{path}")


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar command")
def test_a_picture_with_holes_in_it(tmp_path: Path) -> None:
    with open(tmp_path / "1.png", "wb") as file:
        file.truncate(2**20)
    subprocess.run(["tar", "--sparse", "-cf", "a.tar", "1.png"], cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 2**20
    assert "'1.png' as a sparse file" in refusal(f"wds:{tmp_path}/a.tar")


def test_labels_that_cannot_be(tmp_path: Path) -> None:
    pictures = {"1.png": picture(1), "2.png": picture(2)}
    assert "none for a.tar 2.png" in refusal(
        f"wds:{write_tar(tmp_path / 'a.tar', pictures | {'1.cls': b'3'})}"
    )
    assert "is no JSON" in refusal(f"wds:{write_tar(tmp_path / 'b.tar', pictures | {'1.json': b'{'})}")
    assert "below" in refusal(
        f"wds:{write_tar(tmp_path / 'c.tar', pictures | {'1.cls': b'1', '2.cls': b'9' * 15})}"
    )


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", {"1.png": picture(1)})
    assert "No file matches" in refusal(f"wds:{tmp_path}/none-*.tar")
    text = refusal(f"wds:{tmp_path}/s-{{0..2}}.tar")
    assert f"{tmp_path}/s-1.tar" in text and "s-{0..2}.tar" in text
    assert "brace" in refusal(f"wds:{tmp_path}/s-{{0..2.tar")
    assert "is a folder" in refusal(f"wds:{tmp_path}") and "*.tar" in refusal(tmp_path)
    assert "names no file" in refusal("wds:")
    assert "copy them here" in refusal("wds:https://example.org/0.tar") and "copy" in refusal(
        "wds:pipe:cat 0.tar"
    )


def test_grey_pictures_on_request(tmp_path: Path) -> None:
    source = open_images(f"wds:{write_tar(tmp_path / 'a.tar', {'1.png': picture(7)})}", channels=1)
    assert torch.equal(source.get(0)[0], torch.full((1, 4, 5), 7, dtype=torch.uint8))
