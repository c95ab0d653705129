"""What is made once for all processes of a test session, and how long they wait for others."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Seconds in which a process has to do what is asked of it, less than `timeout` in pyproject.toml leaves a test; a
# machine that others use may be very slow.
PATIENCE = 500


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills: the first process that asks does it, the others wait. Read only."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / ".making", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".made").exists():
            make(folder)
            (folder / ".made").touch()
    return folder
