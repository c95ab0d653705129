"""Files of other people's models on the Hugging Face hub, or in its cache on this machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import get_session

from moce.engine.files import read_json
from moce.engine.progress import errors_alone
from moce.errors import UserError, did_you_mean, first_line


@contextmanager
def asked_once() -> Iterator[None]:
    """What the block asks of the hub comes at once or not at all: where the hub does not answer, from the cache alone.

    The hub's client asks seven times for a file, with pauses of 23 seconds in all, and has no setting for that.
    """
    before = constants.HF_HUB_OFFLINE
    with errors_alone("huggingface_hub"):
        constants.HF_HUB_OFFLINE = before or not answers(int(time.monotonic() // 60))
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


@lru_cache(maxsize=1)
def answers(minute: int) -> bool:
    """Whether the hub answers within HF_HUB_ETAG_TIMEOUT seconds; asked again in another `minute` alone."""
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # of the library that the client speaks HTTP with, whichever that is
        return False
    return True


def why_not(error: BaseException) -> str:
    """Why a file of the hub cannot be had, in one line."""
    if isinstance(error, LocalEntryNotFoundError):
        return "it is not in the local cache, and the hub cannot be reached"
    return first_line(error)


def hub_json(uri: str, file: str, needed: bool = True) -> dict[str, Any]:
    """A JSON file of the model that hf:NAME names, a folder or a name on the hub; UserError without it.

    Where it is not `needed`, nothing instead.
    """
    name = uri.removeprefix("hf:")
    folder = Path(name)
    if folder.is_dir():
        return read_json(folder / file) if needed or (folder / file).is_file() else {}
    if name.startswith(("/", ".", "~")):
        beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"{uri}: there is no folder {name}.{did_you_mean(folder.name, beside)}")
    try:
        with asked_once():
            return read_json(hf_hub_download(name, file))
    except UserError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:  # no network, no such repository, no name of one
        if not needed:
            return {}
        raise UserError(
            f"{uri}: there is no such folder, and no model of this name can be had: {why_not(error)}."
        ) from None
