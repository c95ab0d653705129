"""The study `ablate`: what each choice of the method is worth, one factor at a time from a base configuration.

    base      the method with the options of [cluster] and [experts]
    level     the same with one factor changed (factors.py); strategies are measured on the base's own runs

All start from one dense model, and a level of stage 1 from clusters of its own. What is reported is the difference to
the base, paired picture by picture; several seeds say how much of it is training's chance.
"""

from pathlib import Path
from typing import Any

import timm
import torch

from moce.config import ClusterConfig, ExpertsConfig, PretrainConfig, StudyConfig
from moce.engine.runs import read_run
from moce.errors import UserError
from moce.model.autoencoder import encoder_architecture
from moce.model.weights import read_header
from moce.stages.customize import STRATEGIES, default_strategy, require_strategy
from moce.study.factors import CLUSTER_OPTIONS, Base, Factor, Level, factors_of, said, spelled
from moce.study.outcome import finish
from moce.study.plan import WHOLE, Arm, Plan, Stage, slug
from moce.study.runner import Progress
from moce.study.settings import (
    KEYS,
    LEVELS,
    TEXT,
    Settings,
    plan_with,
    read_settings,
    require_options,
    require_trainable,
    seeds_of,
)
from moce.study.starts import Start, cluster_stage, dense_stage, experts_stage
from moce.study.transfer_tables import factor_tables
from moce.verbs import resolve

BASE = "base"
COMPARE_ONLY = ("arms", "method", "baseline", "lr_from", "mae_per_seed", "clusters_per_seed")
OWN_KEYS = {name: kind for name, kind in KEYS.items() if name not in COMPARE_ONLY} | {
    "mae": TEXT,
    "clusters": TEXT,
    "factors": LEVELS,
}
DEFAULTS: dict[str, Any] = {
    "images": "toyworld://all?split=train&size=32&num=1200",
    "data_root": "toyworld://?size=32&num=120",
    "tasks": ["creatures", "letters", "plants", "textures"],
    "protocols": ["knn", "linear"],
    "preset": "demo",
}


def plan_of(config: StudyConfig, settings: Settings) -> tuple[Plan, list[Factor], Base]:
    """(what to train and measure, the factors, what they are relative to)."""
    out, seeds = Path(config.out), seeds_of(settings, config)
    dense = dense_stage(settings, out, config.seed)
    clusters = cluster_stage(settings, out, dense, config.seed)
    require_trainable(settings, {}, BASE)
    base = base_of(settings, dense)
    factors = factors_of(settings.content.get("factors"), base, settings.where)
    levels = [level for factor in factors for level in factor.levels]
    for level in levels:
        require_level(settings, level)
    whole = models(settings, out, dense, clusters, Level(BASE), seeds)
    arms = [Arm(BASE, whole)]
    for level in levels:
        own = whole
        if level.cluster or level.experts:
            its = clusters_of(settings, out, dense, clusters, level, config.seed)
            own = models(settings, out, dense, its, level, seeds)
        arms.append(Arm(level.name, own, level.options, level.strategy))
    names = [slug(arm.name) for arm in arms]
    for arm in arms:
        if names.count(slug(arm.name)) > 1:
            raise UserError(
                f"{settings.where}: two levels are called '{arm.name}' or nearly so; leave one out."
            )
    return plan_with(config, settings, arms, dense=(dense,), method="", baseline=BASE), factors, base


def base_of(settings: Settings, dense: Stage) -> Base:
    """The base's options, and how deep the encoder is."""
    shared = {"images": settings.images, "out": "-"}
    given = {**shared, **settings.options("experts"), "mae": dense.path, "clusters": "-"}
    cluster = resolve(ClusterConfig, {**shared, **cluster_options(settings), "enc": dense.path})
    experts = resolve(ExpertsConfig, given)
    return Base(cluster, experts, depth_of(settings, dense), default_strategy(experts.gate))


def cluster_options(settings: Settings) -> dict[str, Any]:
    """Options of the base's clusters: those of the file, or of the run that it names, with its seed."""
    if "clusters" not in settings.content:
        return settings.options("cluster")
    made = read_run(settings.content["clusters"], "cluster").config
    return {name: made[name] for name in (*CLUSTER_OPTIONS, "seed") if name in made}


def depth_of(settings: Settings, dense: Stage) -> int:
    """Blocks of the dense model's encoder."""
    if dense.verb is None:
        read_run(dense.path, "pretrain").result()
        architecture = read_header(Path(dense.path) / "model.safetensors")["shape"]["architecture"]
    else:
        given = {"images": settings.images, "out": "-", **settings.options("pretrain")}
        architecture = encoder_architecture(resolve(PretrainConfig, given).model)
    with torch.device("meta"):
        return len(timm.create_model(architecture, num_classes=0).blocks)


def require_level(settings: Settings, level: Level) -> None:
    """UserError for a level that a verb would refuse, before anything is trained."""
    require_options(settings, "cluster", {**settings.content.get("cluster", {}), **level.cluster}, level.name)
    config = require_trainable(settings, level.experts, level.name)
    if level.strategy is None:
        return
    require_strategy(level.strategy, None, (*STRATEGIES, "oracle"))
    if config.gate in WHOLE:
        raise UserError(
            f"{settings.where} [{level.name}]: gate '{config.gate}' has no sub-models to choose from; leave the level "
            "out."
        )


def clusters_of(settings: Settings, out: Path, dense: Stage, base: Stage, level: Level, seed: int) -> Stage:
    """The clusters of a level: the base's, unless it changes them."""
    if not level.cluster:
        return base
    options = {"seed": seed, **cluster_options(settings), **level.cluster, "images": settings.images}
    name = slug(said(level.cluster))
    return Stage(str(out / "runs" / f"clusters-{name}"), "cluster", options, {"enc": dense})


def models(
    settings: Settings, out: Path, dense: Stage, clusters: Stage, level: Level, seeds: list[int]
) -> dict[int, Stage]:
    """A run of train-experts for each seed."""
    name, options = slug(level.name), dict(level.experts)
    return {seed: experts_stage(settings, out, name, options, Start(dense, clusters), seed) for seed in seeds}


def carry_out(config: StudyConfig) -> dict[str, Any]:
    """Train and measure as much as the budget allows; leaves OUT/result.json and table.md."""
    settings = read_settings(config.config, DEFAULTS, OWN_KEYS)
    plan, factors, base = plan_of(config, settings)

    def more(plan: Plan, progress: Progress, result: dict[str, Any]) -> tuple[dict[str, Any], str]:
        facts = [facts_of(factor, base) for factor in factors]
        return {"factors": facts}, factor_tables(result["differences"], facts)

    return finish(plan, config, more)


def facts_of(factor: Factor, base: Base) -> dict[str, Any]:
    """A factor for result.json; what its levels gave stands in `differences`, under their names."""
    names = dict.fromkeys(name for level in factor.levels for name in level.options)
    return {
        "name": factor.name,
        "about": factor.about,
        "base": {name: spelled(base.value(name)) for name in names},
        "levels": [level.name for level in factor.levels],
    }
