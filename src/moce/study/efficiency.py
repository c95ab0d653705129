"""The study `efficiency`: what each method costs to train, to use, and to find a task's sub-model with.

Three parts for each model, the rows of a part measured in turn (bench/turns.py):

    training     one optimiser step of MAE, MAE*, TokenMoE, MoCE and both phases of SDR, on a batch that is there
    inference    features of the same batch: whole models, and the plain ViTs that tasks get of MoCE and SDR
    search       from a run folder to the sub-model of a task: vote, per layer, neighbours, every sub-model

A part is a file in OUT/cells; what it holds is not measured again, also of a part that is not finished. Sizes and
turns are those of `moce bench`.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from moce.config import BenchConfig, StudyConfig
from moce.engine.devices import pick_device
from moce.engine.files import held, write_json, write_whole
from moce.engine.progress import say
from moce.engine.runs import RESULT, read_run, source_commit
from moce.errors import UserError, did_you_mean
from moce.images.reading import forget
from moce.model.weights import read_header
from moce.options import given, speed
from moce.study.bench.costs import costs_of
from moce.study.bench.inference import Inference, inference_variants
from moce.study.bench.rows import machine
from moce.study.bench.search import Search
from moce.study.bench.settings import Setting, settings_of
from moce.study.bench.steps import Steps
from moce.study.bench.timing import Timed, Variant
from moce.study.bench.turns import Row, Turns
from moce.study.budget import Budget, Spent
from moce.study.cells import fingerprints, read_measured
from moce.study.efficiency_tables import cost_tables, markdown
from moce.study.outcome import begin, require_place
from moce.study.settings import read_toml
from moce.verbs import resolve

PARTS = ("training", "inference", "search")


@dataclass(frozen=True)
class Method:
    """A method in one phase of training: its row, its gate, how much of training is done."""

    row: str
    name: str
    gate: str | None
    progress: float = 0.0


TRAINING = (
    Method("step-dense", "MAE", None),
    Method("step-mae-star", "MAE*", "none"),
    Method("step-token", "TokenMoE", "token"),
    Method("step-experts", "MoCE", "cluster"),
    Method("step-sdr-whole", "SDR, whole net (the first third)", "sdr"),
    Method("step-sdr", "SDR, sub-nets", "sdr", 0.5),
)
INFERENCE = {
    "infer-dense": "MAE, MAE*",
    "infer-token": "TokenMoE",
    "infer-experts": "MoCE, whole",
    "infer-sdr": "SDR, whole",
    "infer-sub-model": "MoCE, the sub-model of a task",
    "infer-sub-net": "SDR, the sub-net of a task",
}
SEARCH = {
    "search-vote": "vote",
    "search-per-layer": "per layer",
    "search-knn": "nearest neighbours",
    "search-oracle": "every sub-model (oracle, linear probe)",
}
NOTES = (
    "FLOPs are counted by torch in one forward pass of a batch: of training with the frozen teacher of distillation "
    "and three quarters of the patches hidden, of inference with all of them seen.",
    "MoCE and SDR as a whole are given the clusters of the pictures; to find them takes one pass of the dense encoder "
    "more. Sub-models need none.",
    "Memory of training is what was added to the process (to the GPU, on one) while a method was built and took its "
    "first step; of inference the weights and what a first pass added; of the search what that added.",
)
SEARCHES = 2  # turns of the search at most: of all sub-models one takes as long as many steps
QUICK = "Measured with quick: sizes too small and turns too few to mean anything."


@dataclass(frozen=True, kw_only=True)
class EfficiencyOptions(BenchConfig):
    """What to measure: sizes and turns as for `moce bench`, and where to search."""

    parts: tuple[Literal["training", "inference", "search"], ...] = speed(PARTS, "what to measure")
    moce: str | None = given(
        "a run of train-experts to search in; by default one made in seconds", default=None
    )
    task: str | None = given("the task, as for `moce evaluate`; by default a built-in one", default=None)
    data_root: str | None = given("folder that a task named is in", default=None)


KEYS = (
    "models", "repeats", "batch_size", "precision", "num_workers", "quick", "parts", "moce", "task", "data_root",
)  # fmt: skip


def carry_out(config: StudyConfig) -> dict[str, Any]:
    """Measure what is not measured yet; leaves OUT/cells, OUT/result.json and OUT/table.md.

    Returns {verb, kind, out, finished, machines, rows, notes, left_out, seconds, commits}.
    """
    options = options_of(config)
    out = Path(config.out)
    require_place(out, config)
    begin(out)
    if config.seeds is not None:
        say("--seeds is not used: what is timed are steps, whose time no seed changes", config.quiet)
    if config.tried is not None:
        say("--tried is not used: nothing is trained here", config.quiet)
    budget = Budget(config.budget_minutes)
    with held(out / ".lock", wait=False):  # two at a time would time each other
        found = measured(options, out, budget, config.quiet)
        result = {
            "verb": "study",
            "schema": 1,
            "kind": config.kind,
            "out": str(out),
            "corpus": "",
            "finished": not found["left_out"],
            **found,
        }
        write_json(out / RESULT, result)
        text = markdown(cost_tables(found["rows"]))
        with write_whole(out / "table.md") as temporary:
            temporary.write_text(
                "\n".join([text, *(f"{note}\n" for note in found["notes"])]), encoding="utf-8"
            )
    say(f"{text}\n{out / 'table.md'}", config.quiet)
    if found["left_out"]:
        left = ", ".join(found["left_out"])
        say(
            f"not measured within {config.budget_minutes:g} minutes: {left}; the same command continues",
            config.quiet,
        )
    return result


def options_of(config: StudyConfig) -> EfficiencyOptions:
    """The file of the study, or the defaults. UserError for a key or a value that cannot be."""
    content: dict[str, Any] = {}
    if config.config is not None:
        content = read_toml(Path(config.config))
        for name in content:
            if name not in KEYS:
                raise UserError(f"{config.config}: there is no key '{name}'.{did_you_mean(name, KEYS)}")
    try:
        return resolve(EfficiencyOptions, {"device": config.device, "seed": config.seed, **content})
    except UserError as error:
        raise UserError(f"{config.config}: {error}") from None


def measured(options: EfficiencyOptions, out: Path, budget: Budget, quiet: bool) -> dict[str, Any]:
    """{cells, machines, rows, notes, left_out, seconds, commits}.

    What is there is taken as it is, unless it is of other options.

    Parts that are not begun when the budget is used up, and the rows that are missing of one that is, are `left_out`.
    """
    device = pick_device(options.device)
    parts: dict[str, dict[str, Any]] = {}
    left: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="moce-efficiency-") as folder:
        settings = settings_of(options, device, Path(folder))
        for setting in settings:
            for part in options.parts:
                if part == "search" and options.moce is not None and setting is not settings[0]:
                    continue  # it is in that run, whatever the setting
                key = f"{setting.model}: {part}"
                file = out / "cells" / f"{setting.model.replace('/', '-')}-{part}.json"
                own = Part(part, setting, options, file)
                try:
                    own.measure(budget, quiet)
                except Spent:
                    left[key] = own.left(key)
                if own.content:
                    parts[key] = own.content
    return {
        "cells": {"there": len(parts.keys() - left.keys()), "left": len(left)},
        "machines": {name: part["machine"] for name, part in parts.items()},
        "rows": [row for part in parts.values() for row in part["rows"]],
        "notes": [*NOTES, QUICK] if options.quick else list(NOTES),
        "left_out": [name for names in left.values() for name in names],
        # Of what was measured, also by an earlier command; parts of an older version do not say.
        "seconds": round(sum(part.get("seconds", 0.0) for part in parts.values()), 1),
        "commits": sorted({commit for part in parts.values() for commit in part.get("commits", ())}),
    }


@dataclass
class Part:
    """One file: {options, machine, commits, seconds, rows}; while it is not finished also `turns`, what was timed."""

    name: str
    setting: Setting
    options: EfficiencyOptions
    file: Path
    content: dict[str, Any] = field(default_factory=dict)

    def measure(self, budget: Budget, quiet: bool) -> None:
        """Time what is not there yet. Raises Spent, which is asked for before every run; what is timed is kept."""
        about = conditions_of(self.options, self.name, self.setting.device)
        there = read_part(self.file) if self.file.is_file() else {}
        self.content = there if there.get("options") == about else {}
        if self.content and "turns" not in self.content:
            return
        budget.require()
        say(f"{self.setting.model}: {self.name}", quiet)
        try:
            rows = MEASURE[self.name](self.setting, self.options)
            turns = Turns(rows, self.repeats, self.setting.device, self.content.get("turns", {}))
            commits = sorted({*self.content.get("commits", ()), source_commit() or "unknown"})
            content = {"options": about, "machine": machine(self.setting.device), "commits": commits}
            started, before = time.monotonic(), self.content.get("seconds", 0.0)

            def save() -> None:
                finished = turns.finished()
                more = {"turns": turns.kept} if len(finished) < len(rows) else {}
                seconds = round(before + time.monotonic() - started, 1)
                self.content = {**content, "seconds": seconds, "rows": finished, **more}
                write_json(self.file, self.content)

            turns.take(self.name, quiet, budget.require, save)
        finally:
            forget()
            gc.collect()

    @property
    def repeats(self) -> int:
        """Turns of each row."""
        wanted = 1 if self.options.quick else self.options.repeats
        return min(wanted, SEARCHES) if self.name == "search" else wanted

    def left(self, key: str) -> list[str]:
        """What is missing: the part, or those of its rows that are not finished."""
        if not self.content:
            return [key]
        there = {row["name"] for row in self.content["rows"]}
        return [f"{key}, {name}" for name in ROWS[self.name] if name not in there]


def read_part(path: Path) -> dict[str, Any]:
    """The content of a part's file; UserError for a file that is none."""
    content = read_measured(path)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise UserError(
            f"{path} is no part of a study of costs; delete it, and the same command measures it again."
        )
    return content


def conditions_of(options: EfficiencyOptions, part: str, device: torch.device) -> dict[str, Any]:
    """What makes a part another measurement: its options, the run that is searched in, and the machine."""
    names = ["repeats", "batch_size", "precision", "seed", "quick"]
    names += ["moce", "task", "data_root", "num_workers"] if part == "search" else []
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    here = {
        "device": str(device),
        "gpu": gpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if part == "search" and options.task is not None:
        here["pictures"] = fingerprints(options.task, options.data_root).get("train")
    if part == "search" and options.moce is not None:
        here["run"] = read_run(options.moce, "train-experts").result().get("fingerprint")
    return {**{name: getattr(options, name) for name in names}, **here}


def training(setting: Setting, options: EfficiencyOptions) -> list[Row]:
    """An optimiser step of every method."""
    steps, batch = Steps(setting), setting.amounts.batch_size

    def row(own: Method) -> Row:
        job = partial(steps.method, own.gate, own.progress) if own.gate else steps.dense

        def facts(timed: Timed) -> dict[str, Any]:
            objective: Any = steps.objective(own.gate) if own.gate else steps.dense_objective()
            pictures = steps.at(own.progress) if own.gate else steps.pictures
            objective.to(setting.device)
            forward, whole = partial(objective, pictures), own.row == "step-sdr-whole"
            costs = costs_of(objective.trained, forward, batch, all_at_once=whole)
            return {"part": "training", "method": own.name, **costs.to_json()}

        return Row(Variant(own.row, setting.about(), batch, job, "step-dense"), facts)

    return [row(own) for own in TRAINING]


def inference(setting: Setting, options: EfficiencyOptions) -> list[Row]:
    """Features of a batch by every network."""
    there = Inference(Steps(setting))

    def facts(timed: Timed) -> dict[str, Any]:
        name = timed.variant.name
        network = there.networks[name]
        forward = partial(network.features, there.steps.pictures.images)
        costs = costs_of(network.module, forward, setting.amounts.batch_size)
        peak = {"peak_bytes": timed.peak_bytes + network.num_bytes}
        return {**peak, "part": "inference", "method": INFERENCE[name], **costs.to_json()}

    return [Row(variant, facts) for variant in inference_variants(there)]


def search(setting: Setting, options: EfficiencyOptions) -> list[Row]:
    """The search for a task's sub-model."""
    seeking = Search(setting, options.moce, options.task, options.data_root)
    header = read_header(seeking.run / "model.safetensors")
    about = {name: header["experts"][name] for name in ("num_clusters", "num_experts", "layers")}
    if options.moce is not None:
        about |= {"model": header["shape"]["architecture"], "image_size": header["shape"]["image_size"]}

    def facts(timed: Timed) -> dict[str, Any]:
        name = timed.variant.name
        tried = seeking.tried[name.removeprefix("search-")]
        own = {**timed.variant.setting, **about, "task": seeking.pictures.name}
        return {"part": "search", "method": SEARCH[name], "tried": tried, "setting": own}

    def expected(medians: dict[str, float]) -> float | None:
        known, fits = medians.get("search-knn"), seeking.fitting_seconds()
        return None if known is None or fits is None else known + fits

    guessed = {"search-oracle": expected}
    return [Row(v, facts, *([guessed[v.name]] if v.name in guessed else [])) for v in seeking.variants()]


MEASURE: dict[str, Callable[[Setting, EfficiencyOptions], list[Row]]] = {
    "training": training,
    "inference": inference,
    "search": search,
}
ROWS = {"training": [own.row for own in TRAINING], "inference": list(INFERENCE), "search": list(SEARCH)}
