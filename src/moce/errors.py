"""What a person did wrong, in one sentence.

`UserError` is the only exception that the command line turns into exit code 2 without a traceback. Its text says what
is wrong, where, and what to do. Everything else that escapes is a fault of ours (exit code 1).
"""

import difflib
import glob
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

# How much of a choice, and of its beginning, has to be as in the word that it may be meant by: 2 * same / both lengths.
WHOLE, BEGINNING = 0.5, 0.75


class UserError(ValueError):
    """Input that cannot be used; the message is one sentence for people."""


class Busy(UserError):
    """A folder that another process works in; whoever has other things to do does those first."""


class NotFinite(UserError):
    """Training whose loss or weights have left the numbers; whoever has another learning rate takes that."""


class ProcessLost(RuntimeError):
    """Another process of the same run is gone; the message is one sentence for people, the exit code 1."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a UserError ends it with its sentence on stderr and exit code 2, as `moce` does."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def require_there(uri: str) -> None:
    """UserError where `uri` is a path or glob and nothing lies there; needs no library, so it can be asked at once."""
    path = Path(uri).expanduser()
    if ":" in uri or path.exists():
        return
    if glob.has_magic(uri):
        if glob.glob(str(path), recursive=True):
            return
        raise UserError(f"No file matches '{uri}'.")
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(f"There is no folder or file '{uri}'.{did_you_mean(path.name, beside)}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """' Did you mean 'x'?' when a choice, or its beginning, looks like `word`, else the empty string.

    'vit_tinny' is nearer to the beginning of 'vit_tiny_patch16_224' than to all of 'gcvit_tiny'.
    """
    matcher = difflib.SequenceMatcher(b=word.lower())

    def likeness(text: str) -> float:
        matcher.set_seq1(text.lower())
        return matcher.ratio()

    best, nearest = (0.0, 0.0), ""
    for choice in choices:
        whole, beginning = likeness(choice), likeness(choice[: len(word)])
        found = (max(whole, beginning), whole)  # of equal beginnings the one with the least behind it
        if word and (whole >= WHOLE or beginning >= BEGINNING) and found > best:
            best, nearest = found, choice
    return f" Did you mean '{nearest}'?" if nearest else ""


def counted(number: int, one: str, several: str = "") -> str:
    """'1 box' or '2,000 boxes'; without `several` it is `one` with an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line without an end mark."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:;")
