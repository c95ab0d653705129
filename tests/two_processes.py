"""What two processes do in tests/engine/test_distributed.py, all in one go since starting them takes longest.

Run by both with the folder of the one-process runs, the folder to write to, and a port. Each process leaves what it saw
in `rank-N.json`; the last thing is a run in the middle of which process 1 is killed.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import moce
from moce.__main__ import main
from moce.engine import trainer
from moce.engine.processes import group
from moce.engine.shards import here
from moce.errors import UserError

TOY = "toyworld://all?split=train&num=150&size=32"
# 33 pictures a step: 16 for one process, 17 for the other; 10 steps.
OPTIONS: dict[str, Any] = {
    "images": TOY, "preset": "debug", "batch_size": 33, "epochs": 2, "num_workers": 0, "precision": "fp32",
    "checkpoint_steps": 4, "device": "cpu", "timeout_minutes": 5.0, "quiet": True,
}  # fmt: skip
CLUSTERS: dict[str, Any] = {
    "images": TOY, "num_workers": 0, "device": "cpu", "quiet": True, "hash_content": True,
    "whiten": 0.5,
}  # fmt: skip
EXPERTS: dict[str, dict[str, Any]] = {
    "moce": {"gate": "cluster", "top_k": 2},
    "token": {"gate": "token", "balance": 0.5, "shared_gradient": 0.3},
    "star": {"gate": "none", "hash_content": True},
    "sdr": {"gate": "sdr", "distill_until": 0.5},
    "shuffled": {"shuffle_clusters": True, "embedding": "learned", "gate_start": "super-centroids"},
    "selected": {"gate": "none", "only_clusters": (1, 4)},
}
SHARDED = ["moce", "token", "sdr"]  # of these, what is trained with spread weights as well
LONG = {**OPTIONS, "epochs": 4000}


def copy_of(run: Path, out: Path, step: int) -> Path:
    """A run as it was when it was interrupted after its checkpoint at `step`."""
    (out / "checkpoints").mkdir(parents=True)
    for name in ("config.json", f"checkpoints/step-{step:09d}.safetensors"):
        shutil.copy(run / name, out / name)
    return out


def attempt(**options: Any) -> str:
    """What `moce.pretrain` says of options that cannot be used."""
    try:
        moce.pretrain(**{**OPTIONS, **options})
    except UserError as error:
        return str(error)
    return "no error"


def at_line(run: Path, step: int, number: int) -> None:
    """Send this process a signal once the run has logged `step`."""

    def watch() -> None:
        while (
            not (run / "metrics.jsonl").is_file()
            or len((run / "metrics.jsonl").read_text().splitlines()) < step
        ):
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def checks_of_the_group() -> dict[str, Any]:
    """Sums, rows and sets of uneven parts."""
    me = group()
    rows = torch.tensor([[1.0, 2.0]]) if me.rank == 0 else torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    weight = torch.tensor(2.0, requires_grad=True)
    me.total(weight * (me.rank + 1)).square().backward()
    assert weight.grad is not None
    return {
        "sum": me.sum(torch.tensor([me.rank + 1.0])).tolist(),
        "gradient": me.sum(weight.grad).item() / me.world,
        "span": me.span(len(rows)),
        "gather": me.gather(rows).tolist(),
        "take": me.take(rows, torch.tensor([2, 0, 1])).tolist(),
        "union": sorted(me.union({me.rank, 7})),
        "averages": {n: t.tolist() for n, t in me.averages({"a": rows[0], "b": torch.tensor(1.0)}).items()},
        "once": me.once(lambda: me.rank),
    }


def what_is_here(seen: dict[str, Any]) -> None:
    """Note, when a checkpoint is written, how many weights and moments this process keeps, and how many there are."""
    save = trainer.save_checkpoint

    def watched(path: Path, step: int, module: nn.Module, optimizer: Optimizer, *rest: Any) -> Path:
        moments = [t for state in optimizer.state.values() for n, t in state.items() if n != "step"]
        seen[path.name] = {
            "weights": sum(here(p).numel() for p in module.parameters()),
            "all": sum(p.numel() for p in module.parameters()),
            "moments": sum(here(t).numel() for t in moments),
            "of": sum(t.numel() for t in moments),
        }
        return save(path, step, module, optimizer, *rest)

    trainer.save_checkpoint = watched


def run(one: Path, two: Path) -> None:
    """Every check; the last one ends the process."""
    seen: dict[str, Any] = {"kept": {}}
    what_is_here(seen["kept"])
    moce.pretrain(out=two / "mae", **OPTIONS)
    seen["group"] = checks_of_the_group()
    moce.cluster(one / "mae", out=two / "clusters", **CLUSTERS)
    for name, options in EXPERTS.items():
        moce.train_experts(one / "mae", one / "clusters", out=two / name, **OPTIONS, **options)
    seen["again"] = moce.pretrain(out=two / "mae", **OPTIONS)

    continued = group().once(lambda: copy_of(two / "mae", two / "continued", 4))
    moce.pretrain(out=continued, **OPTIONS)
    changed = group().once(lambda: copy_of(one / "mae", two / "from-one", 4))
    moce.pretrain(out=changed, **OPTIONS)

    moce.pretrain(out=two / "sharded-mae", **OPTIONS, shard=True)
    for name in SHARDED:
        experts = {**OPTIONS, **EXPERTS[name], "out": two / f"sharded-{name}", "shard": True}
        moce.train_experts(one / "mae", one / "clusters", **experts)
    for name, shard in ("bf16", False), ("sharded-bf16", True):
        moce.pretrain(**{**OPTIONS, "out": two / name, "shard": shard, "precision": "bf16"})
    continued = group().once(lambda: copy_of(two / "sharded-mae", two / "sharded-continued", 4))
    moce.pretrain(out=continued, **OPTIONS, shard=True)
    changed = group().once(lambda: copy_of(one / "mae", two / "sharded-from-one", 4))
    moce.pretrain(out=changed, **OPTIONS, shard=True)

    if group().rank == 1:
        at_line(two / "stopped", 3, signal.SIGTERM)
    try:
        moce.pretrain(out=two / "stopped", **{**LONG, "checkpoint_steps": 0})
    except SystemExit as stop:
        seen["stopped"] = stop.code
    seen["stopped at"] = len((two / "stopped" / "metrics.jsonl").read_text().splitlines())

    seen["errors"] = [
        attempt(out=two / "mae", epochs=3),
        attempt(out=two / "x", batch_size=1),
        attempt(out=two / "x", images="no-such-folder"),
        attempt(out=two / "x", devices=3),
        attempt(out=two / "x", shard=True, compile=True),
    ]
    (two / f"rank-{group().rank}.json").write_text(json.dumps(seen))

    group().once(lambda: None)
    if group().rank == 1:
        at_line(two / "killed", 3, signal.SIGKILL)
    words = [w for n, v in LONG.items() if n != "quiet" for w in ("--" + n.replace("_", "-"), str(v))]
    sys.argv = ["moce", "pretrain", "--out", str(two / "killed"), *words]
    main()


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
