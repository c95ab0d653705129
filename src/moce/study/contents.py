"""What of the given runs and files goes onto the page: everything is read here, once, and nothing is drawn."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from moce.engine.files import read_json, sha256_of
from moce.engine.runs import CONFIG, RESULT, RunInfo
from moce.errors import UserError
from moce.methods import experts_method
from moce.model.weights import read_header, read_tensors
from moce.stages.membership import CLUSTERS_FILE
from moce.stages.nearest import SHEET
from moce.stages.patches import PATCHES_FILE
from moce.study.inspect import CHOICE, Found, identify, read_metrics
from moce.study.table import ORDER as METHODS
from moce.study.table import distinct

THUMBS, MODEL, ROUTING = "thumbs/thumbs.safetensors", "model.safetensors", "routing.json"
ORDER = ("MAE", "clusters", *METHODS[1:])


@dataclass
class ClusterSet:
    """Clusters and their small pictures; several runs may hold the same ones."""

    key: str
    images: UInt8[Tensor, "clusters places channels height width"]
    indices: Int64[Tensor, "clusters places"]  # -1: no picture
    sizes: list[int]
    summary: dict[str, Any]
    encoder: str  # fingerprint of the dense model
    classes: list[list[tuple[str, float]]] | None = (
        None  # per cluster: (class, share of the cluster's pictures)
    )
    where: list[str] = field(default_factory=list)

    def pictures(
        self, cluster: int, first: int, last: int | None
    ) -> UInt8[Tensor, "pictures channels height width"]:
        """The pictures at these places that are there."""
        there = self.indices[cluster, first:last] >= 0
        return self.images[cluster, first:last][there]


@dataclass
class PatchSet:
    """Which expert the patches of some pictures go to (stages/patches.py)."""

    gate: str
    num_pictures: int
    num_experts: int
    explained: dict[str, dict[str, float | None]]  # layer: {colour, place, cluster, class}
    images: UInt8[Tensor, "pictures channels height width"]
    indices: Int64[Tensor, "pictures"]
    experts: Int64[Tensor, "layers pictures rows columns"]
    colours: Float[Tensor, "bins channels"]
    counts: Int64[Tensor, "layers experts bins"]
    routing: dict[str, dict[str, Any]] | None = (
        None  # layer: as stages/routing.py says; older files have none
    )


@dataclass
class RunContent:
    """A run of pretrain, cluster or train-experts."""

    info: RunInfo
    name: str
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    colour: int = 0  # of its curves
    clusters: ClusterSet | None = None
    routing: dict[str, dict[str, list[Any]]] | None = None  # layer: {expert: [K], gate: [K, E]}
    patches: PatchSet | None = None
    label: str = ""  # what to call it beside the other runs

    @property
    def method(self) -> str:
        """MAE, clusters, or what `experts_method` says."""
        if self.info.verb == "train-experts":
            return experts_method(self.info.config)
        return {"pretrain": "MAE", "cluster": "clusters"}[self.info.verb]

    @property
    def has_model(self) -> bool:
        """Whether there are weights yet."""
        return (self.info.path / MODEL).is_file()


@dataclass
class TaskModel:
    """A customised folder."""

    info: RunInfo
    name: str
    choice: dict[str, Any]
    config: dict[str, Any]  # timm's
    sheet: Image.Image | None = None  # as choice["pictures"] describes it
    source: RunContent | None = None  # the experts' run that it was cut out of, where that is given


@dataclass
class Contents:
    """Everything that was given, sorted."""

    runs: list[RunContent] = field(default_factory=list)
    tasks: list[TaskModel] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)  # of evaluate, with "file" added
    cluster_sets: list[ClusterSet] = field(default_factory=list)
    studies: list[dict[str, Any]] = field(default_factory=list)  # their result.json

    def of(self, verb: str) -> list[RunContent]:
        """The runs of a verb."""
        return [run for run in self.runs if run.info.verb == verb]

    @property
    def built_in(self) -> bool:
        """Whether any run is on the toy world."""
        images = [str(run.info.config.get("images", "")) for run in self.runs]
        images += [str(study.get("corpus", "")) for study in self.studies]
        return any(uri.startswith("toyworld:") for uri in images)


def gather(paths: tuple[str, ...]) -> Contents:
    """Read what the paths hold; UserError for one that is no run, customised folder or evaluation."""
    contents, seen = Contents(), set()
    found: list[Found] = []
    for path in paths:
        if (where := Path(path).resolve()) not in seen:
            seen.add(where)
            found.append(identify(path))
    for item in found:
        if item.kind == "prepared" or (item.kind == "run" and item.content.verb == "prepare"):
            continue  # pictures; a page shows what was made of them
        if item.kind == "study":
            contents.studies.append(item.content)
            continue
        if item.kind == "run" and item.content.verb == "evaluate":
            if item.content.finished:
                contents.results.append({**item.content.result(), "file": str(item.path / RESULT)})
            continue
        if item.kind == "run":
            contents.runs.append(_run(item, contents))
        elif item.kind == "customised":
            choice = item.path / CHOICE
            if choice.is_file():  # else it was interrupted: there is nothing to show yet
                contents.tasks.append(_task(item, read_json(choice)))
        elif item.kind == "evaluations":
            contents.results += [{**result, "file": str(item.path)} for result in item.content]
        else:
            raise UserError(f"{item.path} is a file of a run; name the folder of the run instead.")
    contents.results = distinct(contents.results)  # a file beside the folder that it came from, or a copy
    contents.runs.sort(key=lambda run: ORDER.index(run.method) if run.method in ORDER else len(ORDER))
    order = [str(run.info.path) for run in contents.runs]
    for clusters in contents.cluster_sets:
        clusters.where.sort(key=order.index)
    for number, run in enumerate(run for run in contents.runs if run.info.verb != "cluster"):
        run.colour = number
        run.label = _label(run, contents.runs)
    sources = {run.result.get("fingerprint"): run for run in contents.of("train-experts") if run.result}
    for task in contents.tasks:
        task.source = sources.get(task.info.inputs.get("model"))
    return contents


def _label(run: RunContent, runs: list[RunContent]) -> str:
    """The method; where several runs are of it, with the name of the folder, or all of its path."""
    alike = [other for other in runs if other.method == run.method]
    if len(alike) == 1:
        return run.method
    names = [other.info.path.name for other in alike]
    return f"{run.method} ({run.info.path.name if len(set(names)) == len(names) else run.name})"


def _run(item: Found, contents: Contents) -> RunContent:
    info: RunInfo = item.content
    result = info.result() if info.finished else {}
    run = RunContent(info, str(item.path), result, read_metrics(item.path))
    run.clusters = _cluster_set(info, contents)
    if (item.path / ROUTING).is_file():
        run.routing = read_json(item.path / ROUTING)
    if (item.path / PATCHES_FILE).is_file():
        header, tensors = read_header(item.path / PATCHES_FILE), read_tensors(item.path / PATCHES_FILE)
        facts = {name: header[name] for name in ("gate", "num_pictures", "num_experts", "explained")}
        run.patches = PatchSet(**{**facts, **tensors}, routing=header.get("routing"))
    return run


def _task(item: Found, choice: dict[str, Any]) -> TaskModel:
    sheet = None
    if choice.get("pictures"):
        try:
            sheet = Image.open(item.path / SHEET).convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            sheet = None  # the choice is worth showing without it
    return TaskModel(item.content, item.path.name, choice, read_json(item.path / CONFIG), sheet)


def _cluster_set(info: RunInfo, contents: Contents) -> ClusterSet | None:
    """The clusters of a run, the same object for runs that hold the same clusters."""
    thumbs, assigner, summary = (info.path / name for name in (THUMBS, CLUSTERS_FILE, "clusters.json"))
    if not (thumbs.is_file() and assigner.is_file()):
        return None
    header = read_header(assigner)
    key = sha256_of(thumbs.read_bytes(), json.dumps(header))
    known = next((c for c in contents.cluster_sets if c.key == key), None)
    if known is None:
        content = read_tensors(thumbs)
        sizes = read_tensors(assigner, prefix="sizes")[""].tolist()
        about = read_json(summary) if summary.is_file() else {}
        known = ClusterSet(key, content["images"], content["indices"], sizes, about, header["encoder"])
        contents.cluster_sets.append(known)
    known.where.append(str(info.path))
    named = known.summary.get("classes")
    known.classes = named if named and len(named) == len(known.sizes) else None
    return known
