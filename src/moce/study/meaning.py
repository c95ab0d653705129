"""Whether a study's clusters mean anything: how far they agree with the pictures' classes, beside clusters of pixels.

Gates that read clusters can only tell apart what the clusters do. So a study says it, where the pictures have labels,
before it says what came of the gates.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moce.engine.files import read_json
from moce.engine.runs import read_run
from moce.study.lineage import is_finished, reads_clusters
from moce.study.plan import Plan, Stage

LEAST = 0.10  # that the NMI with the classes has to be above that of clusters of raw 8 x 8 pixels
CLUSTERS = "clusters.json"
KEPT = ("num_clusters", "nmi", "nmi_raw")


def meaning_of(stage: Stage) -> dict[str, Any] | None:
    """{name, num_clusters, nmi, nmi_raw} of the clusters that a run reads; None where it reads none, or none are there.

    nmi and nmi_raw are None of pictures without labels.
    """
    if not is_finished(stage) or (run := read_run(stage.path)).verb != "train-experts":
        return None
    file = run.path / CLUSTERS  # the run's copy of what it read
    if not reads_clusters(run.config) or not file.is_file():
        return None
    content = read_json(file)
    return {"name": Path(run.config["clusters"]).name, **{name: content.get(name) for name in KEPT}}


def clusters_of(plan: Plan, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The clusters that a study's runs read, once each: as its cells have them, or of the runs that lie here."""
    arms = {arm.name: arm for arm in plan.arms}
    found, older = [], dict[str, Stage]()
    for result in results:
        if "clusters" in result["study"]:
            found.append(result["study"]["clusters"])
        elif (arm := arms.get(result["method"])) and (stage := arm.models.get(result["seed"])):
            older[stage.path] = stage  # its cells are of an older version
    found += map(meaning_of, older.values())
    return list({tuple(own.values()): own for own in found if own is not None}.values())


def meaning_notes(result: dict[str, Any]) -> list[str]:
    """Sentences about the clusters of a study's result.json; none where nothing is known of them."""
    known = [own for own in result.get("clusters", ()) if None not in (own["nmi"], own["nmi_raw"])]
    if not known:
        return []
    each = "; ".join(
        f"{own['nmi']:.3f} ({own['name']}, {own['num_clusters']}), of raw pixels {own['nmi_raw']:.3f}"
        for own in known
    )
    lines = [f"NMI of the clusters with the pictures' classes: {each}."]
    if any(own["nmi"] - own["nmi_raw"] < LEAST for own in known):
        lines.append(
            f"Clusters whose NMI is not {LEAST:.2f} above that of raw pixels mean little: what came of gates that read "
            "them says little about the method."
        )
    return lines
