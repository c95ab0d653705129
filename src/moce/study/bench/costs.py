"""What a network costs before it is timed: parameters and FLOPs, all of them and those that a picture needs.

FLOPs are multiply-adds times two of matrix products, convolutions and attention, counted by torch while a batch passes
through, so that whatever is computed in vain is in them: the rows that fill up an expert's share to a round number. For
`all` the same batch passes the reference dispatcher, in which every expert computes every row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moce.model.dispatch import ExpertMLPs


@dataclass(frozen=True)
class Costs:
    """Of one picture in one forward pass."""

    parameters: int
    active_parameters: int  # that take part in the pass of one picture (or token)
    flops: int  # as if every expert computed every row
    active_flops: int  # as it is computed

    def to_json(self) -> dict[str, int]:
        """For a row."""
        return asdict(self)


def costs_of(
    module: nn.Module, forward: Callable[[], Any], num_images: int, all_at_once: bool = False
) -> Costs:
    """The costs of `forward`, which passes `num_images` pictures through `module`.

    `all_at_once`: no expert is chosen (the whole net of SDR, whose own halves are averaged), so all are active.
    """
    parameters, unused = sum(p.numel() for p in module.parameters()), 0
    for experts in _experts(module) if not all_at_once else ():
        own = sum(p.numel() for p in experts.parameters())
        unused += own * (experts.num_experts - 1) // experts.num_experts
    active = counted(forward)
    with every_expert(module):
        every = counted(forward)
    return Costs(parameters, parameters - unused, round(every / num_images), round(active / num_images))


@torch.no_grad()
def counted(forward: Callable[[], Any]) -> int:
    """FLOPs of a call, forward alone."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def _experts(module: nn.Module) -> list[ExpertMLPs]:
    return [part for part in module.modules() if isinstance(part, ExpertMLPs)]


@contextmanager
def every_expert(module: nn.Module) -> Iterator[None]:
    """Let every expert compute every row while the block runs."""
    before = [(experts, experts.dispatch) for experts in _experts(module)]
    try:
        for experts, _ in before:
            experts.dispatch = "loop"
        yield
    finally:
        for experts, dispatch in before:
            experts.dispatch = dispatch
