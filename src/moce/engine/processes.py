"""The processes that work on one run together, and how they put together what each of them knows.

With one process everything here is the identity, so nobody has to ask how many there are. With several, tensors on
the CPU travel by gloo and those on a GPU by nccl. Sums come out the same to the bit in every process, so decisions
that are made from them are the same everywhere.
"""

import atexit
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from moce.engine import launch
from moce.errors import ProcessLost, UserError

T = TypeVar("T")


class Group:
    """All processes of a run. `rank` 0 writes and speaks; every method must be called by all of them."""

    def __init__(self, rank: int = 0, world: int = 1, timeout: timedelta | None = None) -> None:
        self.rank, self.world = rank, world
        # What processes tell each other beside the steps travels apart from the gradients.
        self.beside: Any = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, without gradient."""
        if self.world == 1:
            return tensor
        summed = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over processes, for a loss that is a function of the whole batch.

        Its gradient is `world` times that of this process's part, because DDP divides the sum of the gradients by
        `world`: what arrives at the parameters is the gradient of the loss of the whole batch.
        """
        if self.world == 1:
            return tensor
        own = self.world * tensor
        return own + (self.sum(tensor) - own.detach())

    def averages(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over processes of each of the float tensors, in one message."""
        if self.world == 1 or not tensors:
            return tensors
        flat = self.sum(torch.cat([t.double().flatten() for t in tensors.values()])) / self.world
        parts = flat.split([t.numel() for t in tensors.values()])
        return {n: p.view_as(t).to(t.dtype) for (n, t), p in zip(tensors.items(), parts, strict=True)}

    def span(self, count: int) -> tuple[int, int]:
        """(first, all): where the `count` rows here stand among those of all processes, and how many these are."""
        if self.world == 1:
            return 0, count
        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = count
        counts = self.sum(counts)
        return int(counts[: self.rank].sum()), int(counts.sum())

    def share(self, count: int) -> range:
        """The part of `range(count)` that falls to this process."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def batches(self, count: int, size: int) -> range:
        """The part of `range(count)` that falls to this process, in whole batches of `size` but for the last one."""
        own = self.share(-(-count // size))
        return range(min(own.start * size, count), min(own.stop * size, count))

    def part_of_mean(self, count: int, total: int) -> float:
        """What a mean over `count` of `total` rows, this process's, counts where the mean over processes is taken.

        The mean over processes of part x mean is then the mean over all rows; 1 where all have as many.
        """
        return count * self.world / total if self.world > 1 else 1.0

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks."""
        if self.world == 1:
            return rows
        first, everything = self.span(len(rows))
        places = rows.new_zeros(everything, *rows.shape[1:])
        places[first : first + len(rows)] = rows
        return self.sum(places)

    def take(self, rows: Tensor, places: Tensor) -> Tensor:
        """Rows at `places` of all processes' rows; the others stay where they are."""
        if self.world == 1:
            return rows[places.to(rows.device)]
        first, _ = self.span(len(rows))
        here = (places >= first) & (places < first + len(rows))
        found = rows.new_zeros(*places.shape, *rows.shape[1:])
        found[here.to(rows.device)] = rows[(places[here] - first).to(rows.device)]
        return self.sum(found)

    def union(self, items: Iterable[int]) -> set[int]:
        """What any process has."""
        own = torch.tensor(sorted(items), dtype=torch.int64)
        return set(self.gather(own).tolist())

    def collect(self, items: list[T]) -> list[T]:
        """In process 0 the items of all processes, in the order of their ranks; in the others their own."""
        if self.world == 1:
            return items
        lists: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(items, lists, dst=0, group=self.beside)
        return items if lists is None else [item for own in lists for item in own]

    def leading(self, do: Callable[[], T]) -> T:
        """Do it in process 0, and then in the others, which find what it left: a file that had to be fetched.

        UserError in all where process 0 has one.
        """
        if self.world == 1:
            return do()
        done: list[T] = []

        def first() -> None:
            done.append(do())

        self.once(first)
        return done[0] if done else do()

    def once(self, do: Callable[[], T]) -> T:
        """Do it in process 0 alone while the others wait; what it gives, or its UserError, in all."""
        if self.world == 1:
            return do()
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = do()
            except UserError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, src=0, group=self.beside, device=torch.device("cpu"))
        if answer[1] is not None:
            raise UserError(answer[1])
        return answer[0]


ALONE = Group()
_joined = ALONE
_store: dist.Store | None = None


def group() -> Group:
    """The processes that this one works with."""
    return _joined


def store(timeout: timedelta = timedelta(seconds=30)) -> dist.Store:
    """Where the processes meet; torchrun keeps it, or else process 0."""
    global _store
    if _store is None:
        _store = next(iter(dist.rendezvous("env://", timeout=timeout)))[0]
    return _store


def join(device: str, minutes: float) -> Group:
    """Meet the other processes, once; UserError when the variables that torchrun sets are incomplete."""
    global _joined
    world = launch.world_size()
    if world == 1 or _joined.world > 1:
        return _joined
    needed = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {world} but {', '.join(missing)} is not set; start with torchrun, which sets all of them."
        )
    timeout = timedelta(minutes=minutes)
    if not dist.is_initialized():
        gpu = device != "cpu" and torch.cuda.is_available()
        if gpu and launch.local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(launch.local_rank())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=dist.PrefixStore("moce", store(timeout)),
            rank=launch.rank(),
            world_size=world,
            timeout=timeout,
        )
    _joined = Group(dist.get_rank(), dist.get_world_size(), timeout)
    atexit.register(leave)
    return _joined


def leave() -> None:
    """Part from the other processes; the end of a program."""
    global _joined
    if _joined.world > 1:
        _joined = ALONE
        dist.destroy_process_group()


@contextmanager
def together(config: Any) -> Iterator[Any]:
    """A block that all processes run with the options of a verb; all but process 0 do it quietly.

    ProcessLost when another process is gone.
    """
    try:
        joined = join(config.device, config.timeout_minutes)
        yield config if joined.rank == 0 else dataclasses.replace(config, quiet=True)
    except RuntimeError as error:
        if launch.world_size() > 1 and _is_of_the_connection(error):
            raise ProcessLost(
                f"Another process of this run has ended or does not answer ({_reason(error)}); the same command "
                "continues from the last checkpoint."
            ) from None
        raise


def _reason(error: RuntimeError) -> str:
    """The part of a message of torch's that says what happened: '[file:line] what happened. Advice.'"""
    first = (str(error).splitlines() or [""])[0]
    return first.partition("] ")[2].partition(". ")[0] or first


def _is_of_the_connection(error: RuntimeError) -> bool:
    lost = (
        "closed by peer",
        "reset by peer",
        "Broken pipe",
        "Timed out waiting",
        "Application timeout",
        "NCCL error",
    )
    return isinstance(error, dist.DistError) or any(words in str(error) for words in lost)
