"""`moce study compare`: the method and its controls, all from one dense model or one for each seed, on all tasks.

OUT/runs/{mae, clusters, moce-seed0, mae-star-seed0, ...}   ordinary run folders
OUT/cells/ARM/TASK-PROTOCOL-seedK.json                      one evaluation each
OUT/result.json, table.md, tried.csv                        what is there, also of a study that is not finished
"""

from pathlib import Path
from typing import Any

from moce.config import StudyConfig
from moce.engine.progress import say
from moce.errors import UserError, did_you_mean
from moce.study.arms import arms_of
from moce.study.outcome import finish
from moce.study.plan import Plan
from moce.study.settings import Settings, plan_with, read_settings, seeds_of
from moce.study.starts import starts_of

ARMS: list[dict[str, Any]] = [
    {"name": "MAE"},
    {"name": "MAE*", "options": {"gate": "none"}},
    {"name": "TokenMoE", "options": {"gate": "token"}},
    {"name": "SDR", "options": {"gate": "sdr"}},
    {"name": "random clusters", "options": {"gate": "cluster", "shuffle_clusters": True}},
    {"name": "MoCE", "options": {"gate": "cluster"}},
    {"name": "MoCE random", "options": {"gate": "cluster"}, "strategy": "random"},
    {"name": "MoCE oracle", "options": {"gate": "cluster"}, "strategy": "oracle"},
]
# Without a file: built-in pictures, a model that is trained in seconds, and four tasks.
SMALL: dict[str, Any] = {
    "images": "toyworld://all?split=train&size=32&num=800",
    "data_root": "toyworld://?size=32&num=120",
    "tasks": ["creatures", "letters", "plants", "textures"],
    "protocols": ["knn", "linear"],
    "preset": "demo",
    "arms": ARMS,
}


def plan_of(config: StudyConfig, settings: Settings) -> Plan:
    """The plan of a comparison: dense models, their clusters, and arms that start from both."""
    out, content = Path(config.out), settings.content
    starts = starts_of(settings, out, config.seed, seeds_of(settings, config), config.quiet)
    arms = arms_of(settings, out, starts)
    names = [arm.name for arm in arms]
    for key in ("method", "baseline", "lr_from"):
        if key in content and content[key] not in names:
            hint = did_you_mean(content[key], names)
            raise UserError(f"{settings.where}: {key} '{content[key]}' is none of the arms.{hint}")
    given = {key: content[key] for key in ("method", "baseline", "lr_from") if key in content}
    plan = plan_with(config, settings, arms, dense=starts.dense, **given)
    if plan.method == plan.baseline:
        raise UserError(
            f"{settings.where}: method and baseline are both '{plan.method}', whose difference is nothing; name two "
            "arms."
        )
    require_chooser(plan, settings.where)
    return plan


def require_chooser(plan: Plan, where: str) -> None:
    """UserError where the arm whose learning rate the others wait for is never fine-tuned."""
    chooser = None if plan.lr_from is None else plan.arm(plan.lr_from)
    if chooser is None or "finetune" not in plan.protocols or plan.measured(chooser, "finetune"):
        return
    why = "is a reference" if chooser.reference else "has other protocols"
    raise UserError(
        f"{where}: lr_from '{chooser.name}' {why} and is never fine-tuned, so the others would wait for ever; name "
        "an arm that is."
    )


def carry_out(config: StudyConfig) -> dict[str, Any]:
    """The content of result.json."""
    plan = plan_of(config, read_settings(config.config, SMALL))
    for key, name in (("method", plan.method), ("baseline", plan.baseline)):
        if plan.arm(name) is None:
            say(
                f"no arm is called '{name}', so there is no primary endpoint; '{key}' in the file names another",
                config.quiet,
            )
    return finish(plan, config)
