"""Where the numbers of a run are drawn while it goes: TensorBoard in its folder and, if asked for, Weights & Biases."""

import importlib.util
import secrets
from pathlib import Path
from typing import Any

from moce.engine.files import read_json, write_json
from moce.errors import UserError

TENSORBOARD, WANDB = "tensorboard", "wandb.json"


class Boards:
    """Takes the lines of `metrics.jsonl`.

    A continued run goes on in the same Weights & Biases run, whose id `wandb.json` in the run folder keeps.
    """

    def __init__(self, folder: Path, project: str | None) -> None:
        self.folder, self.project = folder, project
        self.after = 0  # the step behind which this process draws
        self._tensorboard: Any = None
        self._wandb: Any = None
        if project and importlib.util.find_spec("wandb") is None:
            raise UserError("--wandb needs the package wandb: install moce[wandb], or leave the option out.")

    def start(self, after: int) -> None:
        """Be ready for the lines behind step `after`; says now, and not after an hour, that a login is missing."""
        self.after = after
        if self.project:
            self._wandb = self._open_wandb(self.project)

    def add(self, line: dict[str, Any]) -> None:
        """Draw the numbers of a line at its step."""
        numbers = {n: v for n, v in line.items() if isinstance(v, (int, float)) and n != "step"}
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import

            # Points that a killed run drew behind its last checkpoint are dropped.
            self._tensorboard = SummaryWriter(str(self.folder / TENSORBOARD), purge_step=self.after + 1)
        for name, value in numbers.items():
            self._tensorboard.add_scalar(name, value, line["step"])
        if self._wandb is not None:
            self._wandb.log({**numbers, "trained_steps": line["step"]})

    def _open_wandb(self, project: str) -> Any:
        import wandb

        about = self.folder / WANDB
        if not about.is_file():
            write_json(about, {"id": secrets.token_hex(4), "project": project})
        try:
            run = wandb.init(
                project=project,
                id=read_json(about)["id"],
                resume="allow",
                name=self.folder.resolve().name,
                dir=str(self.folder),
                config=read_json(self.folder / "config.json"),
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                f"--wandb {project}: {reason}; run `wandb login`, or set WANDB_MODE=offline to send the numbers later."
            ) from None
        # By a metric of ours and not by W&B's own step, which must not go back: a run that was killed
        # continues from its last checkpoint and computes some steps again.
        run.define_metric("trained_steps")
        run.define_metric("*", step_metric="trained_steps")
        return run

    def close(self, failed: bool = False) -> None:
        """Write out what is not yet; a run that `failed` or was interrupted is not shown as finished."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))
