"""Runs that are killed, interrupted or repeated, with real processes: what comes out is the same to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOY = "toyworld://digits?split=train&num=160&size=32"
OPTIONS = [
    "--preset",
    "debug",
    "--checkpoint-steps",
    "4",
    "--epochs",
    "8",
    "--batch-size",
    "32",
    "--num-workers",
    "0",
]


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
    deadline = time.monotonic() + 200
    while not (steps_logged(run) and steps_logged(run)[-1]["step"] >= step):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cli) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert cli("pretrain", "--images", TOY, "--out", folder / "mae", *OPTIONS, "--quiet").code == 0
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
def test_pretrain_continues_exactly(tmp_path: Path, uninterrupted: Path, cli, number: int, code: int) -> None:
    command = ["pretrain", "--images", TOY, "--out", tmp_path / "mae", *OPTIONS]
    assert interrupt_after(start(*command), tmp_path / "mae", 9, number) == code
    assert not (tmp_path / "mae" / "model.safetensors").exists()
    assert list((tmp_path / "mae" / "checkpoints").glob("step-*.safetensors"))
    again = cli(*command)
    assert again.code == 0, again.stderr
    assert "continues after step" in again.stderr
    same_run(uninterrupted / "mae", tmp_path / "mae")


def test_experts_continue_exactly_after_kill(tmp_path: Path, uninterrupted: Path, cli) -> None:
    mae, clusters = uninterrupted / "mae", tmp_path / "clusters"
    assert cli("cluster", mae, "--images", TOY, "--out", clusters, "--quiet").code == 0
    command = ["train-experts", mae, clusters, "--images", TOY, *OPTIONS[2:]]
    assert cli(*command, "--out", tmp_path / "whole", "--quiet").code == 0
    assert (
        interrupt_after(start(*command, "--out", tmp_path / "cut"), tmp_path / "cut", 9, signal.SIGKILL) == -9
    )
    assert cli(*command, "--out", tmp_path / "cut", "--quiet").code == 0
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_left_alone_and_a_changed_option_is_named(uninterrupted: Path, cli) -> None:
    command = ["pretrain", "--images", TOY, "--out", uninterrupted / "mae", *OPTIONS]
    before = (uninterrupted / "mae" / "model.safetensors").stat().st_mtime_ns
    again = cli(*command)
    assert again.code == 0 and "is finished" in again.stderr
    other = cli(*command, "--epochs", "9", "--weight-decay", "0.1")
    assert other.code == 2
    assert (
        "--epochs was 8 and is now 9" in other.stderr
        and "--weight-decay was 0.05 and is now 0.1" in other.stderr
    )
    faster = cli(*command, "--num-workers", "1", "--precision", "fp32")
    assert faster.code == 0 and "is finished" in faster.stderr
    assert (uninterrupted / "mae" / "model.safetensors").stat().st_mtime_ns == before


def test_one_process_per_folder(tmp_path: Path, cli) -> None:
    command = ["pretrain", "--images", TOY, "--out", tmp_path / "mae", *OPTIONS[:4], "--epochs", "500"]
    first = start(*command)
    try:
        while not steps_logged(tmp_path / "mae"):
            assert first.poll() is None
            time.sleep(0.05)
        second = cli(*command)
        assert second.code == 2 and "Another process is working" in second.stderr
    finally:
        first.kill()
        first.communicate()
