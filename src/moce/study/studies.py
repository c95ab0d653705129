"""The verb `study`: which study is which module. Each module has one function, `carry_out(config) -> result`."""

from importlib import import_module
from typing import Any

from moce.config import StudyConfig
from moce.errors import UserError
from moce.verbs import verb

STUDIES = {
    "compare": "moce.study.compare",
    "negative-transfer": "moce.study.negative_transfer",
    "ablate": "moce.study.ablate",
    "efficiency": "moce.study.efficiency",
}


@verb(StudyConfig)
def study(config: StudyConfig) -> dict[str, Any]:
    """Train several methods, measure them on several tasks, and compare; a folder that the same command continues.

    Returns the content of OUT/result.json. Raises UserError for a configuration that cannot be.
    """
    if config.overwrite:
        raise UserError(
            "A study is continued, never overwritten: delete what is to be made again, in its cells/ and runs/, or "
            "choose another --out."
        )
    return import_module(STUDIES[config.kind]).carry_out(config)
