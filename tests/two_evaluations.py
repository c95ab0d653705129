"""What two processes evaluate in tests/transfer/test_several_processes.py, all in one go.

Run by both with a JSON file of evaluations, {name: options}, and the folder to write to. Each process leaves what they
gave in `rank-N.json`. The last fine-tuning is stopped in its fifth step by a signal to process 1, and continued.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

import moce
from moce.engine.processes import group
from moce.errors import UserError
from moce.transfer import finetune

STOPPED_IN = 5  # the step in which process 1 gets its signal


def stopped_and_continued(folder: Path, **options: Any) -> dict[str, Any]:
    """(exit code, checkpoints, result) of a fine-tuning that is interrupted."""
    forward = finetune.Classification.forward

    def signalled(self: finetune.Classification, step: finetune.Step) -> tuple[Tensor, dict[str, Tensor]]:
        if group().rank == 1 and step.number == STOPPED_IN:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, step)

    finetune.Classification.forward = signalled  # type: ignore[method-assign]
    code = None
    try:
        moce.evaluate(out=folder, **options)
    except SystemExit as stop:
        code = stop.code
    finetune.Classification.forward = forward  # type: ignore[method-assign]
    left = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    return {"code": code, "left": left, "result": moce.evaluate(out=folder, **options)}


def run(evaluations: dict[str, dict[str, Any]], folder: Path) -> None:
    """Every evaluation, the interrupted one, and a batch that is too small."""
    seen: dict[str, Any] = {}
    for name, options in evaluations.items():
        place = {"out": folder / name} if "epochs" in options or "steps" in options else {}
        seen[name] = moce.evaluate(**options, **place)
    seen["stopped"] = stopped_and_continued(folder / "stopped", **evaluations["finetune"])
    try:
        moce.evaluate(**{**evaluations["finetune"], "batch_size": 1})
    except UserError as error:
        seen["refused"] = str(error)
    (folder / f"rank-{group().rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
