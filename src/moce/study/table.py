"""Evaluations as a table: tasks by methods, protocol by protocol, for the page and for the terminal."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from moce.study.intervals import Interval, interval, of_sum

ORDER = (
    "MAE", "MAE*", "MAE*, MLPs alone", "data selection", "data selection, MLPs alone",
    "TokenMoE", "TokenMoE, shared gradient", "SDR", "random clusters", "random clusters, shared gradient",
    "MoCE", "MoCE, shared gradient",
)  # fmt: skip
NEEDED = ("task", "protocol", "method", "value", "metric", "num_test", "model")
SAME = (
    "model_fingerprint",
    "method",
    "task",
    "protocol",
    "num_train",
    "num_test",
    "seed",
    "settings",
    "value",
)


def is_evaluation(content: Any) -> bool:
    """Whether `content` is one result of `moce evaluate`."""
    return isinstance(content, dict) and "schema" in content and all(name in content for name in NEEDED)


def percent(value: float) -> str:
    """0.7123 as '71.2'."""
    return f"{100 * value:.1f}"


@dataclass(frozen=True)
class Table:
    """Results of one protocol."""

    protocol: str
    results: list[dict[str, Any]]
    order: tuple[str, ...] = ORDER  # of the methods; others follow by name
    # Shown, but never the best and without a rank: references that are no methods, such as an oracle, and what was
    # measured with fewer seeds than others, whose mean is less sure.
    unranked: frozenset[str] = frozenset()
    methods: list[str] = field(init=False)
    tasks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(r["method"] for r in self.results))
        known = [m for m in self.order if m in names]
        object.__setattr__(self, "methods", known + sorted(m for m in names if m not in self.order))
        object.__setattr__(self, "tasks", list(dict.fromkeys(r["task"] for r in self.results)))

    def of(self, task: str, method: str) -> list[dict[str, Any]]:
        """The results of a task and method: several where there are several seeds or models."""
        return [r for r in self.results if r["task"] == task and r["method"] == method]

    def value(self, task: str, method: str) -> float | None:
        """Their mean; None without any."""
        values = [r["value"] for r in self.of(task, method)]
        return sum(values) / len(values) if values else None

    def metric(self, task: str) -> str:
        """How the task is scored."""
        return next(r["metric"] for r in self.results if r["task"] == task)

    def best(self, task: str) -> set[str]:
        """The methods with the highest value as printed; nobody where there is no rival or all are equal."""
        found = {m: percent(v) for m in self.ranked if (v := self.value(task, m)) is not None}
        highest = max(found.values(), key=float, default="")
        return {m for m, v in found.items() if v == highest} if len(set(found.values())) > 1 else set()

    @property
    def ranked(self) -> list[str]:
        """The methods that have a rank."""
        return [m for m in self.methods if m not in self.unranked]

    @property
    def shared(self) -> list[str]:
        """Tasks that every method was measured on: means over others would compare different things."""
        return [t for t in self.tasks if all(self.of(t, m) for m in self.methods)]

    def mean(self, method: str) -> float | None:
        """Mean over the shared tasks."""
        values = [self.value(task, method) for task in self.shared]
        return sum(v for v in values if v is not None) / len(values) if values else None

    def wins(self, method: str) -> int:
        """On how many shared tasks it is the best, or equal to the best as printed."""
        return sum(method in self.best(task) for task in self.shared)

    def mean_rank(self, method: str) -> float | None:
        """Mean place on the shared tasks, 1 being the best; equals share the mean of their places."""
        if not self.shared or method not in self.ranked:
            return None
        values = np.array([[self.value(task, m) for m in self.ranked] for task in self.shared])
        return float(rankdata(-values, axis=1).mean(axis=0)[self.ranked.index(method)])

    @property
    def baseline(self) -> str | None:
        """What the others are compared with: MAE*, which saw as many updates, else MAE."""
        return next((m for m in ("MAE*", "MAE") if m in self.methods and len(self.methods) > 1), None)

    def difference(self, task: str | None, method: str) -> float | None:
        """Value minus the baseline's, of a task or (None) of the mean."""
        if self.baseline is None or method == self.baseline:
            return None
        own = self.mean(method) if task is None else self.value(task, method)
        other = self.mean(self.baseline) if task is None else self.value(task, self.baseline)
        return None if own is None or other is None else own - other

    def interval(self, task: str, method: str) -> Interval | None:
        """95 % interval of `value`, from the number of test pictures.

        Several seeds are tested on the same pictures, so their mean is as uncertain as one of them.
        """
        found = [(r["value"], interval(r)) for r in self.of(task, method)]
        known = [(own, its) for own, its in found if its is not None]
        if not known or len(known) < len(found):
            return None
        value = sum(own for own, _ in known) / len(known)
        below, above = (sum(abs(own - its[side]) for own, its in known) / len(known) for side in (0, 1))
        return value - below, value + above

    def mean_interval(self, method: str) -> Interval | None:
        """95 % interval of `mean`: the tasks are what they are, their test pictures are a sample."""
        return self._sum([(1, method)], self.shared)

    def difference_interval(self, task: str | None, method: str) -> Interval | None:
        """95 % interval of `difference`."""
        if self.baseline is None or method == self.baseline or self.difference(task, method) is None:
            return None
        return self._sum([(1, method), (-1, self.baseline)], self.shared if task is None else [task])

    def _sum(self, signed_methods: list[tuple[int, str]], tasks: list[str]) -> Interval | None:
        terms = []
        for sign, method in signed_methods:
            for task in tasks:
                own, its = self.value(task, method), self.interval(task, method)
                if own is None or its is None:
                    return None
                terms.append((sign / len(tasks), own, its))
        return of_sum(terms) if terms else None

    def significant(self, task: str | None, method: str) -> bool:
        """Whether the interval of the difference leaves out 0."""
        found = self.difference_interval(task, method)
        return found is not None and not found[0] <= 0 <= found[1]

    def spread(self, task: str, method: str) -> Interval | None:
        """(lowest, highest) of several results."""
        values = [r["value"] for r in self.of(task, method)]
        return (min(values), max(values)) if len(values) > 1 else None


def distinct(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results without those that say again what an earlier one says: the same weights, task, protocol, seed,
    settings and value.

    The file that it came from, the commit and the seconds of measuring it again differ and say nothing new. A result
    that does not tell the fingerprint of its weights is compared whole, but for its file.
    """
    once: dict[str, dict[str, Any]] = {}
    for result in results:
        told = (
            {name: result.get(name) for name in SAME}
            if result.get("model_fingerprint")
            else {**result, "file": None}
        )
        once.setdefault(json.dumps(told, sort_keys=True, default=str), result)
    return list(once.values())


def tables(results: list[dict[str, Any]]) -> list[Table]:
    """One table per protocol, in the order in which the protocols come; a result given twice counts once."""
    once = distinct(results)
    protocols = dict.fromkeys(r["protocol"] for r in once)
    return [Table(p, [r for r in once if r["protocol"] == p]) for p in protocols]


def as_text(table: Table) -> str:
    """The table for a terminal, in per cent; the best of each row has a star."""
    width = max(len(task) for task in [*table.tasks, "mean of 00 tasks"]) + 2
    columns = {m: max(11, len(m) + 2) for m in table.methods}
    lines = [f"{table.protocol:<{width}}" + "".join(f"{m:>{columns[m]}}" for m in table.methods)]
    for task in table.tasks:
        best, row = table.best(task), f"{task:<{width}}"
        for method in table.methods:
            value = table.value(task, method)
            shown = "-" if value is None else percent(value)
            row += f"{shown + ('*' if method in best else ' '):>{columns[method]}}"
        lines.append(row)
    if len(table.shared) > 1:
        row = f"{'mean of ' + str(len(table.shared)) + ' tasks':<{width}}"
        for method in table.methods:
            row += f"{percent(table.mean(method) or 0) + ' ':>{columns[method]}}"
        lines.append(row)
    return "\n".join(lines)
