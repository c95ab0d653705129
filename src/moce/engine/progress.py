"""Progress for people: on stderr, only where something takes longer than three seconds."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

APPEARS_AFTER = 3.0  # seconds
TERMINAL_EVERY = 0.2
LOG_EVERY = 15.0


def clock(seconds: float) -> str:
    """'1:05' or '2:03:09'."""
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Track:
    """Counts what is done; says how fast it goes and how long it still takes."""

    def __init__(self, total: int, what: str, unit: str, quiet: bool, done: int = 0) -> None:
        self.total, self.what, self.unit, self.quiet = total, what, unit, quiet
        self.done = self.done_before = done
        self.note = ""
        self.start = self.shown = time.monotonic()
        self.visible = False
        self.terminal = sys.stderr.isatty()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.done_before) / max(time.monotonic() - self.start, 1e-9)

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them."""
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        waited = now - self.shown
        if self.quiet or now - self.start < APPEARS_AFTER:
            return
        if not self.visible or waited >= (TERMINAL_EVERY if self.terminal else LOG_EVERY):
            self._show(now)

    def _show(self, now: float) -> None:
        self.shown, self.visible = now, True
        left = (self.total - self.done) / max(self.rate, 1e-9)
        text = (
            f"{self.what}: {self.done:,}/{self.total:,} {self.unit}, {self.rate:,.0f} {self.unit}/s, "
            f"{clock(left)} left{', ' + self.note if self.note else ''}"
        )
        if self.terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """The last line: how long it took."""
        if self.visible:
            took = clock(time.monotonic() - self.start)
            start = "\r\x1b[K" if self.terminal else ""
            print(
                f"{start}{self.what}: {self.done:,} {self.unit} in {took}, {self.rate:,.0f} {self.unit}/s",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def track(total: int, what: str, unit: str = "images", quiet: bool = False, done: int = 0) -> Iterator[Track]:
    """Show the progress of a block; `done` units were done before it (a run that continues)."""
    bar = Track(total, what, unit, quiet, done)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def errors_alone(*libraries: str) -> Iterator[None]:
    """In the block the loggers of these libraries tell of errors alone; their reports of attempts are for nobody."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def say(text: str, quiet: bool = False) -> None:
    """A line for people, on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)
