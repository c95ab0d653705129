"""`moce prepare` interrupted, repeated, changed, and on disks that fail: what is whole stays, and nothing else."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepared_formats import FORMATS

import moce
from moce.errors import UserError
from moce.images.sources import open_images


@pytest.fixture(scope="module")
def many(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """288 small files, and a broken one."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(12):
        for path in sorted(tiny_folder.rglob("*.*")):
            (folder / f"{path.parent.name}-{number:02d}-{path.name}").hardlink_to(path)
    (folder / "broken.jpg").write_bytes(b"<html>404</html>")
    return folder


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [("parquet", signal.SIGKILL, -9), ("tar", signal.SIGTERM, 143), ("array", signal.SIGINT, 130)],
)
def test_an_interrupted_one_continues_to_the_same_bytes(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, number: int, code: int
) -> None:
    options = {"images": str(many), "short_side": 16, "format": kind, "shard_mib": 0.006}
    moce.prepare(**options, out=tmp_path / "whole", num_workers=0, quiet=True)
    out = tmp_path / "cut"
    words = [w for name, value in options.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "moce", "prepare", *words, "--out", str(out), "--num-workers", "1"]
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        while seen(out) < 48:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, number)
        assert process.wait(60) == code and "Traceback" not in (tmp_path / "stderr").read_text()
    finally:
        process.kill()
    assert 48 <= seen(out) < 289
    with pytest.raises(UserError, match="is not finished .* run its `moce prepare` command again"):
        open_images(str(out))
    assert moce.inspect(out)["finished"] is False
    capsys.readouterr()
    moce.prepare(**options, out=out)
    assert "continues after" in capsys.readouterr().err
    assert files_of(out) == files_of(tmp_path / "whole")


def seen(out: Path) -> int:
    return json.loads((out / "prepared.json").read_text())["seen"] if (out / "prepared.json").is_file() else 0


def files_of(folder: Path) -> dict[str, bytes]:
    own = ("config.json", "result.json")  # paths, times
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in own}


def test_a_finished_one_is_left_alone_and_a_changed_option_is_named(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"images": prepared / "in", "out": prepared / "parquet", "shard_mib": 0.004}
    before = files_of(prepared / "parquet")
    moce.prepare(**options, short_side=20, num_workers=1)
    assert "is finished" in capsys.readouterr().err
    with pytest.raises(UserError, match="--short-side was 20 and is now 24; --quality was 90 and is now 80"):
        moce.prepare(**options, short_side=24, quality=80)
    assert files_of(prepared / "parquet") == before


@pytest.mark.parametrize("kind", FORMATS)
def test_more_than_five_per_cent_broken_is_refused_and_keeps_whole_files_alone(
    many: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    for path in sorted(many.iterdir())[:40]:
        (tmp_path / "in" / path.name).hardlink_to(path)
    for number in range(5):
        (tmp_path / "in" / f"z{number}.png").write_bytes(b"")
    options = {"images": tmp_path / "in", "short_side": 16, "format": kind, "num_workers": 0, "quiet": True}
    words = r"Already 3 of the first 43 of 45 pictures in .* cannot be read \(first: z0.png: .*\); at most 5%"
    with pytest.raises(UserError, match=words):
        moce.prepare(**options, out=tmp_path / "whole")  # one file, which is not whole when it is refused
    assert not (tmp_path / "whole").exists()
    out = tmp_path / "files"
    with pytest.raises(UserError, match=words):
        moce.prepare(**options, out=out, shard_mib=0.006)
    about = json.loads((out / "prepared.json").read_text())
    assert about["seen"] > 0 and all((out / shard["file"]).is_file() for shard in about["shards"])
    with pytest.raises(UserError, match=words):  # it goes on where it was, and says so again
        moce.prepare(**options, out=out, shard_mib=0.006)


def test_what_is_not_its_own_stays_when_it_is_refused(many: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    options = {"images": tmp_path / "in", "short_side": 16, "num_workers": 0, "quiet": True}
    moce.prepare(images="toyworld://digits?num=2", out=tmp_path / "out", short_side=16, quiet=True)
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "result.json").unlink()  # else it would be left alone
    for name in ("prepared.json", "pictures-00000.parquet"):
        (tmp_path / "out" / name).unlink()
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    about["inputs"]["images"] = open_images(str(tmp_path / "in")).fingerprint()
    about["options"] |= {"images": str(tmp_path / "in")}
    (tmp_path / "out" / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="All 1 pictures"):
        moce.prepare(**options, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_stops_the_work_and_keeps_it(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """As if it were taken away after 200 pictures: none of the others counts as broken, and it continues."""
    options = {"images": many, "short_side": 16, "shard_mib": 0.006, "quiet": True, "num_workers": workers}
    plain = os.open

    def failing(path: object, *rest: int) -> int:
        if Path(str(path)).parent == many and sorted(os.listdir(many)).index(Path(str(path)).name) > 200:
            raise OSError(errno.EIO, "Input/output error")
        return plain(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("moce.stages.prepare.SAMPLE", 1)
    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(
        UserError, match=r"cannot be read \(Input/output error\): see to the disk and run again"
    ):
        moce.prepare(**options, out=tmp_path / "out")
    monkeypatch.undo()
    assert seen(tmp_path / "out") > 100
    moce.prepare(**options, out=tmp_path / "out")
    moce.prepare(**options, out=tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_out_and_pictures_in_one_place_are_refused_and_nothing_is_lost(
    prepared: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    for kind in FORMATS:
        shutil.copytree(prepared / kind, tmp_path / kind)
    shutil.copytree(tiny_folder, tmp_path / "in")
    (tmp_path / "link").symlink_to(tmp_path / "array")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    cases = [
        (tmp_path / "parquet", "parquet", "holds the pictures of"),
        (tmp_path / "parquet" / "pictures-*.parquet", "parquet", "holds the pictures of"),
        (f"wds:{tmp_path}/tar/*.tar", "tar", "holds the pictures of"),
        (tmp_path / "array", "link", "holds the pictures of"),
        (tmp_path / "in" / "rings", "in", "holds the pictures of"),
        (tmp_path / "in", "in/small", "lies in the folder of"),
        (f"torchvision://ImageFolder?root={tmp_path}/in", "in/small", "lies in the folder of"),
    ]
    for images, out, words in cases:
        with pytest.raises(UserError, match=f"--out .*{out} {words} --images '.*'; name a"):
            moce.prepare(images=images, out=tmp_path / out, short_side=20, overwrite=True, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_too_little_space_is_said_before_the_start(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moce.stages.prepare.SAMPLE", 4)
    free = 65 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, free))
    options = {"images": many, "out": tmp_path / "out", "short_side": 280, "format": "array", "quiet": True}
    with pytest.raises(UserError, match="has 65 MiB free and this needs about 72 MiB"):
        moce.prepare(**options)
    assert seen(tmp_path / "out") == 0


def test_a_full_disk_meanwhile_keeps_what_is_whole(many: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk."""
    options = {"images": many, "short_side": 16, "format": "array", "shard_mib": 0.03, "quiet": True}
    options["num_workers"] = 0
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        with pytest.raises(UserError, match="Cannot write .*images.unfinished: the disk is full"):
            moce.prepare(**options, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert seen(out) > 100
    moce.prepare(**options, out=out)
    moce.prepare(**options, out=tmp_path / "whole")
    assert files_of(out) == files_of(tmp_path / "whole")
