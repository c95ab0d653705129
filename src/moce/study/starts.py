"""What the arms of a study start from: a dense model and its clusters, one of each for all seeds or for each seed.

    mae = "runs/mae"              one model for all seeds, which lies there
    mae = ["runs/a", "runs/b"]    one for each seed of the file, in its order; a run may stand there twice
    mae_per_seed = true           one for each, trained here: OUT/runs/seed0-mae, ...
    none of these                 one for all, trained here: OUT/runs/mae

and likewise `clusters` and `clusters_per_seed`; with a dense model for each seed there are clusters for each anyway.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from moce.config import PretrainConfig
from moce.engine.progress import say
from moce.errors import UserError
from moce.study.lineage import identity
from moce.study.plan import Stage
from moce.study.settings import Settings

WHAT = {"mae": "a dense model", "clusters": "clusters"}
VERB = {"mae": "pretrain", "clusters": "cluster"}


class Start(NamedTuple):
    """What the runs of one seed are made from."""

    dense: Stage
    clusters: Stage


@dataclass(frozen=True)
class Starts:
    """The start of each seed that a command works on."""

    by_seed: Mapping[int, Start]
    dense: Sequence[Stage]  # every dense model of the study once, also of the file's other seeds
    shared: bool  # whether there is one dense model for all seeds


def starts_of(settings: Settings, out: Path, seed: int, seeds: Sequence[int], quiet: bool) -> Starts:
    """The starts of `seeds`; what is one for all is made with `seed`.

    UserError where a model or clusters are to be one for all and each seed's own as well, or a list does not say which
    one a seed has.
    """
    everyone = list(dict.fromkeys([*settings.content.get("seeds", ()), *seeds]))
    shared = not of_each(settings, "mae")
    require_one_way(settings, shared)
    if shared:
        models = dict.fromkeys(everyone, dense_stage(settings, out, seed))
    else:
        models = listed_runs(settings, "mae", seeds) or {
            own: pretrain_stage(settings, out, own, f"seed{own}-mae") for own in everyone
        }
        compare_models(settings, {own: models[own] for own in seeds}, quiet)
    if shared and not of_each(settings, "clusters"):
        clusters = dict.fromkeys(seeds, cluster_stage(settings, out, models[seeds[0]], seed))
    else:  # an arm called "clusters" has runs/clusters-seed0
        clusters = listed_runs(settings, "clusters", seeds) or {
            own: cluster_stage(settings, out, models[own], own, f"seed{own}-clusters") for own in seeds
        }
    starts = {own: Start(models[own], clusters[own]) for own in seeds}
    if isinstance(settings.content.get("clusters"), list):
        require_of_each_other(settings, starts)
    return Starts(starts, list(dict.fromkeys(models.values())), shared)


def of_each(settings: Settings, key: str) -> bool:
    """Whether each seed has a dense model (`mae`) or `clusters` of its own."""
    return bool(settings.content.get(f"{key}_per_seed")) or isinstance(settings.content.get(key), list)


def require_one_way(settings: Settings, shared: bool) -> None:
    """UserError where the file says twice what the seeds start from, and not the same."""
    content, where = settings.content, settings.where
    for key, what in WHAT.items():
        if content.get(f"{key}_per_seed") and key in content:
            named = "runs" if isinstance(content[key], list) else "one run for all seeds"
            raise UserError(
                f"{where}: '{key}' names {named}, '{key}_per_seed' has {what} made for each seed; leave one of the two "
                "out."
            )
    listed = isinstance(content.get("clusters"), list)
    if listed and content.get("mae_per_seed"):
        raise UserError(
            f"{where}: 'clusters' lists runs that are there, and 'mae_per_seed' has dense models made that they are "
            "not of; list these in 'mae', or leave 'clusters' out."
        )
    if not shared and (isinstance(content.get("clusters"), str) or content.get("clusters_per_seed") is False):
        raise UserError(
            f"{where}: with a dense model for each seed each has its own clusters; list those that lie there, one for "
            "each seed, or leave 'clusters' and 'clusters_per_seed' out."
        )


def listed_runs(settings: Settings, key: str, seeds: Iterable[int]) -> dict[int, Stage]:
    """The runs of a list with one for each seed of the file, which `seeds` must have; empty where there is no list."""
    runs, own = settings.content.get(key), settings.content.get("seeds", [])
    if not isinstance(runs, list):
        return {}
    if len(runs) != len(own) or len(set(own)) != len(own):
        raise UserError(
            f"{settings.where}: '{key}' lists {len(runs)} runs, 'seeds' is {own}; give the file as many different "
            "seeds as runs, in their order, or a single run for all, without brackets."
        )
    if missing := [seed for seed in seeds if seed not in own]:
        raise UserError(
            f"--seeds {missing[0]}: '{key}' of {settings.where} lists no run for it; give some of "
            f"{', '.join(map(str, own))}."
        )
    for seed, path in zip(own, runs, strict=True):
        if seed in seeds:
            earlier_run(path, VERB[key])
    stages = {path: Stage(path) for path in runs}
    return {seed: stages[path] for seed, path in zip(own, runs, strict=True)}


def require_of_each_other(settings: Settings, starts: Mapping[int, Start]) -> None:
    """UserError where listed clusters are not of the dense model of their seed."""
    from moce.engine.runs import read_run

    for seed, start in starts.items():
        of = read_run(start.clusters.path, "cluster").inputs.get("dense model")
        if (own := identity(start.dense)) is not None and of != own:
            raise UserError(
                f"{settings.where}: seed {seed} has the dense model {start.dense.path} and the clusters "
                f"{start.clusters.path}, which are of another one; list them in one order."
            )


def compare_models(settings: Settings, models: Mapping[int, Stage], quiet: bool) -> None:
    """Say in which options the models that lie there differ, seeds left out: the spread over seeds holds that too."""
    from moce.engine.runs import read_run

    runs = {seed: read_run(one.path, "pretrain") for seed, one in models.items() if one.verb is None}
    if not runs:
        return
    first, *others = runs
    compared = [f.name for f in fields(PretrainConfig) if f.metadata["role"] == "method" and f.name != "seed"]
    for seed in others:
        own, its = runs[first], runs[seed]
        differ = [name for name in compared if own.config.get(name) != its.config.get(name)]
        made_of = {"images": "pictures", "weights of --init": "initial weights"}
        differ += [what for name, what in made_of.items() if own.inputs.get(name) != its.inputs.get(name)]
        if differ:
            what = f"the dense models of seeds {first} and {seed} differ in {', '.join(differ)}"
            say(f"{what}; the spread over seeds holds that as well", quiet)


def dense_stage(settings: Settings, out: Path, seed: int) -> Stage:
    """One dense model for all seeds: the run that `mae` names, else one of the study's own."""
    if "mae" in settings.content:
        return earlier_run(settings.content["mae"], "pretrain")
    return pretrain_stage(settings, out, seed, "mae")


def pretrain_stage(settings: Settings, out: Path, seed: int, name: str) -> Stage:
    """A dense model of the study's own."""
    options = {**settings.options("pretrain"), "images": settings.images, "seed": seed}
    return Stage(str(out / "runs" / name), "pretrain", options)


def earlier_run(path: str, verb: str) -> Stage:
    """A run that is there; UserError where it is not, is another verb's, or is not finished."""
    from moce.engine.runs import read_run

    read_run(path, verb).result()
    return Stage(path)


def cluster_stage(settings: Settings, out: Path, dense: Stage, seed: int, name: str = "clusters") -> Stage:
    """Its clusters: those that `clusters` names, else the study's own, which are called `name`."""
    if "clusters" in settings.content:
        return earlier_run(settings.content["clusters"], "cluster")
    options = {**settings.options("cluster"), "images": settings.images, "seed": seed}
    return Stage(str(out / "runs" / name), "cluster", options, {"enc": dense})


def experts_stage(
    settings: Settings, out: Path, name: str, options: Mapping[str, Any], start: Start, seed: int
) -> Stage:
    """A run of train-experts."""
    own = {**settings.options("experts"), **options, "images": settings.images, "seed": seed}
    needs = {"mae": start.dense, "clusters": start.clusters}
    return Stage(str(out / "runs" / f"{name}-seed{seed}"), "train-experts", own, needs)
