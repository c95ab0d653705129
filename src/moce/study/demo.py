"""The whole main job on the built-in pictures: one dense model, clusters, experts and both controls, a model for every
task, and what all of them are worth.

    DIR/mae  clusters  mae-star  tokenmoe  moce  custom/TASK  evaluations/TASK-METHOD-PROTOCOL.json  report.html

It calls the verbs that anybody would call, so each part is a folder of its own, and what is finished is left alone when
the demonstration is started again.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moce.config import DemoConfig, PretrainConfig
from moce.engine.files import read_json, write_json
from moce.engine.progress import clock, say
from moce.engine.runs import RESULT
from moce.errors import UserError
from moce.images.toyworld import KINDS
from moce.presets import preset_options
from moce.stages.cluster import cluster
from moce.stages.customize import customize
from moce.stages.experts import train_experts
from moce.stages.pretrain import pretrain
from moce.study.report import report
from moce.study.table import as_text, percent, tables
from moce.transfer.evaluate import evaluate
from moce.verbs import verb

GATES = {"mae-star": "none", "tokenmoe": "token", "moce": "cluster"}
PROTOCOLS = ("knn", "linear")  # the last one is printed


@dataclass(frozen=True)
class Size:
    """How many of the built-in pictures are used."""

    pictures: int  # to pre-train on, of all kinds
    tasks: tuple[str, ...]
    task_pictures: int  # of a task to train on, and as many to test on


SIZES = {
    "demo": Size(pictures=9000, tasks=tuple(KINDS), task_pictures=240),
    "debug": Size(pictures=288, tasks=("creatures", "letters"), task_pictures=48),
}


@verb(DemoConfig)
def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every stage on the built-in pictures, print tasks by methods, and leave DIR/report.html.

    Returns {verb, out, report, results, means, seconds}. Started again it continues where it stopped.
    """
    started = time.monotonic()
    out, size = Path(config.out), SIZES.get(config.preset, SIZES["demo"])
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    side = preset_options(PretrainConfig, config.preset).get("image_size", 64)
    common = {name: getattr(config, name) for name in ("seed", "device", "quiet", "overwrite")}

    def uri(kind: str, num: int) -> str:
        return f"toyworld://{kind}?split=train&size={side}&num={num}"

    def tell(text: str) -> None:
        say(f"[{clock(time.monotonic() - started)}] {text}", config.quiet)

    tell(f"a dense model of {size.pictures:,} pictures of {len(KINDS)} kinds")
    images = uri("all", size.pictures)
    pretrain(images=images, out=out / "mae", preset=config.preset, **common)
    tell("clusters of these pictures")
    cluster(out / "mae", images=images, out=out / "clusters", **common)
    for name, gate in GATES.items():
        tell(f"further training, gate {gate}")
        train_experts(out / "mae", out / "clusters", images=images, gate=gate, out=out / name, **common)
    tell(f"a model for each of {len(size.tasks)} tasks, and what it is worth beside the others")
    results: list[dict[str, Any]] = []
    silent = {**common, "quiet": True}
    for task in size.tasks:
        own = out / "custom" / task
        choice = customize(out / "moce", images=uri(task, size.task_pictures), out=own, **silent)
        models = {"MAE": out / "mae", "MAE-star": out / "mae-star", "TokenMoE": out / "tokenmoe", "MoCE": own}
        where = f"toyworld://{task}?size={side}&num={size.task_pictures}"
        for protocol in PROTOCOLS:
            for method, model in models.items():
                file = out / "evaluations" / f"{task}-{method}-{protocol}.json"
                if config.overwrite or not newer(file, model / RESULT):
                    write_json(file, evaluate(model, task=where, protocol=protocol, **silent))
                results.append(read_json(file))
        values = ", ".join(f"{r['method']} {percent(r['value'])}" for r in results[-len(models) :])
        tell(f"{task}: falls into cluster {choice['cluster']}; {PROTOCOLS[-1]}: {values}")
    page = out / "report.html"
    runs = [out / name for name in ("mae", "clusters", *GATES)] + [
        out / "custom" / task for task in size.tasks
    ]
    report(
        runs=[*runs, *sorted((out / "evaluations").glob("*.json"))],
        out=page,
        seed=config.seed,
        quiet=config.quiet,
    )
    table = next(t for t in tables(results) if t.protocol == PROTOCOLS[-1])
    if not config.quiet:
        print(f"{as_text(table)}\n(test pictures named correctly, in per cent; the toy world is no evidence)")
    tell(f"done; open {page}")
    return {
        "verb": "demo",
        "out": str(out),
        "report": str(page),
        "results": results,
        "means": {method: table.mean(method) for method in table.methods},
        "seconds": round(time.monotonic() - started, 3),
    }


def newer(file: Path, than: Path) -> bool:
    """Whether `file` is there and was written after `than`: it is of that model and not of one before it."""
    return file.is_file() and file.stat().st_mtime_ns >= than.stat().st_mtime_ns
