"""What two processes evaluate in tests/transfer/test_several_processes.py, all in one go.

Run by both with a JSON file of evaluations, {name: options}, and the folder to write to. Each process leaves what they
gave in `rank-N.json`. The last fine-tuning is stopped in its fifth step by a signal to process 1, and continued.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import moce
from moce.engine.processes import group
from moce.errors import UserError
from moce.images.loader import Batch
from moce.transfer import finetune

PROBES = ("knn", "knn,linear")
STOPPED_IN = 5  # the step in which process 1 gets its signal


def stopped_and_continued(folder: Path, **options: Any) -> dict[str, Any]:
    """(exit code, checkpoints, result) of a fine-tuning that is interrupted."""
    forward, steps = finetune.Classification.forward, itertools.count()

    def signalled(self: finetune.Classification, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if next(steps) == STOPPED_IN and group().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch)

    finetune.Classification.forward = signalled  # type: ignore[method-assign]
    code = None
    try:
        moce.evaluate(out=folder, **options)
    except SystemExit as stop:
        code = stop.code
    finetune.Classification.forward = forward  # type: ignore[method-assign]
    left = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    return {"code": code, "left": left, "result": moce.evaluate(out=folder, **options)}


def binary_losses() -> list[float]:
    """[the mean over processes of the loss of uneven parts, the loss of all pictures in one process]."""
    me, random = group(), torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 3, generator=random), torch.randint(-1, 2, (5, 3), generator=random)
    own = slice(0, 2) if me.rank == 0 else slice(2, 5)
    together = me.sum(finetune.binary_loss(logits[own], labels[own])) / me.world
    judged = (labels >= 0).float()
    summed = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), judged, reduction="sum")
    return [together.item(), (summed / judged.sum()).item()]


def refused(**options: Any) -> str:
    """What `moce.evaluate` says of options that cannot be used."""
    try:
        moce.evaluate(**options)
    except UserError as error:
        return str(error)
    return "no error"


def run(evaluations: dict[str, dict[str, Any]], folder: Path) -> None:
    """Every evaluation, the interrupted one, and a batch that is too small."""
    seen: dict[str, Any] = {}
    for name, options in evaluations.items():
        place = {} if options["protocol"] in PROBES else {"out": folder / name}
        seen[name] = moce.evaluate(**options, **place)
    seen["binary"] = binary_losses()
    seen["stopped"] = stopped_and_continued(folder / "stopped", **evaluations["finetune"])
    small = {**evaluations["finetune"], "out": folder / "small"}
    seen["refused"] = refused(**{**small, "batch_size": 1})
    seen["nothing there"] = not (folder / "small").exists()
    seen["download"] = refused(**small, download=True)
    (folder / f"rank-{group().rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
