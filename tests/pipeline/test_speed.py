"""What makes training fast changes nothing beyond rounding: the same eight steps in fp32 under every setting.

The settings are those of the table in docs/scaling.md; tests/engine/test_distributed.py has those of several processes.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from same_numbers import assert_same_numbers, lines
from torch.nn import functional

import moce
from moce.images import loader, reading
from moce.model import autoencoder, dispatch

EIGHT_STEPS = {"epochs": 1, "precision": "fp32", "num_workers": 0, "device": "cpu", "quiet": True}
ADAMW = torch.optim.AdamW

Used = list[object]
"""What a setting leaves where it comes to work: without it nobody would know whether it was there."""
Setting = tuple[dict[str, Any], Callable[[pytest.MonkeyPatch, Used], None]]
"""Options, and what is changed: to see that they are used, or what no option changes."""


def other_attention(patch: pytest.MonkeyPatch, used: Used) -> None:
    """The fused kernel in training on a CPU."""
    kernel = functional.scaled_dot_product_attention

    def seen(*args: Any, **options: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            used.append("kernel")
        return kernel(*args, **options)

    patch.setattr(functional, "scaled_dot_product_attention", seen)
    patch.setattr(autoencoder, "fuses_attention", lambda device: True)


def shares_as_they_come(patch: pytest.MonkeyPatch, used: Used) -> None:
    """Experts' shares of rows not filled up."""
    layout_of = dispatch.layout_of

    def seen(*args: Any) -> dispatch.Layout:
        layout = layout_of(*args)
        if layout.share_E.sum() == len(layout.place_R) and (layout.share_E % 32 != 0).any():
            used.append("shares")
        return layout

    patch.setattr(dispatch, "layout_of", seen)
    patch.setattr(dispatch, "ROWS", 1)


def plain_adamw(patch: pytest.MonkeyPatch, used: Used) -> None:
    """AdamW parameter by parameter."""

    def plain(*args: Any, fused: bool, **options: Any) -> torch.optim.Optimizer:
        assert fused
        used.append("AdamW")
        return ADAMW(*args, foreach=False, **options)

    patch.setattr(torch.optim, "AdamW", plain)


def one_worker(patch: pytest.MonkeyPatch, used: Used) -> None:
    """Forget the pictures that earlier runs have decoded, and note a step's crops that another process made."""
    reading.forget()
    here, in_workers = os.getpid(), loader.in_workers
    crops_of = loader._Crops.__getitem__

    def marked(crops: Any, step: int) -> Any:
        return *crops_of(crops, step), os.getpid()

    def seen(dataset: Any, items: range, num_workers: int) -> Iterator[Any]:
        for item in in_workers(dataset, items, num_workers):
            if not isinstance(dataset, loader._Crops):
                yield item
                continue
            *batch, process = item
            if process != here:
                used.append(process)
            yield batch

    patch.setattr(loader._Crops, "__getitem__", marked)
    patch.setattr(loader, "in_workers", seen)


def dispatcher(name: str) -> Callable[[pytest.MonkeyPatch, Used], None]:
    """Note every call of a dispatcher with a gradient, so in training."""

    def change(patch: pytest.MonkeyPatch, used: Used) -> None:
        own = dispatch.DISPATCHERS[name]

        def seen(*args: Any) -> torch.Tensor:
            if torch.is_grad_enabled():
                used.append(name)
            return own(*args)

        patch.setitem(dispatch.DISPATCHERS, name, seen)

    return change


BOTH: dict[str, Setting] = {
    "attention": ({}, other_attention),
    "optimiser": ({}, plain_adamw),
    "pictures read by workers": ({"num_workers": 1, "cache_gib": 0}, one_worker),
}
DISPATCH: dict[str, Setting] = {
    "loop": ({"dispatch": "loop"}, dispatcher("loop")),
    "grouped": ({"dispatch": "grouped"}, dispatcher("grouped")),
    "shares": ({}, shares_as_they_come),
}
TIMES = {  # that a setting comes to work in eight steps of the debug preset, at least
    **dict.fromkeys([*BOTH, *DISPATCH], 8),
    **dict.fromkeys(["loop", "grouped"], 8 * 2 * 2),  # two blocks with experts, two choices
    "optimiser": 1,
}


@pytest.fixture(scope="module")
def train(small_runs, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Eight steps of a method; those without a setting are trained once."""
    folder = tmp_path_factory.mktemp("speed")

    @functools.cache
    def reference(method: str) -> Path:
        return run(method, "reference")

    def run(method: str, name: str, **options: Any) -> Path:
        out = folder / f"{method}-{name}"
        used = {**EIGHT_STEPS, **options, "images": small_runs.images, "out": out}
        if method == "dense":
            moce.pretrain(preset="debug", **used)
        else:
            moce.train_experts(small_runs.mae, small_runs.clusters, gate=method, top_k=2, **used)
        assert len(lines(out)) == 8
        return out

    def trained(method: str, name: str | None = None, **options: Any) -> Path:
        return reference(method) if name is None else run(method, name, **options)

    return trained


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("method", ["dense", "cluster"])
def test_speed_changes_no_number(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    wanted = train(method)
    options, change = BOTH[name]
    change(monkeypatch, used := [])
    assert_same_numbers(wanted, train(method, name, **options))
    assert len(used) >= TIMES[name], "the setting was not used"


@pytest.mark.parametrize("name", DISPATCH)
@pytest.mark.parametrize("method", ["cluster", "token"])
def test_dispatch_changes_no_number(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    wanted = train(method)
    options, change = DISPATCH[name]
    change(monkeypatch, used := [])
    assert_same_numbers(wanted, train(method, name, **options))
    assert len(used) >= TIMES[name], "the setting was not used"


def test_the_comparison_sees_what_is_not_rounding(train: Callable[..., Path]) -> None:
    """One thousandth more learning rate."""
    with pytest.raises(AssertionError):
        assert_same_numbers(train("dense"), train("dense", "faster", base_lr=4e-3 * 1.001))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiling_changes_no_number(train: Callable[..., Path], small_runs, tmp_path: Path, cli) -> None:
    """In a process of its own: what checks shapes in the tests cannot be compiled."""
    options = {name: value for name, value in EIGHT_STEPS.items() if name != "quiet"}
    words = [word for n, v in options.items() for word in ("--" + n.replace("_", "-"), str(v))]
    words += ["--preset", "debug", "--images", small_runs.images, "--compile", "--out", str(tmp_path / "run")]
    done = cli("pretrain", *words)
    assert done.code == 0, done.stderr
    assert_same_numbers(train("dense"), tmp_path / "run")
