"""Two halves of a set of pictures by what they show: A and B, and C for what is neither.

    wordnet    classes that are WordNet ids: A living things, B artifacts, C the others (wordnet.py)
    toyworld   classes of the built-in pictures: A natural kinds, B made ones
    a file     lines of a class, spaces or a tab, and A or B; a class that is not named is C

The paper's own two halves of ImageNet (Split-A, Split-B) were not published; these are ours.
"""

from collections.abc import Sequence
from pathlib import Path

from moce.errors import UserError
from moce.images.sources import Source
from moce.images.subset import numbered_lines, require_class
from moce.images.toyworld import KINDS, NATURAL
from moce.images.wordnet import LIVING, is_wnid, kind_of_thing

HALVES = ("A", "B")
KNOWN = ("auto", "wordnet", "toyworld")


def halves_of(source: Source, by: str = "auto") -> dict[str, list[str]]:
    """{A: classes, B: classes, C: classes} of a source; C may be empty. `by`: wordnet, toyworld, auto (one that fits),
    or a file. UserError where classes do not say what they are, and where a half has none of the source's classes.
    """
    if source.labels is None or source.classes is None:
        raise UserError(
            f"The pictures of '{source.uri}' have no labels, so nobody knows their halves; give pictures in folders "
            "by class, or with a label column."
        )
    present = [source.classes[number] for number in sorted(set(source.labels.tolist()))]
    half = _by_name(source.uri, present, by) if by in KNOWN else read_halves(by, source.classes)
    found: dict[str, list[str]] = {letter: [] for letter in (*HALVES, "C")}
    for name in present:
        found[half.get(name, "C")].append(name)
    for letter in HALVES:
        if not found[letter]:
            raise UserError(
                f"No class of '{source.uri}' is in half {letter} (by {by}): there is nothing to compare."
            )
    return found


def _by_name(uri: str, classes: Sequence[str], by: str) -> dict[str, str]:
    """The half of each class that is in one."""
    if by in ("auto", "wordnet") and all(map(is_wnid, classes)):
        things = {name: kind_of_thing(name) for name in classes}
        return {name: "A" if thing in LIVING else "B" if thing else "C" for name, thing in things.items()}
    kinds = {name: name.partition("/")[0] for name in classes}
    if by in ("auto", "toyworld") and all(kind in KINDS for kind in kinds.values()):
        return {name: "A" if kind in NATURAL else "B" for name, kind in kinds.items()}
    what = {
        "auto": "neither WordNet ids nor kinds of the toy world",
        "wordnet": "no WordNet ids",
        "toyworld": "no kinds of the toy world",
    }
    raise UserError(
        f"The classes of '{uri}' are {what[by]} ({', '.join(classes[:3])}, ...): name a file of lines 'CLASS A' and "
        "'CLASS B'."
    )


def read_halves(path: str | Path, classes: Sequence[str]) -> dict[str, str]:
    """The half of each class that a file names; UserError for a line that says something else."""
    half: dict[str, str] = {}
    for number, line in numbered_lines(path):
        name, _, letter = (part.strip() for part in line.replace("\t", " ").rpartition(" "))
        if letter not in HALVES or not name:
            raise UserError(
                f"{path}, line {number}: write a class and A or B, such as 'cat A', not '{line}'."
            )
        require_class(name, classes, f"{path}, line {number}")
        if half.setdefault(name, letter) != letter:
            raise UserError(f"{path}, line {number}: the class '{name}' is in both halves.")
    return half
