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


def test_a_signal_is_noted_once_there_is_something_to_save(handled: list[int]) -> None:
    with Interruption(group()) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert handled == [signal.SIGTERM] and not interruption.signal
        interruption.worth_saving = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.agree(save=False) == (signal.SIGTERM, False) and len(handled) == 1
        os.kill(os.getpid(), signal.SIGTERM)  # somebody is in a hurry
        assert len(handled) == 2
    os.kill(os.getpid(), signal.SIGTERM)
    assert len(handled) == 3


def test_ctrl_c_while_nothing_is_there_to_be_saved() -> None:
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
