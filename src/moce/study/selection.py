"""On which clusters the runs of a control are trained, task by task: those of the sub-model that the task votes for.

    OUT/cells/BY/TASK-clusters-seedK.json    {arm, run, task, train, votes, cluster, clusters}

BY is the arm that selects, `run` the fingerprint of its run, `train` that of the pictures that vote, as for `moce
customize --strategy vote`; `cluster` has most votes, and `clusters` are all whose clean gates pick its expert in every
layer, so that their pictures go through the very sub-model of the task. Tasks of the same clusters share a run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from moce.engine.files import read_json
from moce.errors import UserError, did_you_mean
from moce.study.plan import CLASSIFYING, Arm, Cell, Plan, slug, task_name


def selection_file(plan: Plan, cell: Cell) -> Path:
    """Where the clusters of a cell's run are written down; few shots have a vote of their own."""
    assert cell.arm.selected_by is not None
    shots = plan.evaluate.get(cell.protocol, {}).get("shots")
    drawn = "" if shots is None else f"-{shots}shots"
    name = f"{slug(task_name(cell.task))}-clusters{drawn}-seed{cell.seed}.json"
    return plan.out / "cells" / slug(cell.arm.selected_by.name) / name


def read_selection(path: Path) -> dict[str, Any] | None:
    """What is written there; None where nothing is. UserError for a file of something else."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except UserError:
        content = None
    if not isinstance(content, dict) or not {"run", "train", "clusters"} <= content.keys():
        raise UserError(f"{path} names no clusters; delete it, and the same command counts the votes again.")
    return content


def vote(plan: Plan, cell: Cell, device: str, quiet: bool) -> dict[str, Any]:
    """{votes, cluster, clusters}, by the training pictures of a cell's task in the run of the arm that selects."""
    from moce.engine.devices import pick_device
    from moce.images.tasks import few_shots, open_tasks
    from moce.stages.customize import read_moce, routes, select
    from moce.transfer.encoder import channels_of
    from moce.transfer.submodels import votes_of

    assert cell.arm.selected_by is not None
    run, options = cell.arm.selected_by.models[cell.seed].path, plan.evaluate.get(cell.protocol, {})
    model, _, assigner = read_moce(run, pick_device(device))
    task = open_tasks(cell.task, plan.data_root, channels_of(run), options.get("download", False))[0]
    if options.get("shots") is not None:
        task = few_shots(task, options["shots"], cell.seed)
    votes = votes_of(assigner, task.train, options.get("num_workers", -1), quiet)
    cluster = select("vote", model, assigner, votes).cluster
    assert cluster is not None
    return {
        "votes": votes.histogram_K.tolist(),
        "cluster": cluster,
        "clusters": group_of(routes(model), cluster),
    }


def group_of(routes_LK: Int64[Tensor, "layers clusters"], cluster: int) -> list[int]:
    """The clusters whose pictures go to the experts of this one's in every layer, itself among them."""
    return (routes_LK == routes_LK[:, [cluster]]).all(dim=0).nonzero()[:, 0].tolist()


# ------------------------------------------------------------------------------------------------ the file of a study


def selected_options(given: Mapping[str, Any], protocols: Sequence[str], where: str) -> dict[str, Any]:
    """Options of train-experts of an arm with `selected_by`. UserError for what cannot stand beside it."""
    options = given.get("options", {})
    for name in ("strategy", "model"):
        if name in given:
            raise UserError(
                f"{where}: an arm with 'selected_by' trains plain models of its own; leave '{name}' or it out."
            )
    for name in ("only_clusters", "shuffle_clusters"):
        if name in options:
            raise UserError(
                f"{where}: which clusters there are is said by 'selected_by'; leave '{name}' out."
            )
    if options.get("gate", "none") != "none":
        raise UserError(
            f"{where}: 'selected_by' trains a model without experts; give gate \"none\", not '{options['gate']}'."
        )
    for protocol in protocols:
        if protocol not in CLASSIFYING:
            raise UserError(
                f"{where}: 'selected_by' lets pictures of classes vote, which {protocol} has not; give the arm some of "
                f"the protocols {', '.join(CLASSIFYING)}."
            )
    return {"gate": "none", **options}


def selecting_arm(name: str, arms: Sequence[Arm], where: str) -> Arm:
    """The arm that `selected_by` names. UserError where there is none, or none whose sub-models a vote chooses from."""
    found = next((arm for arm in arms if arm.name == name), None)
    if found is None:
        hint = did_you_mean(name, [arm.name for arm in arms])
        raise UserError(f"{where}: selected_by '{name}' is none of the arms.{hint}")
    for stage in found.models.values():
        gated = stage.verb == "train-experts" and stage.options.get("gate", "cluster") == "cluster"
        if not gated or stage.options.get("shuffle_clusters"):
            raise UserError(
                f"{where}: selected_by '{name}' is an arm without a gate that reads the clusters as they were found; "
                'name one with gate "cluster".'
            )
    if found.strategy not in (None, "vote"):
        raise UserError(
            f"{where}: selected_by '{name}' is an arm whose sub-models are chosen by '{found.strategy}'; name one that "
            "a vote chooses from."
        )
    return found
