"""Real processes that work on one run together, started without torchrun."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from shared import PATIENCE


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def run_both(*arguments: object, cwd: Path) -> tuple[list[int], list[str]]:
    """(exit codes, standard errors) of the same command as processes 0 and 1 of a run, without torchrun."""
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    both = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + PATIENCE
        said = [process.communicate(timeout=max(deadline - time.monotonic(), 1))[1] for process in both]
    finally:
        for process in both:
            process.kill()
    return [process.returncode for process in both], said
