"""One arm minus another, picture by picture: values, seeds and 95 % intervals of a protocol's cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from moce.errors import UserError
from moce.study.intervals import RESAMPLED, RESAMPLES, over_tasks, percentiles, resampled

CHANCE = "What another seed of training would give is not in the intervals."

Seeds = Mapping[int, dict[str, Any]]  # the cells of an arm and a task, by seed


@dataclass(frozen=True)
class Difference:
    """What one arm has beyond another on one task."""

    task: str
    metric: str
    by_seed: dict[int, float]
    trainings: int = 1  # pairs of runs behind the seeds: one where the same models stand beside every seed
    scores: Float[np.ndarray, " pictures"] | None = None  # difference of each test picture, mean of the seeds
    labels: Int64[np.ndarray, " pictures"] | None = None

    @property
    def value(self) -> float:
        """Mean of the seeds."""
        return sum(self.by_seed.values()) / len(self.by_seed)


@dataclass(frozen=True)
class Pair:
    """One arm minus another by one protocol, over the tasks that both were measured on with the same seeds."""

    arm: str
    against: str
    differences: list[Difference]
    seed: int = 0  # of the resampling
    draws_RT: Float[np.ndarray, "resamples tasks"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        columns = [
            np.full(1, d.value)
            if d.scores is None or d.labels is None
            else resampled(d.metric, d.scores, d.labels, np.random.default_rng([self.seed, number]))
            for number, d in enumerate(self.differences)
        ]
        drawn = np.stack([np.broadcast_to(column, RESAMPLES) for column in columns], axis=1)
        object.__setattr__(self, "draws_RT", drawn)

    def summary(self) -> dict[str, Any]:
        """As JSON; intervals are null where there is nothing to resample."""
        fixed = [d.task for d in self.differences if d.scores is None]
        mean = float(np.mean([d.value for d in self.differences]))
        several = len(self.differences) > 1
        tasks = over_tasks(self.draws_RT, np.random.default_rng([self.seed, len(self.differences)]))
        seeds = sorted({seed for d in self.differences for seed in d.by_seed})
        whole = [seed for seed in seeds if all(seed in d.by_seed for d in self.differences)]
        means = {str(seed): float(np.mean([d.by_seed[seed] for d in self.differences])) for seed in whole}
        trainings = min(d.trainings for d in self.differences)
        spread = trainings > 1 and len(means) > 1
        return {
            "arm": self.arm,
            "against": self.against,
            "tasks": len(self.differences),
            "value": mean,
            "pictures": None
            if len(fixed) == len(self.differences)
            else percentiles(self.draws_RT.mean(axis=1)),
            "pictures_and_tasks": percentiles(tasks) if several else None,
            "not_resampled": fixed,
            "seeds": means,
            "trainings": trainings,
            "seed_deviation": float(np.std(list(means.values()), ddof=1)) if spread else None,
            "per_task": {
                d.task: {
                    "value": d.value,
                    "pictures": None if d.scores is None else percentiles(self.draws_RT[:, number]),
                    "seeds": {str(seed): value for seed, value in d.by_seed.items()},
                    "trainings": d.trainings,
                }
                for number, d in enumerate(self.differences)
            },
        }


def stands_out(found: Mapping[str, Any]) -> bool:
    """Whether a difference as JSON may be marked: several trainings, all on one side of 0, as is the interval."""
    ends = [*(found["pictures"] or ()), *found["seeds"].values()]
    one_side = all(end > 0 for end in ends) or all(end < 0 for end in ends)
    return found.get("trainings", 1) > 1 and found["pictures"] is not None and one_side


def difference(task: str, own: Seeds, other: Seeds) -> Difference | None:
    """Own minus other, over the seeds that both have; None without such.

    Raises UserError where the two were tested on other pictures.
    """
    pairs = {seed: (own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())}
    if not pairs:
        return None
    first = next(iter(pairs.values()))[0]
    by_seed = {seed: a["value"] - b["value"] for seed, (a, b) in pairs.items()}
    cells = [cell for pair in pairs.values() for cell in pair]
    runs = {tuple(cell.get("study", {}).get("run") for cell in pair) for pair in pairs.values()}
    if first["metric"] not in RESAMPLED or any("predicted" not in cell for cell in cells):
        return Difference(task, first["metric"], by_seed, len(runs))
    for cell in cells:
        if cell["labels"] != first["labels"]:
            raise UserError(
                f"{task}: the cells of {first['method']} and {cell['method']} were tested on other pictures; delete "
                "those of one of them, and the same command measures them again."
            )
    labels = np.asarray(first["labels"])
    right = [[np.asarray(cell["predicted"]) == labels for cell in pair] for pair in pairs.values()]
    scores = np.mean([a.astype(float) - b for a, b in right], axis=0)
    read = labels >= 0  # one that cannot be read has no class
    return Difference(task, first["metric"], by_seed, len(runs), scores[read], labels[read])
