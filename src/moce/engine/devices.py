"""Which device computes, in which precision, and how much of its peak is used."""

import ctypes
import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from moce.engine.launch import local_rank, local_world_size, usable_cores, world_size
from moce.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device of an option: auto takes a GPU where there is one. UserError for one that is not there.

    Every stage asks before it computes, so this is also where the process is told to keep freed memory.
    """
    keep_freed_memory()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        return own_gpu()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device cannot be '{name}': choose auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} is not there: this machine has {torch.cuda.device_count()} CUDA devices."
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device cannot be '{name}': choose auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and world_size() > 1:
        raise UserError(
            f"--device {name} is one device for {world_size()} processes; give cuda, and each takes its own."
        )
    return device


def own_gpu() -> torch.device:
    """The GPU of this process, one of several; UserError when there are more processes than GPUs."""
    there = torch.cuda.device_count()
    if local_world_size() > there:
        raise UserError(
            f"This machine has {there} CUDA devices for {local_world_size()} processes; start one for each, or give "
            "--device cpu."
        )
    return torch.device("cuda", local_rank())


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; on its way to a GPU nobody waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@functools.cache
def _cpu_multiplies_in_bf16() -> bool:
    """Whether the processor has bf16 matrix instructions; without them bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def multiplies_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether matrix products of training run in bf16: asked for, or `auto` and the hardware has it."""
    if precision == "auto":
        return torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_in_bf16()
    return precision == "bf16"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 matrix products with fp32 weights, or nothing."""
    if multiplies_in_bf16(device, precision):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@contextmanager
def coarse_products(device: torch.device) -> Iterator[None]:
    """Matrix products of fp32 on a CPU multiply in bf16 and add in fp32, where it has instructions for that.

    Inputs lose all but 8 bits, results do not: the error of a cosine of long vectors is some 1e-4, and random. On other
    CPUs and on GPUs nothing changes.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and _cpu_multiplies_in_bf16():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def spare_cores() -> int:
    """Cores for workers that read pictures: all but one of those that fall to this process."""
    return max(usable_cores() // local_world_size() - 1, 0)


def num_workers_of(option: int) -> int:
    """The option --num-workers resolved: -1 takes the spare cores, at most 8."""
    return min(spare_cores(), 8) if option < 0 else option


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep memory that is freed instead of giving it back to the system.

    A training step frees and allocates the same large tensors again; without this each of them is mapped anew and
    faulted in page by page, which on some machines costs as much as the arithmetic. Nothing happens elsewhere.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        return


@functools.cache
def peak_flops(device_type: str, bf16: bool) -> float:
    """Measured peak of a matrix product on this device, FLOP/s: what utilisation is a share of."""
    device = torch.device(device_type)
    size = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if bf16 else torch.float32
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_rss_bytes() -> int:
    """The most memory this process has held so far."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
