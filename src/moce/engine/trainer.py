"""The training loop. The only file that knows Fabric.

The loop knows nothing about what is trained: that is an `Objective`. Everything random comes with the batch's indices.

With several processes each sees its slice of every batch. An objective gives loss and log so that the mean over
processes is that of the whole batch; DDP takes that mean of the gradients. Process 0 alone writes.
"""

import copy
import inspect
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from moce.config import Training
from moce.engine.checkpoint import checkpoints, restore_checkpoint, save_checkpoint
from moce.engine.devices import multiplies_in_bf16, peak_flops, peak_rss_bytes, pick_device
from moce.engine.endings import Interruption, leave_by
from moce.engine.launch import local_world_size
from moce.engine.processes import Group, group
from moce.engine.progress import clock, say, track
from moce.engine.runs import Run
from moce.engine.shards import Opening, Sealed, bring_together, here, spread
from moce.errors import NotFinite, counted


class Objective(nn.Module):
    """What a stage trains: `forward(batch)` gives the loss and what to log, which is averaged over the steps of a line
    (scalars and vectors); checkpoints hold what is `trained`.
    """

    trained: nn.Module

    def parameter_groups(self, config: Training) -> list[dict[str, Any]]:
        """AdamW's groups; `peak_lr` in a group is its learning rate at the top of the schedule."""
        raise NotImplementedError

    def flops_per_image(self) -> int:
        """FLOPs of a training step on one picture."""
        raise NotImplementedError

    def parts(self) -> list[nn.Module]:
        """The parts of the model that hold most weights, for --shard: linear maps alone, used by calling the part."""
        return []

    def describe(self, logged: dict[str, Any]) -> dict[str, Any]:
        """The fields of a metrics line beside the loss, from the averaged logs."""
        return logged

    def watch(self, line: dict[str, Any], share_done: float) -> str | None:
        """A warning about this metrics line, if there is one to be given."""
        return None


@dataclass(frozen=True)
class Plan:
    """How long training takes, in steps and pictures."""

    num_steps: int
    num_images: int  # pictures of an epoch
    batch_size: int
    warmup: float

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate: linear warm-up, then half a cosine down to zero (He et al., A.1)."""
        warmup_steps = max(round(self.warmup * self.num_steps), 1)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(self.num_steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * progress))


def without_decay(name: str) -> bool:
    """Whether weight decay stays away from a parameter, by its name: biases, norms, cls, positions, gates."""
    parts = name.replace("_", ".").split(".")
    biases = any(p in ("bias", "b1", "b2") for p in parts)
    return biases or any(p.startswith(("norm", "cls", "pos", "gate")) for p in parts)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], peak_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable ones of these parameters in two groups, with and without weight decay."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (plain if without_decay(name) else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "peak_lr": peak_lr},
        {"params": plain, "weight_decay": 0.0, "peak_lr": peak_lr},
    ]


def fabric_of(
    device: torch.device, bf16: bool, processes: Group, shard: bool = False, unused: bool = False
) -> Any:
    """Fabric for one process, or for one of several that share their gradients (DDP) or all their weights (FSDP2).

    With `unused`, there may be parameters that a step gives no gradient.
    """
    from lightning_fabric import Fabric  # seconds to import, and bad input should be answered before
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    class PlainDDP(DDPStrategy):
        """DDP that leaves a batch where it is: indices stay on the CPU, where randomness is computed from them."""

        def _determine_ddp_device_ids(self) -> None:
            return None

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the run says its precision itself
    settings: dict[str, Any] = {
        "accelerator": device.type,
        "devices": [device.index or 0] if device.type == "cuda" else 1,
        "precision": "bf16-mixed" if bf16 else "32-true",
        "plugins": [LightningEnvironment()],
    }
    strategy: Any
    if shard:
        strategy = ModelParallelStrategy(
            lambda module, mesh: spread(module, mesh["data_parallel"], bf16),
            data_parallel_size=processes.world,
            tensor_parallel_size=1,
        )
    elif processes.world > 1:
        # Of ours every parameter gets a gradient in every step, an expert without pictures zeros.
        # Buffers are constants, or the same everywhere (batch norms of the whole batch, transfer/norm.py); older
        # torch has another name for leaving them alone.
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {
            "find_unused_parameters": unused,
            "gradient_as_bucket_view": True,
            buffers: False,
        }
        strategy = PlainDDP(**options)
    if processes.world > 1:
        beside = local_world_size()
        settings |= {"strategy": strategy, "devices": beside, "num_nodes": processes.world // beside}
        settings |= {"plugins": [TorchElasticEnvironment()]}
    fabric = Fabric(**settings)
    fabric.launch()
    return fabric


def train(
    run: Run,
    objective: Objective,
    batches: Callable[[int, int, int], Iterator[Any]],
    plan: Plan,
    config: Training,
    what: str,
    lower: str = "--base-lr",
    unused: bool = False,
) -> dict[str, Any]:
    """Train `objective` for `plan.num_steps`, continuing from the run's newest checkpoint.

    `batches(first step, rank, processes)` yields this process's share of each global batch. Returns what goes into
    the run's result. Raises NotFinite when the loss is not finite, naming the option to `lower`; the last good
    checkpoint stays. With `unused`, there may be parameters that a step gives no gradient (networks of others).
    """
    processes = group()
    device = pick_device(config.device)
    bf16 = multiplies_in_bf16(device, config.precision)
    fabric = fabric_of(device, bf16, processes, config.shard, unused)
    # What is spread cannot be made whole again in its place, so a copy is: it is that which trains.
    working = copy.deepcopy(objective) if config.shard else objective.to(device)
    module = fabric.setup_module(Opening(working) if config.shard else working)
    groups = working.parameter_groups(config)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, config.beta2), fused=True)
    step, spent, spent_cpu = 0, 0.0, 0.0
    sums: dict[str, Tensor] = {}
    line: dict[str, Any] = {}
    if saved := run.once(lambda: checkpoints(run.path)):
        sums, about = restore_checkpoint(saved[-1], working.trained, optimizer)
        step, spent, spent_cpu = about["step"], about["seconds"], about["cpu_seconds"]
        sums = {n: t.to(device) for n, t in sums.items()}
        say(f"{what} continues after step {step:,} of {plan.num_steps:,}", config.quiet)
    run.keep_metrics_before(step)
    optimizer = fabric.setup_optimizers(optimizer)
    peak = peak_flops(device.type, bf16) * processes.world
    flops = objective.flops_per_image()
    started = line_started = saved_at = time.monotonic()
    started_cpu = time.process_time()
    line_first = step

    def costs() -> dict[str, float]:
        cpu = processes.sum(torch.tensor(time.process_time() - started_cpu, dtype=torch.float64))
        return {"seconds": spent + time.monotonic() - started, "cpu_seconds": spent_cpu + cpu.item()}

    images = plan.num_steps * plan.batch_size
    with (
        Interruption(processes) as interruption,
        track(images, what, done=step * plan.batch_size, quiet=config.quiet) as bar,
    ):
        stream = batches(step, processes.rank, processes.world) if step < plan.num_steps else iter(())
        for batch in stream:
            for parameters in optimizer.param_groups:
                parameters["lr"] = parameters["peak_lr"] * plan.lr_factor(step)
            loss, logs = module(Sealed(batch) if config.shard else batch)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            for name, value in {"loss": loss, "count": torch.ones((), device=device), **logs}.items():
                value = value.detach().float()
                sums[name] = sums[name] + value if name in sums else value
            step += 1
            interruption.worth_saving = True
            bar.advance(plan.batch_size)
            last, line_is_due = step == plan.num_steps, step % config.log_steps == 0 or step == plan.num_steps
            late = time.monotonic() - saved_at > 60 * config.checkpoint_minutes
            signal, save = interruption.agree(late, at_once=last)
            save |= bool(config.checkpoint_steps) and step % config.checkpoint_steps == 0
            if line_is_due or save or signal:
                sums = processes.averages(sums)
                require_finite(sums, working.trained, step, run, lower)
            if line_is_due:
                now = time.monotonic()
                speed = (step - line_first) * plan.batch_size / max(now - line_started, 1e-9)
                line = {"step": step, "epoch": step * plan.batch_size / plan.num_images}
                means = averages(sums)
                line |= {
                    "loss": means.pop("loss"),
                    "lr": optimizer.param_groups[0]["lr"],
                    "images_per_second": speed,
                }
                line |= {"utilisation": speed * flops / peak, **objective.describe(means)}
                run.metrics(line)
                if warning := objective.watch(line, step / plan.num_steps):
                    say(warning, config.quiet)
                bar.note = f"loss {line['loss']:.4f}"
                sums, line_started, line_first = {}, now, step
            if signal or (save and not last):
                save_checkpoint(run.path, step, working.trained, optimizer.optimizer, sums, costs())
                saved_at = time.monotonic()
            if signal:
                leave_by(signal)
    if config.shard:
        bring_together(working.trained, objective.trained)
    cost = costs()
    if line:
        took = clock(cost["seconds"])
        say(
            f"{run.path}: loss {line['loss']:.4f} after {counted(plan.num_steps, 'step')} in {took}",
            config.quiet,
        )
    return {
        "loss": line.get("loss"),
        "steps": plan.num_steps,
        "images": images,
        **cost,
        "images_per_second": images / max(cost["seconds"], 1e-9),
        "precision": "bf16" if bf16 else "fp32",
        "device": str(device),
        "processes": processes.world,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "cores": os.cpu_count(),
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def averages(sums: dict[str, Tensor]) -> dict[str, Any]:
    """Sums (scalars and vectors) of a metrics line over its number of steps, as Python numbers and lists.

    They are read from the device in one piece.
    """
    count, logged = sums["count"], {n: s for n, s in sums.items() if n != "count"}
    numbers = iter(torch.cat([(s / count).flatten() for s in logged.values()]).tolist())
    return {n: list(islice(numbers, len(s))) if s.ndim else next(numbers) for n, s in logged.items()}


@torch.no_grad()
def require_finite(
    sums: dict[str, Tensor], module: nn.Module, step: int, run: Run, lower: str = "--base-lr"
) -> None:
    """NotFinite when loss or weights have left the numbers since the last check; asked before they are saved.

    All processes ask, and hear the same.
    """
    norms = torch._foreach_norm([here(p) for p in module.parameters() if p.requires_grad])
    total = group().sum(torch.stack([*norms, sums.get("loss", norms[0])]).sum())
    if not math.isfinite(total.item()):
        kept = checkpoints(run.path)
        where = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written before"
        raise NotFinite(
            f"The loss is not finite at step {step}: {where}; take a lower {lower}"
            f"{', or --precision fp32,' if lower == '--base-lr' else ''} and another --out or --overwrite."
        )
