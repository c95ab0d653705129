"""How the processes of a run are started: torchrun's environment variables, or `--devices N` on one machine.

Nothing here needs torch until processes are started, so that the command line answers quickly.
"""

import logging
import os
import sys
import uuid

from moce.errors import UserError


def usable_cores() -> int:
    """Cores that this process may use: those that it is bound to, else all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"The environment variable {name} must be a whole number, not '{text}'; torchrun sets it."
        ) from None


def world_size() -> int:
    """Processes of this run on all machines; 1 unless torchrun, or whoever sets its variables, started several."""
    return _variable("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this process is."""
    return _variable("RANK", 0)


def local_world_size() -> int:
    """Processes of this run on this machine."""
    return _variable("LOCAL_WORLD_SIZE", world_size())


def local_rank() -> int:
    """Which of them this process is: the number of its GPU."""
    return _variable("LOCAL_RANK", rank())


def launch(devices: int, arguments: list[str]) -> int:
    """Run `moce` with these arguments in `devices` processes of this machine; the exit code.

    This is `torchrun --standalone --nproc-per-node N -m moce ...` without leaving the program: torchrun itself ends
    with 1 whatever its processes say.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the processes say themselves what is wrong
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(usable_cores() // devices, 1))
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(agent, sys.executable)("-m", "moce", *arguments)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as failed:
        first, failure = failed.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        print(
            f"moce: process {first} of {devices} was ended by signal {-failure.exitcode}; the same command continues.",
            file=sys.stderr,
        )
        return 1
    return 0
