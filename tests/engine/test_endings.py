"""Signals during training: noted where there is something to save, else the end at once."""

import os
import signal
from collections.abc import Iterator

import pytest

from moce.engine.endings import Interruption
from moce.engine.processes import group


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals that reach whoever handled them before."""
    found: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def at_a_terminal() -> Iterator[None]:
    """Where SIGINT is not ignored, as it is for a job in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_is_noted_once_there_is_something_to_save(handled: list[int]) -> None:
    with Interruption(group()) as interruption:
        interruption.worth_saving = True
        for _ in range(2):  # torchrun, or a batch system, passes on what the process has got already
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.agree(save=False) == (signal.SIGTERM, False) and not handled
    os.kill(os.getpid(), signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_before_there_is_anything_to_save_it_goes_to_whoever_handled_it(handled: list[int]) -> None:
    with pytest.raises(SystemExit), Interruption(group()) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
    assert handled == [signal.SIGTERM] and interruption.signal  # which training sees if nobody unwinds


def test_another_ctrl_c_a_while_later_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, at_a_terminal: None
) -> None:
    times = iter((100.0, 100.5, 102.0))
    monkeypatch.setattr("moce.engine.endings.time.monotonic", lambda: next(times))
    with Interruption(group()) as interruption:
        interruption.worth_saving = True
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_a_wish(handled: list[int]) -> None:
    """SIGINT of a job in the background of a script."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Interruption(group()) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM


def test_ctrl_c_while_nothing_is_there_to_be_saved(at_a_terminal: None) -> None:
    with pytest.raises(KeyboardInterrupt), Interruption(group()):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_nobody_handled_ends_as_it_asked() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended, Interruption(group()):
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
