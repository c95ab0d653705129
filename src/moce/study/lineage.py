"""From which runs a model of a study comes: whether what lies here is that of the study, and what a cell keeps of it.

A run keeps its options and the fingerprints of what it was made from, so it can be told while it lies here. Of what
lies here no more, its cells say it: `training` in each is what led to the run that was measured.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moce.config import CONFIGS
from moce.engine.files import read_json
from moce.engine.runs import RESULT, RunInfo, earlier_run, read_run
from moce.errors import UserError
from moce.options import changed_method_options
from moce.study.plan import Stage, corpus
from moce.verbs import resolve

# What a run calls the fingerprint of what it was made from, by argument.
INPUTS = {"mae": "dense model", "enc": "dense model", "clusters": "clusters"}
NAMES = ("preset", "init")  # options that name something which changes the result


def identity(stage: Stage) -> str | None:
    """What tells a stage's run from another one; None where it is not finished. Models that are no run: their name."""
    folder = Path(stage.path)
    if not folder.is_dir():
        return stage.path if stage.verb is None else None
    if not (folder / RESULT).is_file():
        return stage.path if stage.verb is None else None
    result = read_json(folder / RESULT)
    if isinstance(result, dict) and "fingerprint" in result:
        return str(result["fingerprint"])
    from moce.stages.membership import LABELS_FILE, clusters_fingerprint, found_in

    if (folder / LABELS_FILE).is_file():  # clusters have no fingerprint in their result
        return clusters_fingerprint(found_in(folder))
    raise UserError(
        f"{folder / RESULT} does not say which model it is of; make the run again with --overwrite."
    )


def is_finished(stage: Stage) -> bool:
    """Whether a finished run lies in a stage's folder, of whatever options."""
    return (Path(stage.path) / RESULT).is_file()


def all_here(stage: Stage) -> bool:
    """Whether a stage and all that leads to it lie in their folders."""
    return all(is_finished(one) for one in stage.chain() if one.verb is not None)


def reads_clusters(options: Mapping[str, Any]) -> bool:
    """Whether a run of train-experts with these options is another one with other clusters."""
    return options.get("gate", "cluster") in ("cluster", "sdr") or bool(options.get("only_clusters"))


def leading_to(stage: Stage) -> Iterator[Stage]:
    """The stages that change what a stage is, itself last: its chain without clusters that it does not read."""
    for name, one in stage.needs.items():
        if name != "clusters" or reads_clusters(stage.options):
            yield from leading_to(one)
    yield stage


def training_of(stage: Stage) -> list[Any]:
    """[[verb, options], ...] of the runs that lead to a stage, as the study gives them; [null, which one] of a run or
    model that it names instead of making it.

    The options are those that change the result, preset and initial weights, and what the pictures are called, without
    where they lie. As they are given: what a preset makes of them depends on the dense run that lies here.
    """
    found: list[Any] = []
    for one in leading_to(stage):
        if one.verb is None:
            found.append([None, identity(one)])
            continue
        own = method_options(one)
        own |= {name: corpus(one.options[name]) for name in NAMES if one.options.get(name)}
        found.append([one.verb, {**own, "images": corpus(one.options["images"])}])
    return json.loads(json.dumps(found))


def method_options(stage: Stage) -> dict[str, Any]:
    """The options that the study gives a stage and that change its result."""
    known = CONFIGS[str(stage.verb)].__dataclass_fields__
    return {name: value for name, value in stage.options.items() if known[name].metadata["role"] == "method"}


def other_training(before: list[Any], stage: Stage) -> bool:
    """Whether a cell was made of another training than the study's, as far as nothing that lies here says it.

    `before` is what the cell keeps. While the run that was measured is here, only what is gone is compared.
    """
    here = is_finished(stage)
    if all_here(stage):
        return False
    stages = list(leading_to(stage))
    if any(verb is None or "images" in options for verb, options in before):
        now = training_of(stage)
    else:  # an older version: options alone, of what is made, and of clusters that nothing reads
        stages = [one for one in stage.chain() if one.verb is not None]
        now = json.loads(json.dumps([[one.verb, method_options(one)] for one in stages]))
    if len(before) != len(now):
        return True
    gone = [not here or (one.verb is not None and not is_finished(one)) for one in stages]
    return any(a != b for a, b, missing in zip(before, now, gone, strict=True) if missing)


def stage_is_done(stage: Stage) -> bool:
    """Whether a stage is finished with these options, from these stages: what its verb would leave alone.

    Only looks at small files; `require_same` says what differs. Of a dense model or clusters that do not lie here any
    more nothing says that they were others, but that what the run itself names lies here in another folder.
    """
    if stage.verb is None:
        return True
    if not is_finished(stage):
        return False
    info, config = read_run(stage.path, stage.verb), config_of(stage)
    if changed_method_options(info.config, config) or info.config.get("images") != config.images:
        return False
    if stage.verb == "pretrain" and other_weights(info, config.init):
        return False
    same = all(identity(own) in (None, info.inputs.get(INPUTS[name])) for name, own in stage.needs.items())
    return same and made_elsewhere(info, stage) is None


def made_elsewhere(info: RunInfo, stage: Stage) -> str | None:
    """From which run that lies here a run was made, where the study would first make another one for it.

    A study that was renamed or copied is the same: what counts is where the one lies as seen from the other.
    """
    made_in, kept_in = os.path.dirname(str(info.config.get("out"))), os.path.dirname(stage.path)
    for name, own in stage.needs.items():
        recorded = str(info.config.get(name))
        place = os.path.relpath(recorded, made_in or ".")
        if identity(own) is not None or place == os.path.relpath(own.path, kept_in or "."):
            continue
        for before in (recorded, os.path.normpath(os.path.join(kept_in, place))):
            if identity(Stage(before)) == info.inputs.get(INPUTS[name]):
                return before
    return None


def config_of(stage: Stage) -> Any:
    """The config of a stage's verb; the preset that a dense model would say which is gone is that of the run itself."""
    arguments = stage.arguments()
    if any(identity(one) is None for one in stage.needs.values()) and is_finished(stage):
        arguments.setdefault("preset", read_run(stage.path).config.get("preset"))
    return resolve(CONFIGS[str(stage.verb)], arguments)


def other_weights(info: RunInfo, init: str | None) -> bool:
    """Whether a run may have begun with other weights: none, or others that are here, which its verb then reads."""
    before = info.config.get("init")
    if None in (before, init):
        return before is not init
    return before != init and (str(init).startswith(("timm:", "hf:")) or Path(str(init)).exists())


def require_known(stage: Stage) -> None:
    """UserError where a finished run has other options than the study, and what it was made from is gone.

    Its verb, which says so otherwise, would miss that first.
    """
    info = read_run(stage.path, stage.verb)
    if (before := made_elsewhere(info, stage)) is not None:
        own = ", ".join(Path(one.path).name for one in stage.needs.values() if identity(one) is None)
        raise UserError(
            f"{stage.path} was made from {before}, and this study would make {own} for it; repeat the earlier file, "
            "or choose another --out."
        )
    earlier_run(Path(stage.path), str(stage.verb), config_of(stage), info.inputs)
