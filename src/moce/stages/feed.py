"""What training stages share: the pictures of a run, their order, and what a step makes of a batch.

Everything random about a picture in a step (crop, mirror, mask, gate noise) is a function of (seed, epoch, index of
the picture), so a run does not depend on the number of processes or on being interrupted.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moce.config import Training
from moce.engine.devices import moved, num_workers_of, pick_device
from moce.engine.files import told_why, write_whole
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.randomness import uniform
from moce.engine.trainer import Plan
from moce.errors import UserError, counted
from moce.images.augment import finish, flips
from moce.images.loader import Batch, Survey, training_batches
from moce.images.normalise import Normalisation
from moce.images.sampler import Order
from moce.images.sources import Source

UNREADABLE, MET = "unreadable.txt", "unreadable-{}.txt"  # of all; of a process, while it trains


@dataclass(frozen=True)
class Feed:
    """Pictures in the order of a run."""

    source: Source
    survey: Survey
    order: Order
    plan: Plan
    image_size: tuple[int, int]
    config: Training
    unreadable: set[int] = field(default_factory=set)  # known from the survey, or met in training
    folder: Path | None = None  # of the run, which keeps what was met for when it is continued

    def batches(self, first_step: int, rank: int, processes: int) -> Iterator[Batch]:
        """This process's share of each global batch from `first_step` on; notes pictures that had to be replaced."""
        found = training_batches(
            self.source,
            self.order,
            self.image_size,
            self.config.min_crop,
            self.config.seed,
            first_step,
            self.plan.num_steps,
            num_workers=num_workers_of(self.config.num_workers),
            cache_gib=self.config.cache_gib,
            quiet=self.config.quiet,
            unreadable=self.survey.unreadable,
            rank=rank,
            world=processes,
            device=cropped_on(pick_device(self.config.device), self.config.cache_gib),
        )
        for step, batch in enumerate(found, first_step):
            wanted = self.order.batch(step, rank, processes)[0]
            self._note(set(wanted[wanted != batch.indices].tolist()) - self.unreadable)
            yield batch

    def _note(self, met: set[int]) -> None:
        self.unreadable.update(met)
        if met and self.folder is not None:
            path = self.folder / MET.format(group().rank)
            with told_why(path), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"\n{i}\t{self.source.name(i)}" for i in sorted(met)))


def open_feed(
    source: Source,
    checked: Survey,
    image_size: tuple[int, int],
    config: Training,
    selected: Int64[Tensor, " selected"] | None = None,
    folder: Path | None = None,
) -> Feed:
    """The feed of a run over surveyed pictures. UserError when a process would get none of a batch.

    Where only `selected` pictures are trained on, there are as many steps as all pictures would have had. In the
    `folder` of a run that is continued, the pictures are named that could not be read before.
    """
    if config.batch_size < group().world:
        raise UserError(
            f"--batch-size {config.batch_size} is less than the {group().world} processes; each needs a picture."
        )
    whole = Order(len(source), config.batch_size, config.seed, kind=config.order, shards=source.shards())
    order = whole
    if selected is not None:
        readable = selected[~torch.isin(selected, torch.tensor(list(checked.unreadable), dtype=torch.int64))]
        order = Order(
            len(source),
            config.batch_size,
            config.seed,
            kind=config.order,
            shards=source.shards(),
            allowed=readable.numpy(),
        )
    if config.batch_size > len(order):
        text = f"--batch-size {config.batch_size} is more than the {len(order)} pictures: a step sees some of them "
        say(f"{text}several times", config.quiet)
    num_steps = config.steps or whole.steps_for(config.epochs)
    plan = Plan(num_steps, len(order), config.batch_size, config.warmup)
    met = met_before(folder) if folder is not None else set()
    broken = set(checked.unreadable) | {index for index in met if index < len(source)}
    return Feed(source, checked, order, plan, image_size, config, broken, folder)


def cropped_on(device: torch.device, cache_gib: float) -> torch.device | None:
    """The device, when pictures of one size are to be kept and cropped there; None: on the CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return device if cache_gib * 2**30 < free / 4 else None  # the rest is for training


def met_before(folder: Path) -> set[int]:
    """Indices of what the processes of an interrupted run could not read; an index that is cut off is none."""
    texts = [path.read_text("utf-8", errors="replace") for path in folder.glob(MET.format("*"))]
    return {int(index) for text in texts for index in re.findall(r"^(\d+)\t", text, re.MULTILINE)}


def list_unreadable(folder: Path, source: Source, indices: Collection[int], quiet: bool) -> None:
    """Name the pictures that were skipped in the run folder, and say so; what its processes noted goes."""
    if not indices:
        return
    path, lines = folder / UNREADABLE, [f"{i}\t{source.name(i)}\n" for i in sorted(indices)]
    with write_whole(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    for noted in folder.glob(MET.format("*")):
        noted.unlink()
    are = "is" if len(indices) == 1 else "are"
    say(f"{counted(len(indices), 'picture')} cannot be read and {are} left out; {path} lists which", quiet)


def prepared(
    batch: Batch, config: Training, device: torch.device, pixels: Normalisation
) -> Float[Tensor, "images channels rows columns"]:
    """Pictures of a batch on the device, mirrored and normalised."""
    mirrored = moved(flips(config.seed, batch.epochs, batch.indices), device) if config.flip else None
    return finish(moved(batch.images, device), mirrored, *pixels)


def mask_noise(
    batch: Batch, seed: int, num_patches: int, device: torch.device
) -> Float[Tensor, "images patches"]:
    """The noise that decides which patches are masked."""
    return moved(uniform(seed, "mask", batch.epochs, batch.indices, num_patches), device)
