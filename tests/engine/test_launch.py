"""What a process makes of the variables that torchrun sets."""

import pytest
import torch

import moce
from moce.__main__ import run
from moce.engine import processes
from moce.engine.devices import num_workers_of, pick_device, spare_cores
from moce.errors import UserError
from moce.stages.feed import cropped_on


def as_one_of(monkeypatch: pytest.MonkeyPatch, world: int, rank: int = 0) -> None:
    for name, value in {
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "RANK": rank,
        "LOCAL_RANK": rank,
    }.items():
        monkeypatch.setenv(name, str(value))


def test_verbs_of_one_process_are_not_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    as_one_of(monkeypatch, 2)
    with pytest.raises(UserError, match=r"`moce inspect` runs in one process; start it without torchrun"):
        run(["inspect", "somewhere"])


def test_python_does_not_start_processes() -> None:
    with pytest.raises(UserError, match=r"--devices 2 is for the command line alone"):
        moce.pretrain(images="somewhere", out="nowhere", devices=2)


def test_variables_in_part_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        UserError,
        match=r"WORLD_SIZE is 2 but RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set",
    ):
        processes.join("cpu", 1.0)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match=r"WORLD_SIZE must be a whole number, not 'two'"):
        processes.join("cpu", 1.0)


def test_each_process_takes_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    as_one_of(monkeypatch, 2, rank=1)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"--device cuda:1 is one device for 2 processes"):
        pick_device("cuda:1")
    as_one_of(monkeypatch, 3)
    with pytest.raises(UserError, match=r"This machine has 2 CUDA devices for 3 processes"):
        pick_device("auto")


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert spare_cores() == 15 and num_workers_of(-1) == 8
    as_one_of(monkeypatch, 4)
    assert spare_cores() == 3 and num_workers_of(-1) == 3 and num_workers_of(5) == 5


def test_pictures_are_cropped_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40 * 2**30, 80 * 2**30))
    assert cropped_on(gpu, cache_gib=4.0) == gpu and cropped_on(gpu, cache_gib=11.0) is None
    assert cropped_on(torch.device("cpu"), cache_gib=4.0) is None
