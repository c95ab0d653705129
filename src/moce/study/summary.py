"""What the cells of a study say, as JSON: tables, differences with intervals, costs, and which tasks gain."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from moce.study.cells import cost_of
from moce.study.intervals import RESAMPLES
from moce.study.meaning import clusters_of
from moce.study.pairs import Pair, Seeds, difference
from moce.study.plan import Arm, Plan, corpus, task_name
from moce.study.runner import Progress
from moce.study.table import Table

LEAST = 4  # tasks, for a correlation
PRIMARY = "linear"  # the protocol of the primary endpoint
FITS = {
    "winner_share": "share of the votes that the chosen cluster got",
    "entropy": "entropy of the votes",
    "mean_cosine": "mean cosine of the pictures to the centres of their clusters",
    "percentile": "percentile of that cosine among random sets of pre-training pictures",
}


class Measured:
    """The cells that are there, by protocol, task and arm."""

    def __init__(self, plan: Plan, results: list[dict[str, Any]]) -> None:
        self.plan, self.results = plan, results
        self.names = tuple(arm.name for arm in plan.arms)

    def table(self, protocol: str) -> Table:
        """Tasks by arms."""
        unranked = {arm.name for arm in self.plan.arms if arm.reference} | set(self.fewer_seeds(protocol))
        return Table(protocol, self._of(protocol), self.names, frozenset(unranked))

    def _of(self, protocol: str) -> list[dict[str, Any]]:
        return [r for r in self.results if r["protocol"] == protocol]

    def fewer_seeds(self, protocol: str) -> dict[str, list[int]]:
        """Arms that have fewer seeds than a method among them, and which, on each of the tasks that means are over."""
        everything = Table(protocol, self._of(protocol), self.names)
        tasks = everything.shared or everything.tasks
        found: dict[str, list[int]] = {}
        for arm in self.plan.arms:
            seeds = [{r["seed"] for r in everything.of(task, arm.name)} for task in tasks]
            if any(seeds) and len(self.plan.seeds_of(arm, protocol)) > 1:
                found[arm.name] = sorted(set.intersection(*filter(None, seeds)))
        methods = [arm.name for arm in self.plan.arms if arm.name in found and not arm.reference]
        most = max((len(found[name]) for name in methods), default=0)
        return {name: seeds for name, seeds in found.items() if len(seeds) < most}

    def seeds(self, arm: Arm, task: str, protocol: str) -> dict[int, dict[str, Any]]:
        """The cells of an arm by seed; where one number holds for all seeds, it stands for each."""
        found = {
            r["seed"]: r
            for r in self.results
            if (r["method"], r["task"], r["protocol"]) == (arm.name, task, protocol)
        }
        if len(self.plan.seeds_of(arm, protocol)) == 1 and found:
            return dict.fromkeys(self.plan.seeds, next(iter(found.values())))
        return found

    def pair(self, own: Arm, other: Arm, protocol: str) -> Pair | None:
        """One arm minus another; None without a task that both have."""
        tasks = self.table(protocol).tasks
        both: list[tuple[str, Seeds, Seeds]] = [
            (task, self.seeds(own, task, protocol), self.seeds(other, task, protocol)) for task in tasks
        ]
        found = [d for task, a, b in both if (d := difference(task, a, b)) is not None]
        return Pair(own.name, other.name, found) if found else None


def summary(plan: Plan, progress: Progress) -> dict[str, Any]:
    """The content of result.json; of a study that is not finished, of what is there."""
    measured = Measured(plan, progress.results)
    protocols = [p for p in plan.protocols if any(r["protocol"] == p for r in progress.results)]
    pairs = {protocol: list(pairs_of(plan, measured, protocol)) for protocol in protocols}
    found: dict[str, Any] = {
        "verb": "study",
        "schema": 1,
        "kind": plan.kind,
        "out": str(plan.out),
        "corpus": corpus(plan.images),
        "finished": not progress.left,
        "cells": {"there": len(progress.results), "left": len(progress.left)},
        "runs_left": len(progress.runs_left),
        "tasks": [task_name(task) for task in plan.tasks],
        "protocols": plan.protocols,
        "seeds": plan.seeds,
        "seeds_left_out": [seed for seed in plan.all_seeds if seed not in plan.seeds],
        "failed": progress.failed,
        "method": plan.method,
        "baseline": plan.baseline,
        "arms": [arm_facts(plan, arm, progress.results) for arm in plan.arms],
        "alike": plan.alike,
        "clusters": clusters_of(plan, progress.results),
        "dense_models": len(plan.dense),
        "resamples": RESAMPLES,
        "tables": {protocol: table_facts(measured, protocol) for protocol in protocols},
        "differences": {protocol: [pair.summary() for pair in own] for protocol, own in pairs.items()},
        "gain_and_fit": {
            p: fit for p, own in pairs.items() if (fit := gain_and_fit(plan, measured, p, own)) is not None
        },
    }
    found["primary"] = primary(plan, found["differences"])
    return found


def pairs_of(plan: Plan, measured: Measured, protocol: str) -> Iterable[Pair]:
    """Each arm minus the baseline, then the method minus each of the others."""
    method, baseline = plan.arm(plan.method), plan.arm(plan.baseline)
    wanted = [(arm, baseline) for arm in plan.arms if baseline and arm is not baseline]
    wanted += [(method, arm) for arm in plan.arms if method and arm not in (method, baseline)]
    for own, other in wanted:
        assert own is not None and other is not None
        if (pair := measured.pair(own, other, protocol)) is not None:
            yield pair


def arm_facts(plan: Plan, arm: Arm, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What an arm is and costs, mean of the runs of its cells, or of its runs where there is no cell yet."""
    own = [r for r in results if r["method"] == arm.name]
    costs = list({(r["seed"], r["study"].get("run")): r["study"].get("cost", {}) for r in own}.values())
    costs = costs or [cost_of(stage, plan.dense) for stage in arm.models.values()]
    paths = [r["model"] for r in own] if arm.selected_by else [s.path for s in arm.models.values()]
    names = (
        "parameters",
        "active_parameters",
        "flops_per_image",
        "seconds",
        "cluster_seconds",
        "dense_seconds",
    )
    mean = {n: [c[n] for c in costs if c.get(n) is not None] for n in names}
    return {
        "name": arm.name,
        "strategy": arm.strategy,
        "options": dict(arm.options),
        "as_it_is": plan.as_it_is(arm),
        "bound": arm.reference,
        "selected_by": arm.selected_by.name if arm.selected_by else None,
        "runs": list(dict.fromkeys(Path(path).name for path in paths)),
        **{n: sum(values) / len(values) if values else None for n, values in mean.items()},
    }


def table_facts(measured: Measured, protocol: str) -> dict[str, Any]:
    """A table: values by task and arm (mean of seeds, and each), means over the tasks that all have, ranks, wins."""
    table = measured.table(protocol)
    return {
        "metrics": {task: table.metric(task) for task in table.tasks},
        "values": {
            task: {
                arm: {"mean": value, "seeds": {str(r["seed"]): r["value"] for r in table.of(task, arm)}}
                for arm in table.methods
                if (value := table.value(task, arm)) is not None
            }
            for task in table.tasks
        },
        "best": {task: sorted(table.best(task)) for task in table.tasks},
        "shared": table.shared,
        "mean": {arm: table.mean(arm) for arm in table.methods},
        "mean_rank": {arm: table.mean_rank(arm) for arm in table.ranked},
        "wins": {arm: table.wins(arm) for arm in table.ranked},
        "fewer_seeds": measured.fewer_seeds(protocol),
    }


def primary(plan: Plan, differences: dict[str, Any]) -> dict[str, Any] | None:
    """The one number that was fixed before: linear probes, mean over tasks, method minus baseline."""
    for found in differences.get(PRIMARY, []):
        if (found["arm"], found["against"]) == (plan.method, plan.baseline):
            kept = (
                "arm",
                "against",
                "tasks",
                "value",
                "pictures",
                "pictures_and_tasks",
                "not_resampled",
                "seeds",
                "seed_deviation",
            )
            return {"protocol": PRIMARY, **{name: found[name] for name in kept}}
    return None


def gain_and_fit(
    plan: Plan, measured: Measured, protocol: str, pairs: Sequence[Pair]
) -> dict[str, Any] | None:
    """Gain of the method on each task beside how well a cluster fits the task, with Spearman's rank correlation."""
    pair = next((p for p in pairs if (p.arm, p.against) == (plan.method, plan.baseline)), None)
    method = plan.arm(plan.method)
    if pair is None or method is None:
        return None
    rows: list[dict[str, Any]] = []
    for own in pair.differences:
        cells = measured.seeds(method, own.task, protocol).values()
        facts = fit_of([cell.get("choice") or {} for cell in cells])
        if facts:
            rows.append({"task": own.task, "gain": own.value, **facts})
    if not rows:
        return None
    gains = [row["gain"] for row in rows]
    return {
        "tasks": rows,
        "spearman": {n: correlation([row[n] for row in rows], gains) for n in FITS if n in rows[0]},
    }


def fit_of(choices: list[dict[str, Any]]) -> dict[str, float]:
    """How well the chosen cluster fits a task, from the choices of its cells; empty where nothing voted."""
    flat = [{**choice, **(choice.get("fit") or {})} for choice in choices]
    known = {name: [own[name] for own in flat if own.get(name) is not None] for name in FITS}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def correlation(x: list[float], y: list[float]) -> dict[str, Any]:
    """Spearman's rank correlation; null where there are too few tasks or all are alike.

    What differs by rounding alone has the same rank.
    """
    x, y = ([round(value, 12) for value in own] for own in (x, y))
    if len(x) < LEAST or len(set(x)) == 1 or len(set(y)) == 1:
        return {"rho": None, "p": None, "tasks": len(x)}
    found = spearmanr(x, y)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "tasks": len(x)}
