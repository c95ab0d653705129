"""The verb: time every row on this machine, those that are compared in turn, and say how they compare."""

import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moce.config import BenchConfig
from moce.engine.devices import pick_device
from moce.engine.progress import clock, say, track
from moce.engine.runs import source_commit
from moce.errors import UserError
from moce.images.reading import forget
from moce.study.bench.loading import loading_variants
from moce.study.bench.passes import cluster_variants, pass_variants
from moce.study.bench.peers import peers_of, there_is_transformers
from moce.study.bench.rows import machine, rows_of, sentences, table
from moce.study.bench.settings import Setting, settings_of
from moce.study.bench.steps import step_variants
from moce.study.bench.timing import Timed, Variant, take_turns
from moce.verbs import verb

PEER = "step-hf-vitmae"
COMPILED = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # where torch keeps what it compiled


@verb(BenchConfig)
def bench(config: BenchConfig) -> dict[str, Any]:
    """Time the program on this machine: steps, loading, features, clusters, customising, beside their rivals.

    Returns {machine, rows, notes, repeats, seconds, commit}; nothing is left on disk.
    """
    started = time.monotonic()
    device = pick_device(config.device)
    notes = missing_peers(config)
    with (
        tempfile.TemporaryDirectory(prefix="moce-bench-") as folder,
        compiling_in(Path(folder) / "compiled", config.with_compiled),
    ):
        here = machine(device)
        found: list[Timed] = []
        chosen = [g for setting in settings_of(config, device, Path(folder)) for g in groups(setting, config)]
        repeats = 1 if config.quick else config.repeats
        total = sum(len(group) for group in chosen) * (repeats + 1)
        with track(total, "bench", "runs", config.quiet) as progress:
            for group in chosen:
                found += take_turns(
                    group, repeats, device, lambda name: progress.advance(1, name), notes.append
                )
                forget()
                gc.collect()
        rows = rows_of(found, device)
    if any(row["utilisation"] > 1 for row in rows):
        notes.append("The machine was busy while its peak was measured: some utilisation is above 100 %.")
    if config.quick:
        notes.append("Measured with --quick: sizes too small and turns too few to mean anything.")
    seconds = time.monotonic() - started
    say(f"{table(rows)}\n", config.quiet)
    for sentence in [*sentences(rows), *notes]:
        say(sentence, config.quiet)
    say(f"{len(rows)} rows, {repeats} turns each, in {clock(seconds)}", config.quiet)
    return {
        "verb": "bench",
        "machine": here,
        "rows": rows,
        "notes": notes,
        "repeats": repeats,
        "seconds": round(seconds, 1),
        "commit": source_commit(),
    }


def groups(setting: Setting, config: BenchConfig) -> list[list[Variant]]:
    """The rows that are asked for; those of a group take turns."""
    peers = peers_of(setting.bf16, config.with_compiled) if there_is_transformers() else []
    every = [
        step_variants(setting, peers),
        loading_variants(setting),
        pass_variants(setting),
        cluster_variants(setting),
    ]
    wanted = [[v for v in group if config.only is None or v.name in config.only] for group in every]
    return [group for group in wanted if group]


def missing_peers(config: BenchConfig) -> list[str]:
    """Why not every peer is there; UserError where one that cannot be was asked for by name."""
    if config.only is not None and PEER not in config.only:
        return []
    if not there_is_transformers():
        why = f"{PEER} needs the library transformers: pip install 'moce[bench]'"
        if config.only is not None:
            raise UserError(f"{why}.")
        return [f"{PEER} was left out: it needs the library transformers (pip install 'moce[bench]')."]
    if config.with_compiled:
        return []
    return [f"{PEER} was not compiled; --with-compiled measures that as well."]


@contextmanager
def compiling_in(folder: Path, at_all: bool) -> Iterator[None]:
    """Let torch keep what it compiles in `folder`, and forget it afterwards."""
    if not at_all:  # looking after it takes seconds by itself
        yield
        return
    before = {name: os.environ.get(name) for name in COMPILED}
    os.environ.update(dict.fromkeys(COMPILED, str(folder)))
    try:
        yield
    finally:
        torch.compiler.reset()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
