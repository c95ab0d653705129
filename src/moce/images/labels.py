"""Class numbers and names, from what a source says of its pictures: numbers, names or nothing."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

from moce.errors import UserError

MAX_CLASSES = 1_000_000


def classified(
    uri: str, found: Sequence[int | str | None], name: Callable[[int], str], names: list[str] | None = None
) -> tuple[Int64[np.ndarray, "images"] | None, list[str] | None]:
    """(labels, classes) by index; (None, None) where no picture has a label, a number below 0 being none.

    Numbers are class numbers, with `names` where those are known; texts are the classes' names. `name` says what to
    call the picture of an index. UserError where some pictures have a label and some have none.
    """
    missing = [label is None or (not isinstance(label, str) and label < 0) for label in found]
    if all(missing):
        return None, None
    if any(missing):
        raise UserError(f"'{uri}' has labels, but none for {name(missing.index(True))}.")
    if any(isinstance(label, str) for label in found):
        classes = sorted({str(label) for label in found})
        number = {text: label for label, text in enumerate(classes)}
        return np.array([number[str(label)] for label in found], np.int64), classes
    refuse_large(uri, max(int(label) for label in found if label is not None))
    labels = np.array(found, np.int64)
    return labels, class_names(uri, names, labels)


def refuse_large(uri: str, highest: int) -> None:
    """UserError for a class number that is none: there is a name, a row of the head, a count for each below it."""
    if highest >= MAX_CLASSES:
        raise UserError(f"'{uri}' has the label {highest}; class numbers must be below {MAX_CLASSES:,}.")


def class_names(uri: str, names: list[str] | None, labels: Int64[np.ndarray, "images"]) -> list[str]:
    """`names`, or the numbers as names; UserError where there are labels beyond the names."""
    highest = int(labels.max())
    if names is None:
        return [str(label) for label in range(highest + 1)]
    if highest >= len(names):
        raise UserError(f"'{uri}' has the label {highest} but names for {len(names)} classes only.")
    return names
