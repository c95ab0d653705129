"""`moce study compare`: the method and its controls, all from one dense model, on all tasks.

OUT/runs/{mae, clusters, moce-seed0, mae-star-seed0, ...}   ordinary run folders
OUT/cells/ARM/TASK-PROTOCOL-seedK.json                      one evaluation each
OUT/result.json, table.md, tried.csv                        what is there, also of a study that is not finished
"""

from typing import Any

from moce.config import StudyConfig
from moce.engine.progress import say
from moce.study.outcome import finish
from moce.study.settings import plan_of, read_settings

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
