"""What an ablation changes, one factor at a time: factors and their levels, built in or from the file of the study.

A level is a few options of `moce cluster` or `moce train-experts` that differ from the base, or a strategy of choosing
a sub-model, for which nothing has to be trained. The built-in levels are relative to the base: half and twice as many
experts, the last blocks of an encoder of that depth.

In a file, `factors` is a list of built-in names, or a table of levels:

    factors = ["experts", "gate input", "strategy"]

    [factors]
    num_experts = [2, 16]                                 # values of the option of that name
    "gate input" = [{gate = "token"}, {embedding = "random"}]     # options, under a name of one's own
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moce.config import ClusterConfig, ExpertsConfig
from moce.errors import UserError, did_you_mean
from moce.stages.experts import require_sense
from moce.study.plan import WHOLE

STRATEGY = "strategy"


@dataclass(frozen=True)
class Level:
    """What differs from the base."""

    name: str
    cluster: Mapping[str, Any] = field(default_factory=dict)  # options of `moce cluster`
    experts: Mapping[str, Any] = field(default_factory=dict)  # options of `moce train-experts`
    strategy: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """All of it."""
        return {**self.cluster, **self.experts, **({STRATEGY: self.strategy} if self.strategy else {})}


@dataclass(frozen=True)
class Factor:
    """Something that can be chosen, and other choices than the base's."""

    name: str
    about: str
    levels: list[Level]


@dataclass(frozen=True)
class Base:
    """What the levels are relative to."""

    cluster: ClusterConfig
    experts: ExpertsConfig
    depth: int  # blocks of the encoder
    strategy: str  # by which it chooses

    def value(self, option: str) -> Any:
        """The base's value of an option."""
        if option == STRATEGY:
            return self.strategy
        return getattr(self.cluster if option in CLUSTER_OPTIONS else self.experts, option)


CLUSTER_OPTIONS = ("num_clusters", "rounding", "whiten", "eps", "rounds", "kmeans_iterations", "tolerance")


def values(option: str, wanted: Iterable[Any]) -> Callable[[Base], list[dict[str, Any]]]:
    """Levels of one option that do not depend on the base."""
    return lambda base: [{option: value} for value in wanted]


def times(option: str, *by: float) -> Callable[[Base], list[dict[str, Any]]]:
    """Levels of a number: the base's times each of `by`."""

    def found(base: Base) -> list[dict[str, Any]]:
        number = base.value(option)
        scaled = [number * factor for factor in by]
        whole = [max(round(n), 2) if isinstance(number, int) else n for n in scaled]
        return [{option: value} for value in dict.fromkeys(whole)]

    return found


def other_layers(base: Base) -> list[dict[str, Any]]:
    """The last block, the last two, the last two odd ones, every other, and two in the middle."""
    d = base.depth
    middle = d // 2
    sets = [(d - 1,), (d - 2, d - 1), (d - 3, d - 1), tuple(range(1, d, 2)), (middle - 1, middle + 1)]
    return [{"layers": layers} for layers in dict.fromkeys(sets) if min(layers) >= 0]


BUILT_IN: dict[str, tuple[str, Callable[[Base], list[dict[str, Any]]]]] = {
    "experts": ("experts in each layer", times("num_experts", 0.25, 0.5, 2)),
    "clusters": ("clusters", times("num_clusters", 0.25, 0.5, 2)),
    "layers": ("blocks whose MLP becomes experts", other_layers),
    "expert rate": ("factor of the experts' learning rate", times("expert_lr", 0.5)),
    "shared gradient": (
        "what the others' pictures count in an expert's gradient",
        values("shared_gradient", (0.0, 0.1, 0.3)),
    ),
    "balance": ("weight of the balance over experts", times("balance", 0, 10)),
    "imbalance": ("weight of the loss that makes a cluster's choice sharp", times("imbalance", 0, 10)),
    "distillation": (
        "weight of the distance to the dense model, and the share of training that it lasts",
        lambda base: [{"distill": 0.0}, {"distill_until": 0.5}],
    ),
    "gate input": (
        "what the gate reads: the cluster's centroid, a learned or a random vector for each cluster, or the token",
        lambda base: [{"embedding": "learned"}, {"embedding": "random"}, {"gate": "token"}],
    ),
    "meaning": ("clusters as found, or dealt out at random", values("shuffle_clusters", (True,))),
    "output scale": ("what an expert's output is multiplied by", values("output_scale", ("raw",))),
    "gate start": ("how the gates start", values("gate_start", ("random", "super-centroids"))),
    "gate noise": ("deviation of the noise on the gates", values("gate_noise", (0.0,))),
    "rounding": ("from the balanced plan to one cluster per picture", values("rounding", ("argmax",))),
    "whitening": (
        "how far the features' principal axes are made alike before clustering",
        values("whiten", (0.5,)),
    ),
    STRATEGY: (
        "how a task's sub-model is chosen",
        values(STRATEGY, ("per-layer", "average", "nearest", "knn", "random", "oracle")),
    ),
}


def factors_of(given: Any, base: Base, where: str) -> list[Factor]:
    """The factors of a study: built-in ones by name, a table of levels, or (None) all that are built in.

    Left out are levels that are the base's, those that change nothing but what their gate does not use, built-in ones
    that the base cannot have, and factors without a level. UserError for what cannot be.
    """
    if isinstance(given, dict):
        found = [Factor(name, "", own_levels(name, wanted, where)) for name, wanted in given.items()]
    else:
        for name in (names := list(BUILT_IN) if given is None else listed(given, where)):
            if name not in BUILT_IN:
                raise UserError(
                    f"{where}: there is no factor '{name}': choose some of {', '.join(BUILT_IN)}, or give a table of "
                    f"levels.{did_you_mean(name, BUILT_IN)}"
                )
        found = [
            Factor(name, BUILT_IN[name][0], [level_of(options, where) for options in BUILT_IN[name][1](base)])
            for name in names
        ]
    built_in = not isinstance(given, dict)
    kept = []
    for factor in found:
        levels = [level for level in factor.levels if differs(level, base)]
        if built_in:
            levels = [level for level in levels if possible(level, base)]
        kept.append(Factor(factor.name, factor.about, levels))
    return [factor for factor in kept if factor.levels]


def listed(given: Any, where: str) -> list[str]:
    """Names of factors; UserError for anything else."""
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise UserError(f"{where}: 'factors' must be a list of names or a table of levels, not {given!r}.")
    return [name.strip() for name in names]


def own_levels(name: str, wanted: Any, where: str) -> list[Level]:
    """The levels that a file gives: options, or values of the option that the factor is named after."""
    if not isinstance(wanted, list) or not wanted:
        raise UserError(
            f"{where} [factors]: '{name}' must be a list of values or of options, not {wanted!r}."
        )
    return [
        level_of(one if isinstance(one, dict) else {name: one}, f"{where} [factors] {name}") for one in wanted
    ]


def level_of(options: Mapping[str, Any], where: str) -> Level:
    """A level from its options, each of which belongs to the verb that has it. UserError for an unknown one."""
    known = [*CLUSTER_OPTIONS, *method_options(), STRATEGY]
    for name in options:
        if name not in known:
            raise UserError(
                f"{where}: '{name}' is no option of `moce cluster` or `moce train-experts` that changes the result, "
                f"nor strategy.{did_you_mean(name, known)}"
            )
    cluster = {name: value for name, value in options.items() if name in CLUSTER_OPTIONS}
    experts = {name: value for name, value in options.items() if name not in (*CLUSTER_OPTIONS, STRATEGY)}
    return Level(said(options), cluster, experts, options.get(STRATEGY))


def said(options: Mapping[str, Any]) -> str:
    """'num experts 4'."""
    return ", ".join(f"{name.replace('_', ' ')} {spelled(value)}" for name, value in options.items())


def method_options() -> list[str]:
    """Options of `moce train-experts` that change the result; the seed is the study's."""
    fields = ExpertsConfig.__dataclass_fields__.values()
    return [field.name for field in fields if field.metadata["role"] == "method" and field.name != "seed"]


def spelled(value: Any) -> str:
    """A value as one would read it: '9+11', '0.05', 'yes'."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def changed_experts(level: Level, base: Base) -> ExpertsConfig:
    """The base's options of experts with those of a level."""
    return replace(base.experts, **{name: like(value) for name, value in level.experts.items()})


def differs(level: Level, base: Base) -> bool:
    """Whether a level is another one than the base: more than options that its gate does not use."""
    changed = {name for name, value in level.options.items() if base.value(name) != like(value)}
    return bool(changed - set(changed_experts(level, base).idle()))


def possible(level: Level, base: Base) -> bool:
    """Whether the base may be changed so: its gate has what is changed, and sub-models where one is to be chosen."""
    experts = changed_experts(level, base)
    try:
        require_sense(replace(experts, quiet=True))
    except UserError:
        return False
    return level.strategy is None or experts.gate not in WHOLE


def like(value: Any) -> Any:
    """A value as a config has it."""
    return tuple(value) if isinstance(value, list) else value
