"""Turns that may end in time and go on later: of every row what was timed is there after each of its runs.

    build A    A    build B    B    build C    C    A    B    C    A ...

What is compared takes turns, as in timing.py. Here a row is built, and run once, before its own first turn and not
before the turns of all, so that a study of little time comes to an end as well: row by row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moce.engine.progress import clock, say, track
from moce.study.bench.rows import rows_of
from moce.study.bench.timing import Job, Timed, Variant, built, warm_up
from moce.transfer.finetune import LONG


@dataclass(frozen=True)
class Row:
    """What is timed, what else stands in its row of JSON, and what a run takes, where that is known before."""

    variant: Variant
    facts: Callable[[Timed], dict[str, Any]]  # asked for once, after the first run
    expected: Callable[[dict[str, float]], float | None] = lambda medians: None  # from those of other rows


@dataclass
class Turns:
    """The rows of a part, with what of them was timed so far: {name: {seconds, peak_bytes, flops_per_image, facts}}."""

    rows: Sequence[Row]
    repeats: int
    device: torch.device
    kept: dict[str, dict[str, Any]]

    def take(self, what: str, quiet: bool, require: Callable[[], None], save: Callable[[], None]) -> None:
        """Time what is missing; `require`, which may raise, is asked before every run, `save` called after it."""
        jobs: dict[str, Job] = {}
        done = sum(len(own["seconds"]) for own in self.kept.values())
        with track(len(self.rows) * self.repeats, what, "runs", quiet, done) as bar:
            for turn in range(self.repeats):
                for row in self.rows:
                    name = row.variant.name
                    if self._taken(row) > turn:
                        continue
                    require()
                    if name not in jobs:
                        self._say_how_long(row, quiet)
                        jobs[name] = self._built(row, first=not jobs)
                    self.kept[name]["seconds"].append(jobs[name].seconds())
                    save()
                    bar.advance(1, name)

    def finished(self) -> list[dict[str, Any]]:
        """Rows as of `moce bench` with their facts: those that had all of their turns."""
        own = [row for row in self.rows if self._taken(row) >= self.repeats]
        timed = [self._timed(row) for row in own]
        facts = [self.kept[row.variant.name]["facts"] for row in own]
        return [{**row, **more} for row, more in zip(rows_of(timed, self.device), facts, strict=True)]

    def _taken(self, row: Row) -> int:
        """Turns that a row had."""
        return len(self.kept.get(row.variant.name, {}).get("seconds", ()))

    def _timed(self, row: Row) -> Timed:
        found = self.kept[row.variant.name]
        return Timed(row.variant, found["peak_bytes"], found["seconds"], found["flops_per_image"])

    def _built(self, row: Row, first: bool) -> Job:
        """A job after its first run, whose memory is that of the row, unless that is known; `first` in this process."""
        known = row.variant.name in self.kept
        if first and not known:
            warm_up(self.rows[0].variant)
        timed, job = built(row.variant, self.device)
        if not known:
            self.kept[row.variant.name] = {
                "seconds": [],
                "peak_bytes": timed.peak_bytes,
                "flops_per_image": timed.flops_per_image,
                "facts": row.facts(timed),
            }
        return job

    def _say_how_long(self, row: Row, quiet: bool) -> None:
        medians = {own.variant.name: self._timed(own).median for own in self.rows if self._taken(own)}
        seconds = medians.get(row.variant.name) or row.expected(medians)
        if seconds is not None and seconds >= LONG:
            runs = self.repeats - self._taken(row) + 1  # the first is not timed
            say(f"{row.variant.name}: {runs} runs, about {clock(seconds)} each", quiet)
