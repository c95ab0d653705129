"""Runs that are killed, interrupted or repeated: what comes out is the same to the bit.

What is interrupted is a real process. What is not may run in this one, which has torch loaded.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared import PATIENCE

import moce

TOY = "toyworld://digits?split=train&num=160&size=32"
OPTIONS = {"preset": "debug", "checkpoint_steps": 4, "epochs": 8, "batch_size": 32, "num_workers": 0}


def as_words(options: dict[str, object]) -> list[str]:
    return [str(word) for name, value in options.items() for word in ("--" + name.replace("_", "-"), value)]


WORDS = as_words(OPTIONS)


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "moce", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_logged(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def interrupt_after(process: subprocess.Popen, run: Path, step: int, number: int) -> int:
    """Send a signal once `step` steps are logged; the exit code."""
    try:
        while not (steps_logged(run) and steps_logged(run)[-1]["step"] >= step):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.kill(process.pid, number)
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    moce.pretrain(images=TOY, out=folder / "mae", **OPTIONS, quiet=True)
    return folder


def same_run(one: Path, two: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    for a, b in zip(steps_logged(one), steps_logged(two), strict=True):
        assert a["step"] == b["step"] and a["loss"] == b["loss"] and a["lr"] == b["lr"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["kill", "term", "int"],
)
def test_pretrain_continues_exactly(
    tmp_path: Path, uninterrupted: Path, command, number: int, code: int
) -> None:
    words = ["pretrain", "--images", TOY, "--out", tmp_path / "mae", *WORDS]
    assert interrupt_after(start(*words), tmp_path / "mae", 9, number) == code
    assert not (tmp_path / "mae" / "model.safetensors").exists()
    assert list((tmp_path / "mae" / "checkpoints").glob("step-*.safetensors"))
    again = command(*words)
    assert again.code == 0, again.stderr
    assert "continues after step" in again.stderr
    same_run(uninterrupted / "mae", tmp_path / "mae")


def test_experts_continue_exactly_after_kill(tmp_path: Path, uninterrupted: Path, cli) -> None:
    """Cut and continued by processes of their own, with the preset of the dense model."""
    mae, clusters = uninterrupted / "mae", tmp_path / "clusters"
    moce.cluster(mae, images=TOY, out=clusters, quiet=True)
    options = {name: value for name, value in OPTIONS.items() if name != "preset"}
    moce.train_experts(mae, clusters, images=TOY, out=tmp_path / "whole", **options, quiet=True)
    words = ["train-experts", mae, clusters, "--images", TOY, "--out", tmp_path / "cut", *as_words(options)]
    assert interrupt_after(start(*words), tmp_path / "cut", 9, signal.SIGKILL) == -9
    assert cli(*words, "--quiet").code == 0
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_left_alone_and_a_changed_option_is_named(uninterrupted: Path, command) -> None:
    words = ["pretrain", "--images", TOY, "--out", uninterrupted / "mae", *WORDS]
    before = (uninterrupted / "mae" / "model.safetensors").stat().st_mtime_ns
    again = command(*words)
    assert again.code == 0 and "is finished" in again.stderr
    other = command(*words, "--epochs", "9", "--weight-decay", "0.1")
    assert other.code == 2
    assert (
        "--epochs was 8 and is now 9" in other.stderr
        and "--weight-decay was 0.05 and is now 0.1" in other.stderr
    )
    faster = command(*words, "--num-workers", "1", "--precision", "fp32")
    assert faster.code == 0 and "is finished" in faster.stderr
    assert (uninterrupted / "mae" / "model.safetensors").stat().st_mtime_ns == before


def test_one_process_per_folder(tmp_path: Path, command) -> None:
    words = ["pretrain", "--images", TOY, "--out", tmp_path / "mae", *WORDS, "--epochs", "500"]
    first = start(*words)
    try:
        while not steps_logged(tmp_path / "mae"):
            assert first.poll() is None
            time.sleep(0.05)
        second = command(*words)
        assert second.code == 2 and "Another process is working" in second.stderr
    finally:
        first.kill()
        first.communicate()
