"""How long a study may work: asked between cells, and by a timer inside of a training, which ends at a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Spent(BaseException):
    """The budget is used up; like KeyboardInterrupt no error, or what reads pictures would take it for a broken one."""


class Budget:
    """So many minutes from now; None is without an end."""

    def __init__(self, minutes: float | None) -> None:
        self.started = time.monotonic()
        self.deadline = None if minutes is None else self.started + 60 * minutes
        self._rung = self._inside = False
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """What was used so far."""
        return time.monotonic() - self.started

    def require(self) -> None:
        """Raises Spent when the time is up."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise Spent

    @contextmanager
    def within(self) -> Iterator[None]:
        """When the time is up a training in this block gets SIGTERM, writes a checkpoint, and Spent is raised.

        Outside of the main thread, which alone can handle signals, nothing interrupts the block.
        """
        self.require()
        if self.deadline is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        timer = threading.Timer(self.deadline - time.monotonic(), self._ring)
        timer.daemon = True
        before = signal.signal(signal.SIGTERM, self._unwind)
        self._inside = True
        timer.start()
        try:
            yield
        except SystemExit:
            if self._rung:
                raise Spent from None
            raise
        finally:
            with self._lock:
                self._inside = False
            timer.cancel()
            signal.signal(signal.SIGTERM, before)

    def _ring(self) -> None:
        with self._lock:
            if self._inside:
                self._rung = True
                os.kill(os.getpid(), signal.SIGTERM)

    def _unwind(self, number: int, _: object) -> NoReturn:
        """SIGTERM where no training notes it itself: its own end, or somebody's wish."""
        if self._rung:
            raise Spent
        raise SystemExit(128 + number)
