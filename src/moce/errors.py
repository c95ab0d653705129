"""What a person did wrong, in one sentence.

`UserError` is the only exception that the command line turns into exit code 2 without a traceback. Its text says what
is wrong, where, and what to do. Everything else that escapes is a fault of ours (exit code 1).
"""

import difflib
import glob
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Input that cannot be used; the message is one sentence for people."""


class Busy(UserError):
    """A folder that another process works in; whoever has other things to do does those first."""


class ProcessLost(RuntimeError):
    """Another process of the same run is gone; the message is one sentence for people, the exit code 1."""


def require_there(uri: str) -> None:
    """UserError where `uri` is a plain path and nothing lies there; needs no library, so it can be asked at once."""
    path = Path(uri).expanduser()
    if ":" in uri or glob.has_magic(uri) or path.exists():
        return
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"There is no folder or file '{uri}'.{did_you_mean(path.name, beside)}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' when a choice looks like `word`, else the empty string."""
    spelled = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.5)
    return f" Did you mean '{spelled[near[0]]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line without an end mark."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:;")
