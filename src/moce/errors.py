"""What a person did wrong, in one sentence.

`UserError` is the only exception that the command line turns into exit code 2 without a traceback. Its text says what
is wrong, where, and what to do. Everything else that escapes is a fault of ours (exit code 1).
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used; the message is one sentence for people."""


class ProcessLost(RuntimeError):
    """Another process of the same run is gone; the message is one sentence for people, the exit code 1."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' when a choice looks like `word`, else the empty string."""
    near = difflib.get_close_matches(word.lower(), {c.lower(): c for c in choices}, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
