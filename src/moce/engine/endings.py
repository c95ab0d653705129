"""How processes end: at a signal after a step that all agree on, and with one sentence for all of them."""

import os
import signal
import sys
import time
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from moce.engine import launch, processes
from moce.engine.processes import Group

PATIENCE = timedelta(seconds=10)
HURRY = 1.0  # seconds after which another Ctrl-C is another wish


class Interruption:
    """Notes SIGTERM and Ctrl-C, so that a checkpoint is written before the processes end.

    While nothing is `worth_saving`, and at another Ctrl-C a while later, they end at once instead. Repeated signals are
    one: torchrun, or a batch system, may pass on what the process has got already.
    """

    def __init__(self, group: Group) -> None:
        self.group, self.signal, self.noted = group, 0, 0.0
        self.worth_saving = False  # set by who takes the first step
        self._before: dict[int, Any] = {}
        self._asked: tuple[Tensor, Any] | None = None

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller decides
                continue
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        first, now = not self.signal, time.monotonic()
        if first:
            self.signal, self.noted = number, now
        hurry = number == signal.SIGINT and now - self.noted > HURRY
        before = self._before[number]
        if (first and self.worth_saving) or not (first or hurry) or before == signal.SIG_IGN:
            return
        if callable(before):
            before(number, frame)
        leave_by(number)

    def agree(self, save: bool, at_once: bool = False) -> tuple[int, bool]:
        """(signal or 0, whether to save), the same in all processes; called after every step.

        A wish of one process is granted one step later in all, unless `at_once`: the answer to this step's question
        is fetched after the next step, when it has long arrived, so that nobody waits for it.
        """
        if self.group.world == 1:
            return self.signal, save
        if self._asked is not None:
            answer = self._answer()
            if any(
                answer
            ):  # the same everywhere, so nobody asks now; a wish that remains is told after the next step
                return answer
        wishes = torch.tensor([self.signal, int(save)])
        work = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self.group.beside, async_op=True)
        self._asked = wishes, work
        return self._answer() if at_once else (0, False)

    def _answer(self) -> tuple[int, bool]:
        assert self._asked is not None
        wishes, work = self._asked
        self._asked = None
        work.wait()
        number, save = wishes.tolist()
        return number, bool(save)


def leave_by(number: int) -> NoReturn:
    """End as a signal asked."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + int(signal.SIGTERM))


def last_words(code: int, sentence: str) -> NoReturn:
    """End one of several processes; the first to get here says why, and its exit code is that of all who follow.

    Nothing is torn down: that could wait for processes that are gone.
    """
    try:
        store = processes.store(PATIENCE)
        store.set_timeout(PATIENCE)
        first = store.add("endings", 1) == 1
        if first:
            store.set("exit code", str(code))
            say(sentence)
            store.set("said", "1")
        else:
            code = int(store.get("exit code"))
            store.wait(["said"])  # torchrun ends the others as soon as one of them is gone
        if launch.rank() == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
            # This process keeps the store. Whoever was lost will not come.
            deadline, awaited = time.monotonic() + PATIENCE.total_seconds(), launch.world_size() - (code == 1)
            while store.add("endings", 0) < awaited and time.monotonic() < deadline:
                time.sleep(0.05)
    except (RuntimeError, ValueError):  # whoever keeps the store is gone
        say(sentence)
    sys.stdout.flush()
    os._exit(code)


def say(sentence: str) -> None:
    """A line on stderr, if there is anything to say."""
    if sentence:
        print(sentence, file=sys.stderr, flush=True)
