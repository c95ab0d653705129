"""Run folders: locks, changed options, files that are whole or not there."""

import json
from pathlib import Path

import pytest

from moce.config import CustomizeConfig, PretrainConfig
from moce.engine.files import read_json, require_space, sha256_of, write_json, write_whole
from moce.engine.runs import open_run, read_run
from moce.errors import UserError
from moce.verbs import resolve


def config(out: Path, **options: object) -> PretrainConfig:
    return resolve(PretrainConfig, {"images": "pictures", "out": str(out), "preset": "debug", **options})


def test_a_run_is_opened_continued_and_finished(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with open_run(out, "pretrain", config(out), {"images": "abc"}) as run:
        assert not run.finished
        run.metrics({"step": 1, "loss": 0.5})
        run.metrics({"step": 2, "loss": 0.4})
    with open_run(out, "pretrain", config(out), {"images": "abc"}) as run:
        run.keep_metrics_before(1)
        run.finish({"loss": 0.4})
    info = read_run(out, "pretrain")
    assert info.finished and info.result() == {"loss": 0.4} and info.inputs == {"images": "abc"}
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1]


def test_a_cut_off_metrics_line_is_dropped(tmp_path: Path) -> None:
    with open_run(tmp_path, "pretrain", config(tmp_path)) as run:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
        run.keep_metrics_before(5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'


def test_what_differs_is_named(tmp_path: Path) -> None:
    open_run(tmp_path, "pretrain", config(tmp_path), {"images": "abc"}).__exit__()
    with pytest.raises(UserError, match="--epochs was 2 and is now 7"):
        open_run(tmp_path, "pretrain", config(tmp_path, epochs=7), {"images": "abc"})
    with pytest.raises(UserError, match="not the same images"):
        open_run(tmp_path, "pretrain", config(tmp_path), {"images": "other"})
    with pytest.raises(UserError, match="a run of `moce pretrain`"):
        open_run(tmp_path, "cluster", config(tmp_path))
    open_run(
        tmp_path, "pretrain", config(tmp_path, num_workers=3, precision="fp32"), {"images": "abc"}
    ).__exit__()


def test_overwrite_starts_again(tmp_path: Path) -> None:
    with open_run(tmp_path, "pretrain", config(tmp_path)) as run:
        run.finish({"loss": 1})
    with open_run(tmp_path, "pretrain", config(tmp_path, epochs=9, overwrite=True)) as run:
        assert not run.finished
    assert read_run(tmp_path).config["epochs"] == 9


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, "pretrain", config(tmp_path)),
        pytest.raises(UserError, match="Another process is working"),
    ):
        open_run(tmp_path, "pretrain", config(tmp_path))
    open_run(tmp_path, "pretrain", config(tmp_path)).__exit__()


def test_our_part_of_somebody_elses_config(tmp_path: Path) -> None:
    options = resolve(CustomizeConfig, {"moce": "m", "out": str(tmp_path)})
    open_run(tmp_path, "customize", options, beside={"architecture": "vit"}).__exit__()
    assert read_json(tmp_path / "config.json")["architecture"] == "vit"
    assert read_run(tmp_path, "customize").verb == "customize"


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError):  # noqa: PT012 - what is tested is the end of the block
        with write_whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert read_json(path) == {"a": 1} and [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_leftovers_go_and_what_others_write_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    open_run(out, "pretrain", config(out)).__exit__()
    (out / "checkpoints").mkdir()
    leftovers = [out / ".model.part", out / "checkpoints" / ".step.part"]
    for path in leftovers:
        path.touch()
    with open_run(out / "inner", "pretrain", config(out / "inner")), write_whole(out / "inner" / "a") as own:
        own.write_text("whole")
        open_run(out, "pretrain", config(out)).__exit__()
    assert not any(path.exists() for path in leftovers)
    assert (out / "inner" / "a").read_text() == "whole"


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", 1)
    with pytest.raises(UserError, match="the disk is full"), write_whole(tmp_path / "file.json"):
        raise OSError(28, "No space left on device")
    assert read_json(tmp_path / "file.json") == 1
    with pytest.raises(UserError, match="MiB free"):
        require_space(tmp_path, 2**60)


def test_boundaries_count_in_a_fingerprint() -> None:
    assert sha256_of("ab", "c") != sha256_of("a", "bc") and len(sha256_of("")) == 16
