"""What lies at a path: every file and folder that we write, told by its content, not by its name."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import moce
from moce.config import InspectConfig
from moce.engine.files import read_json
from moce.engine.progress import clock
from moce.engine.runs import CONFIG, RESULT, RunInfo, read_run
from moce.errors import UserError, did_you_mean
from moce.images.prepared import Prepared, is_prepared, read_prepared
from moce.model.assigner import KIND, KIND_SCALED
from moce.model.weights import read_header, read_tensors, require_readable
from moce.options import spelled_size
from moce.stages.customize import kept_experts
from moce.study.efficiency_tables import cost_tables
from moce.study.table import is_evaluation, percent
from moce.verbs import verb

CHOICE = "choice.json"
LEFT_BY = {
    "pretrain": ("model.safetensors",),
    "cluster": ("clusters.safetensors", "clusters.json", "labels.npy"),
    "train-experts": ("model.safetensors", "clusters.safetensors"),
    "customize": ("model.safetensors", CHOICE),
}
SIZES = ("image_size", "patch_size")  # options that are (height, width) where they are not one number


@dataclass(frozen=True)
class Found:
    """What a path holds.

    `kind` is run, customised, prepared, study, model, clusters, checkpoint, thumbs, patches or evaluations; `content`
    the RunInfo of a run or a customised folder, what a prepared folder and a study say of themselves, the JSON header
    of a file of tensors, or the list of evaluations.
    """

    kind: str
    path: Path
    content: Any


def identify(path: str | Path) -> Found:
    """What lies at `path`; UserError when it is nothing of ours."""
    path = Path(path)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"There is no file or folder {path}.{did_you_mean(path.name, beside)}")
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix == ".json":
        return _evaluations(path)
    raise UserError(
        f"{path} is no file of moce: name a run folder, a .safetensors file or the JSON of `moce evaluate`."
    )


def _folder(path: Path) -> Found:
    if is_prepared(path):
        return Found("prepared", path, read_prepared(path))
    if (study := read_study(path)) is not None:
        return Found("study", path, study)
    if not (path / CONFIG).is_file():
        inside = sorted(p.name for p in path.iterdir() if (p / CONFIG).is_file())
        if inside:
            raise UserError(f"{path} is no run, but holds runs: name them, such as {path / inside[0]}.")
        raise UserError(f"{path} is not a run folder or a customised model: it has no {CONFIG}.")
    info = read_run(path)
    if info.finished:
        require_whole(info)
    return Found("customised" if info.verb == "customize" else "run", path, info)


def read_study(path: Path) -> dict[str, Any] | None:
    """The result.json of a study's folder; None for any other folder. UserError where none was written yet."""
    if (path / CONFIG).is_file() or not (path / "cells").is_dir():
        return None
    if not (path / RESULT).is_file():
        raise UserError(
            f"The study in {path} has no {RESULT} yet: its command with --budget-minutes 0 writes what is there."
        )
    content = read_json(path / RESULT)
    if not isinstance(content, dict) or content.get("verb") != "study":
        return None
    return {"seeds_left_out": [], "failed": {}, **content}  # an older version did not say them


def require_whole(info: RunInfo) -> None:
    """UserError where a finished run lacks a file that it cannot do without, or that file is cut off."""
    for name in LEFT_BY.get(info.verb, ()):
        path = info.path / name
        if not path.is_file():
            raise UserError(
                f"{info.path} lacks its {name}; make it again with --overwrite, or copy the folder again."
            )
        if path.suffix == ".safetensors" and str(path).isprintable():  # else the library cannot be asked
            require_readable(path)
        elif path.suffix == ".json":
            read_json(path)


def _tensors(path: Path) -> Found:
    try:
        header = read_header(path)
    except UserError:
        # The weights of a customised model carry timm's header, not ours; the folder says what they are.
        if (path.parent / CHOICE).is_file() and path.name == "model.safetensors":
            return _folder(path.parent)
        raise
    kinds = {"autoencoder": "model", "experts": "model", KIND: "clusters", KIND_SCALED: "clusters"}
    kind = kinds.get(header.get("kind", ""), header.get("kind"))
    if kind not in ("model", "clusters", "checkpoint", "thumbs", "patches"):
        raise UserError(f"{path} holds '{kind}', which this version of moce does not know.")
    return Found(kind, path, header)


def _evaluations(path: Path) -> Found:
    content = read_json(path)
    results = content if isinstance(content, list) else [content]
    if results and all(is_evaluation(result) for result in results):
        return Found("evaluations", path, results)
    folder = path.parent
    if (folder / CONFIG).is_file():
        raise UserError(f"{path} is part of the run in {folder}; give the folder {folder}.")
    if (folder / RESULT).is_file() and read_study(folder) is not None:
        raise UserError(f"{path} is part of the study in {folder}; give the folder {folder}.")
    raise UserError(
        f"{path} is not the result of `moce evaluate`, nor of anything else here that has a page."
    )


@verb(InspectConfig)
def inspect(config: InspectConfig) -> dict[str, Any]:
    """Say what a file or folder of ours holds, on stdout.

    Returns {verb, path, kind, summary} and what was read. Raises UserError for anything that is not ours.
    """
    found = identify(config.path)
    describe = {
        "run": _run,
        "customised": _customised,
        "prepared": _prepared,
        "study": _study,
        "model": _model,
        "clusters": _clusters,
        "checkpoint": _checkpoint,
        "thumbs": _thumbs,
        "patches": _patches,
        "evaluations": _results,
    }[found.kind]
    lines, facts = describe(found)
    if not config.quiet:
        print("\n".join([f"{found.path}: {lines[0]}", *(f"  {line}" for line in lines[1:])]))
    return {"verb": "inspect", "path": str(found.path), "kind": found.kind, "summary": lines[0], **facts}


Described = tuple[list[str], dict[str, Any]]
"""Lines for people, the first of them the headline, and facts for JSON."""


def changed_options(info: RunInfo) -> dict[str, Any]:
    """The options of a run that differ from the defaults, without those that say where results go."""
    config_class = getattr(moce, info.verb.replace("-", "_")).config_class
    changed = {}
    for field in fields(config_class):
        if field.name not in info.config or field.metadata["role"] == "output":
            continue
        value = info.config[field.name]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if value != default:
            changed[field.name] = value
    return changed


def shown(value: Any) -> str:
    """An option's value as one would type it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def spelled(options: dict[str, Any]) -> str:
    """Options as on a command line."""
    sizes = {name: spelled_size(*options[name]) for name in SIZES if isinstance(options.get(name), list)}
    return " ".join(f"--{name.replace('_', '-')} {shown(v)}" for name, v in {**options, **sizes}.items())


def _run(found: Found) -> Described:
    info: RunInfo = found.content
    options = changed_options(info)
    result = info.result() if info.finished else {}
    state = "finished" if info.finished else "not finished (the same command continues it)"
    method = f" ({result['method']})" if "method" in result else ""
    lines = [
        f"a run of `moce {info.verb}`{method}, {state}",
        f"options: {spelled(options) or 'all defaults'}",
    ]
    if "steps" in result:
        lines.append(
            f"{result['steps']:,} steps on {result['num_images']:,} pictures in {clock(result['seconds'])} "
            f"({result['images_per_second']:,.0f} images/s, {result['peak_rss_bytes'] / 2**30:.1f} GiB)"
        )
        active = f", {result['active_parameters']:,} active" if "active_parameters" in result else ""
        lines.append(f"{result['parameters']:,} parameters{active}")
    if last := last_metrics(found.path):
        names = ("loss", "reconstruction", "distill", "max_gate", "agreement", "dead")
        figures = [f"{name} {last[name]:.4g}" for name in names if name in last]
        lines.append(f"at step {last['step']:,}: {', '.join(figures)}")
    if info.verb == "evaluate" and result:
        lines += _results(Found("evaluations", found.path, [result]))[0][1:]
    if "num_clusters" in result:
        lines.append(
            f"{result['num_images']:,} pictures in {result['num_clusters']} clusters of {result['size_min']} to "
            f"{result['size_max']}, {result['moved']:.1%} moved for balance"
        )
        if result.get("nmi") is not None:
            lines.append(
                f"agreement with the classes: NMI {result['nmi']:.3f}, raw pixels {result['nmi_raw']:.3f}"
            )
    return lines, {"run": info.verb, "finished": info.finished, "options": options, "result": result or None}


def last_metrics(folder: Path) -> dict[str, Any] | None:
    """The last line of a run's metrics."""
    lines = read_metrics(folder)
    return lines[-1] if lines else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _customised(found: Found) -> Described:
    info: RunInfo = found.content
    model = read_json(found.path / CONFIG)
    choice = read_json(found.path / CHOICE) if (found.path / CHOICE).is_file() else {}
    channels, *size = model["pretrained_cfg"]["input_size"]
    lines = [
        f"a customised model: {model['architecture']} for pictures of {_pictures(size, channels)}, cut out of "
        f"{info.config['moce']}"
    ]
    if choice:
        cluster = "" if choice["cluster"] is None else f", cluster {choice['cluster']}"
        lines.append(f"chosen by {choice['strategy']}{cluster}; experts kept: {kept_experts(choice)}")
        if choice["num_images"]:
            fit = choice["fit"]
            lines.append(
                f"{choice['num_images']:,} pictures voted: margin {percent(choice['margin'])} %, mean cosine "
                f"{fit['mean_cosine']:.3f} (percentile {fit['percentile']:.0f} of pre-training pictures)"
            )
        if choice["warning"]:
            lines.append(f"warning: {choice['warning']}")
    lines.append(f'load it: timm.create_model("local-dir:{found.path}", pretrained=True, num_classes=N)')
    return lines, {"finished": info.finished, "architecture": model["architecture"], "choice": choice or None}


def _prepared(found: Found) -> Described:
    about: Prepared = found.content
    side, files = about.short_side, len(about.shards)
    what = {
        "parquet": f"JPEGs of a short side of at most {side} in {files} parquet files",
        "tar": f"JPEGs of a short side of at most {side} in {files} webdataset tar files",
        "array": f"pixels of squares of {side}, {about.channels} channels, in one memory map",
    }[about.format]
    done = f"{about.num_images:,}" if about.finished else f"{about.seen:,} of {about.num_source:,}"
    state = "" if about.finished else ", not finished (the same command continues it)"
    lines = [f"{done} prepared pictures{state}: {what}"]
    before = "" if about.bytes_before is None else f"{about.bytes_before / 2**20:,.1f} MiB became "
    classes = "no labels" if about.classes is None else f"{len(about.classes)} classes"
    lines.append(f"from {about.source}; {classes}; {before}{about.bytes_after / 2**20:,.1f} MiB")
    if about.copied or about.unreadable:
        lines.append(
            f"{about.copied:,} JPEGs copied as they were; {len(about.unreadable):,} pictures were unreadable"
        )
    if about.finished:
        lines.append(f"use them: --images {found.path}")
    return lines, {"finished": about.finished, "prepared": asdict(about)}


def _sizes(path: Path) -> tuple[int, int]:
    """(number of tensors, number of values) of a file, from its header."""
    with safe_open(path, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return len(shapes), sum(torch.Size(shape).numel() for shape in shapes)


def _shape(shape: dict[str, Any]) -> str:
    patch = "x".join(map(str, shape["patch_size"]))
    pictures = _pictures(shape["image_size"], shape["channels"])
    return f"{shape['architecture']}, pictures of {pictures} in patches of {patch}"


def _pictures(size: list[int], channels: int) -> str:
    """Height x width, and how many channels where they are not three."""
    return "x".join(map(str, size)) + (
        "" if channels == 3 else f" and {channels} channel{'s' * (channels > 1)}"
    )


def _model(found: Found) -> Described:
    header = found.content
    shape, experts, about = header["shape"], header["experts"], header["about"]
    tensors, values = _sizes(found.path)
    lines = [f"a masked autoencoder ({about.get('method', 'of no known run')}): {_shape(shape)}"]
    lines.append(f"decoder {shape['decoder_depth']} x {shape['decoder_width']}, mask {shape['mask_ratio']}")
    if experts:
        read = {"centroid": "", "learned": " by a learned vector", "random": " by a random vector"}
        how = {
            "cluster": f"; the gate reads the picture's cluster of {experts['num_clusters']}"
            + read[experts.get("embedding", "centroid")],
            "token": "; the gate reads each token",
            "sdr": f" that share half of the MLP, one for each group of {experts['num_clusters']} clusters",
        }[experts["gate"]]
        what = "sub-nets" if experts["gate"] == "sdr" else "experts"
        blocks = ", ".join(map(str, experts["layers"]))
        lines.append(f"{experts['num_experts']} {what} in blocks {blocks}{how}")
    lines.append(f"{values:,} values in {tensors} tensors")
    return lines, {"header": header, "tensors": tensors, "values": values}


def _clusters(found: Found) -> Described:
    header = found.content
    sizes = read_tensors(found.path, prefix="sizes")[""]
    cosines = read_tensors(found.path, prefix="cosine_quantiles")[""]
    middle = float(cosines[len(cosines) // 2])
    lines = [
        f"an assigner: {len(sizes)} clusters of {int(sizes.min())} to {int(sizes.max())} pictures, with the encoder",
        f"encoder: {_shape(header['shape'])}; eps {header['eps']:g}",
        f"cosine of the training pictures to their centroid: median {middle:.3f}",
        f"fingerprints: pictures {header['images']}, dense model {header['encoder']}",
    ]
    return lines, {"header": header, "num_clusters": len(sizes), "sizes": sizes.tolist()}


def _checkpoint(found: Found) -> Described:
    header = found.content
    run = found.path.parent.parent
    whose = f" of `moce {read_run(run).verb}` in {run}" if (run / CONFIG).is_file() else ""
    lines = [
        f"a checkpoint{whose}: after step {header['step']:,}, {clock(header['seconds'])} of training",
        "weights, the optimiser's moments and the unfinished line of metrics; the command of the run continues from it",
    ]
    return lines, {"step": header["step"], "seconds": header["seconds"]}


def _thumbs(found: Found) -> Described:
    with safe_open(found.path, "pt") as file:
        clusters, places, channels, height, width = file.get_slice("images").get_shape()
    lines = [
        f"small pictures of {clusters} clusters: {places} each, {height}x{width}, {channels} channels",
        f"the first {found.content['nearest']} lie nearest to the centroid, the others are drawn at random",
    ]
    return lines, {"num_clusters": clusters}


def _patches(found: Found) -> Described:
    header = found.content
    lines = [
        f"which of {header['num_experts']} experts the patches of {header['num_pictures']} pictures go to"
    ]
    for layer, explained in header["explained"].items():
        shares = [f"{what} {percent(share)} %" for what, share in explained.items() if share is not None]
        lines.append(
            f"block {layer}, explained beyond chance by: {', '.join(shares) or 'nothing, it is one expert'}"
        )
    return lines, {"header": header}


def _study(found: Found) -> Described:
    result = found.content
    cells = result["cells"]
    state = "finished" if result["finished"] else f"{cells['left']} of {sum(cells.values())} cells are left"
    lines = [f"study ({result['kind']}), {state}"]
    if result["kind"] == "efficiency":
        for table in cost_tables(result["rows"]):
            lines.append(f"{table.title.lower()}: {table.about}")
        return lines, {"result": result}
    lines.append(f"arms: {', '.join(arm['name'] for arm in result['arms'])}")
    lines.append(f"tasks: {', '.join(result['tasks'])}; seeds {', '.join(map(str, result['seeds']))}")
    for protocol, table in result["tables"].items():
        means = ", ".join(f"{arm} {percent(v)}" for arm, v in table["mean"].items() if v is not None)
        lines.append(
            f"{protocol}, mean of {len(table['shared'])} tasks: {means}"
            if means
            else f"{protocol}: no mean yet"
        )
    return lines, {"result": result}


def _results(found: Found) -> Described:
    results = found.content
    lines = [f"{len(results)} result{'s' * (len(results) > 1)} of `moce evaluate`"]
    for r in results:
        lines.append(
            f"{r['task']}: {r['method']} {percent(r['value'])} % {r['metric']} ({r['protocol']}, {r['num_test']} test "
            f"pictures), model {r['model']}"
        )
    return lines, {"results": results}
