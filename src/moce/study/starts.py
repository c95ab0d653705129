"""What the arms of a study start from: a dense model and its clusters, one of each for all seeds or for each seed.

mae = "runs/mae"              one model for all seeds, which lies there
mae = ["runs/a", "runs/b"]    one for each seed of the file, in its order; a run may stand there twice
mae_per_seed = true           one for each, trained here: OUT/runs/seed0-mae, ...
none of these                 one for all, trained here: OUT/runs/mae
clusters_per_seed = true      clusters of its own for each seed, as with a list or mae_per_seed anyway
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moce.errors import UserError
from moce.study.plan import Stage
from moce.study.settings import Settings


class Start(NamedTuple):
    """What the runs of one seed are made from."""

    dense: Stage
    clusters: Stage


def starts_by_seed(settings: Settings, out: Path, seed: int, seeds: Sequence[int]) -> dict[int, Start]:
    """The start of each of `seeds`; what is one for all is made with `seed`.

    UserError where a model or clusters are to be one for all and each seed's own as well, and where a list of models
    does not say which one a seed has.
    """
    models = models_by_seed(settings, out, seed, seeds)
    if not (own_models(settings) or settings.content.get("clusters_per_seed")):
        clusters = cluster_stage(settings, out, models[seeds[0]], seed)
        return {own: Start(dense, clusters) for own, dense in models.items()}
    if "clusters" in settings.content:
        given = ("clusters_per_seed", "mae_per_seed")
        key = next((name for name in given if settings.content.get(name)), "mae")
        raise UserError(
            f"{settings.where}: 'clusters' names one run for all seeds, '{key}' wants one for each; leave one of the "
            "two out."
        )
    # An arm called "clusters" has runs/clusters-seed0.
    return {
        own: Start(dense, cluster_stage(settings, out, dense, own, f"seed{own}-clusters"))
        for own, dense in models.items()
    }


def own_models(settings: Settings) -> bool:
    """Whether each seed has a dense model of its own."""
    return bool(settings.content.get("mae_per_seed")) or isinstance(settings.content.get("mae"), list)


def models_by_seed(settings: Settings, out: Path, seed: int, seeds: Sequence[int]) -> dict[int, Stage]:
    """The dense model of each of `seeds`."""
    content, where = settings.content, settings.where
    if not own_models(settings):
        return dict.fromkeys(seeds, dense_stage(settings, out, seed))
    if not content.get("mae_per_seed"):
        return listed_models(settings, seeds)
    if "mae" in content:
        raise UserError(
            f"{where}: 'mae' names runs that lie there, 'mae_per_seed' has one trained for each seed; leave one of the "
            "two out."
        )
    return {own: pretrain_stage(settings, out, own, f"seed{own}-mae") for own in seeds}


def listed_models(settings: Settings, seeds: Sequence[int]) -> dict[int, Stage]:
    """Those of a list with one for each seed of the file."""
    paths, of = settings.content["mae"], list(dict.fromkeys(settings.content.get("seeds", ())))
    if len(paths) != len(of):
        raise UserError(
            f"{settings.where}: 'mae' lists {len(paths)} and 'seeds' {len(of)}; give one run for each seed, in their "
            "order, or a single run for all, without brackets."
        )
    if missing := [own for own in seeds if own not in of]:
        raise UserError(
            f"--seeds {missing[0]}: {settings.where} lists no dense model for it; give some of "
            f"{', '.join(map(str, of))}."
        )
    found = {path: earlier_run(path, "pretrain") for path in paths}
    return {own: found[path] for own, path in zip(of, paths, strict=True) if own in seeds}


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
