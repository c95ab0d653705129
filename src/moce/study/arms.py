"""The arms of a comparison, out of its file: which runs they measure, and what cannot be one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moce.errors import UserError, did_you_mean
from moce.study.plan import WHOLE, Arm, Stage, slug
from moce.study.selection import selected_options, selecting_arm
from moce.study.settings import ARM_KEYS, Settings, listed, require_keys, require_trainable
from moce.study.starts import Starts, experts_stage


def arms_of(settings: Settings, out: Path, starts: Starts) -> list[Arm]:
    """The arms of the file, for the seeds that have a start.

    One without options is the dense model; those with the same options share their runs.

    UserError for what cannot be an arm.
    """
    arms: list[Arm] = []
    selecting: dict[str, tuple[str, str]] = {}  # by the arm's name
    folders = shared_folders(settings.content["arms"])
    dense = {seed: start.dense for seed, start in starts.by_seed.items()}
    # What needs no seed is measured with the first of all.
    of_one = [*settings.content.get("seeds", [])[:1], *dense]
    if starts.shared:
        dense = dict.fromkeys(of_one, starts.dense[0])
    for number, given in enumerate(settings.content["arms"]):
        where = f"{settings.where} [[arms]] {number + 1}"
        require_keys(given, ARM_KEYS, where)
        if "name" not in given:
            raise UserError(f"{where}: 'name' must be given.")
        name = given["name"]
        if any(slug(arm.name) == slug(name) for arm in arms):
            raise UserError(f"{where}: another arm is called '{name}' or nearly so; give each its own name.")
        protocols = tuple(listed(given["protocols"])) if "protocols" in given else None
        for protocol in protocols or ():
            if protocol not in settings.protocols:
                hint = did_you_mean(protocol, settings.protocols)
                raise UserError(f"{where}: '{protocol}' is none of the study's protocols.{hint}")
        options = given.get("options", {})
        by = given.get("selected_by")
        if by is not None:
            options = selected_options(given, protocols or settings.protocols, where)
            selecting[name] = by, where
        if "model" in given and options:
            raise UserError(f"{where}: 'model' is evaluated as it is; leave 'options' or 'model' out.")
        if options:
            require_trainable(settings, options, f"arms: {name}")
            folder = folders.get(made_like(options, by), slug(name))
            models = {
                seed: experts_stage(settings, out, folder, options, start, seed)
                for seed, start in starts.by_seed.items()
            }
        else:
            models = dict.fromkeys(of_one, Stage(given["model"])) if "model" in given else dense
        require_choice(settings, given, where)
        per_seed = models is dense and not starts.shared
        arms.append(Arm(name, models, options, given.get("strategy"), protocols, per_seed=per_seed))
    selected = {name: selecting_arm(by, arms, where) for name, (by, where) in selecting.items()}
    return [replace(arm, selected_by=selected[arm.name]) if arm.name in selected else arm for arm in arms]


def made_like(options: Mapping[str, Any], selected_by: str | None) -> str:
    """What arms have in common that share their runs."""
    return repr((selected_by is not None, sorted(options.items())))


def shared_folders(arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the runs of arms are called: after the first with these options that chooses as usual, else after the first.

    So a reference that comes or goes, or another order in the file, leaves the runs where they are.
    """
    found: dict[str, str] = {}
    for arm in sorted(arms, key=lambda arm: "strategy" in arm):
        if "name" in arm and (options := arm.get("options")):
            found.setdefault(made_like(options, arm.get("selected_by")), slug(arm["name"]))
    return found


def require_choice(settings: Settings, arm: Mapping[str, Any], where: str) -> None:
    """UserError for a strategy that does not exist, or of an arm without sub-models; before anything is trained."""
    strategy = arm.get("strategy")
    if strategy is None:
        return
    from moce.stages.customize import STRATEGIES, require_strategy  # torch

    try:
        require_strategy(strategy, None, (*STRATEGIES, "oracle"))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    options = arm.get("options", {})
    gate = {**settings.content.get("experts", {}), **options}.get("gate", "cluster") if options else "none"
    if "model" not in arm and gate in WHOLE:
        raise UserError(
            f"{where}: strategy '{strategy}' needs sub-models to choose from, and this arm has none."
        )
