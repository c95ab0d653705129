"""Timing that holds on a machine whose speed drifts: what is compared takes turns, and the median of the turns counts.

    build A, B, C    A B C    A B C    A B C    ...

Each job is built and run once before anything is timed; that run is also when its memory is looked at. Kernels are
chosen in it, so it is the job's warm-up. Of several, the first is built and run once before that, or libraries that
load with it, and what it shares with others, would be its memory alone.
"""

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from moce.engine.devices import peak_rss_bytes


@runtime_checkable
class Job(Protocol):
    """Something to be timed, ready to run."""

    flops_per_image: float  # of the arithmetic that is wanted; 0 where there are no matrix products

    def seconds(self) -> float:
        """Do it once; how long one unit of it (a step, a pass) took."""


class LeftOut(Exception):
    """A job that cannot be built here; the message is a sentence that says why."""


@dataclass(frozen=True)
class Variant:
    """What a row of the result is about."""

    name: str
    setting: dict[str, Any]
    images: int  # in the unit that `seconds` is about
    build: Callable[[], Job]
    against: str | None = None  # the row that it is compared with
    prepare: Callable[[], Any] = lambda: None  # what it shares with others; not counted to its memory


@dataclass
class Timed:
    """What came out."""

    variant: Variant
    peak_bytes: int
    seconds: list[float] = field(default_factory=list)
    flops_per_image: float = 0.0

    @property
    def median(self) -> float:
        """Seconds of the middle turn."""
        return statistics.median(self.seconds)


def warm_up(variant: Variant) -> None:
    """Let libraries load, and what a variant shares with others be made, where nobody's memory is looked at."""
    variant.prepare()
    variant.build().seconds()


def built(variant: Variant, device: torch.device) -> tuple[Timed, Job]:
    """A job after its first run, whose memory is that of the row. Raises LeftOut."""
    variant.prepare()
    with peak_memory(device) as memory:
        job = variant.build()
        job.seconds()
    return Timed(variant, memory.peak_bytes, [], job.flops_per_image), job


def take_turns(
    variants: Sequence[Variant],
    repeats: int,
    device: torch.device,
    tick: Callable[[str], None] = lambda name: None,
    left_out: Callable[[str], None] = lambda reason: None,
) -> list[Timed]:
    """Build every variant, then run them one after the other, `repeats` times.

    `tick` is called with the row's name after every run, the warm-up included; `left_out` with the reason for a
    variant that cannot be built.
    """
    found: list[tuple[Timed, Job]] = []
    for variant in variants:
        try:
            if len(variants) > 1 and not found:
                warm_up(variant)
            found.append(built(variant, device))
        except LeftOut as reason:
            left_out(str(reason))
            continue
        tick(variant.name)
    for _ in range(repeats):
        for timed, job in found:
            timed.seconds.append(job.seconds())
            tick(timed.variant.name)
    return [timed for timed, _ in found]


@dataclass
class Call:
    """The job that calls a function `times` times; its unit is one call."""

    function: Callable[[], Any]
    flops_per_image: float
    device: torch.device
    times: int = 1

    def seconds(self) -> float:
        """Mean of the calls, the device's work included."""
        wait_for(self.device)
        started = time.perf_counter()
        for _ in range(self.times):
            self.function()
        wait_for(self.device)
        return (time.perf_counter() - started) / self.times


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Memory:
    """Filled in when the block ends."""

    peak_bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """The most memory beyond what was there before: of the GPU, or of this process.

    A process keeps memory that was freed and reuses it, so it is given back first, or only the first of several jobs
    would seem to need any. Where Linux does not let a process reset its peak, the growth of the overall peak is all
    there is, and it may be 0.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        memory = Memory()
        yield memory
        memory.peak_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    reset = _reset_peak()
    before = _status("VmRSS") if reset else peak_rss_bytes()
    memory = Memory()
    yield memory
    memory.peak_bytes = max((_status("VmHWM") if reset else peak_rss_bytes()) - before, 0)


def _reset_peak() -> bool:
    """Give freed memory back and let the peak start from now; whether that worked."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
