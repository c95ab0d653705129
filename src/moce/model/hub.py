"""Files of other people's models on the Hugging Face hub, or in its cache on this machine."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from moce.engine.files import read_json
from moce.errors import UserError, did_you_mean, first_line


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
        return read_json(hf_hub_download(name, file))
    except UserError:  # which is a ValueError
        raise
    except (OSError, ValueError) as error:  # no network, no such repository, no name of one
        if not needed:
            return {}
        raise UserError(
            f"{uri}: there is no such folder, and no model of this name can be had: {why_not(error)}."
        ) from None
