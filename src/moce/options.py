"""What an option is: a field of a dataclass with a role and bounds, and how a value that somebody gave becomes one.

method   changes the result: a run that is continued must have the same value, unless another makes it idle
speed    changes how fast the result comes, not the result beyond rounding: may differ when a run is continued
input    names a file, folder or set of pictures: compared by fingerprint, not by spelling
output   where results go and how chatty the program is: never compared
"""

import dataclasses
import functools
import math
import operator
import re
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from moce.errors import UserError, did_you_mean

SOURCES = (
    "Sources: (C) read in a source, (L) inferred from sources, (R) recalled but unverified, (M) measured by us, (ours) "
    "our own idea; nothing: our choice"
)
"""What letters at the end of a help text mean."""

Size = int | tuple[int, int]
"""The side of a square, or (height, width), in pixels; 96x64 on the command line."""


def pair(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def spelled_size(height: int, width: int) -> str:
    """A size as one would type it."""
    return str(height) if height == width else f"{height}x{width}"


BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def _option(
    default: Any, help: str, role: str, bounds: dict[str, float] | None = None, positional: bool = False
) -> Any:
    metadata = {"help": help, "role": role, "positional": positional, "bounds": bounds or {}}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def method(default: Any, help: str, **bounds: float) -> Any:
    """A field that changes the result; bounds are at_least, above, at_most and below."""
    return _option(default, help, "method", bounds)


def speed(default: Any, help: str, **bounds: float) -> Any:
    """A field that changes how fast the result comes; bounds as for `method`."""
    return _option(default, help, "speed", bounds)


def given(help: str, *, default: Any = dataclasses.MISSING, positional: bool = False) -> Any:
    """A field that names an input."""
    return _option(default, help, "input", positional=positional)


def output(default: Any, help: str) -> Any:
    """A field that says where results go."""
    return _option(default, help, "output")


def kind_of(field: dataclasses.Field, owner: type) -> tuple[Any, bool, bool]:
    """(element type, is it a tuple?, may it be None?) of a field of `owner`."""
    hint = typing.get_type_hints(owner)[field.name]
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        optional = type(None) in typing.get_args(hint)
        hint = functools.reduce(operator.or_, [a for a in typing.get_args(hint) if a is not type(None)])
    if hint == Size:
        return hint, False, optional
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True, optional
    return hint, False, optional


def spelled(field: dataclasses.Field) -> str:
    """An option as one types it: --batch-size, or the name alone of what stands at its place."""
    return field.name if field.metadata["positional"] else "--" + field.name.replace("_", "-")


def checked(value: Any, field: dataclasses.Field, owner: type) -> Any:
    """`value` as the field's type; UserError with the option's name where it does not fit."""
    element, many, optional = kind_of(field, owner)
    name = spelled(field)
    if value is None and optional:
        return None
    if isinstance(value, Path):
        value = str(value)
    if many:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            value = [value]
        if not value:
            raise UserError(f"{name} needs at least one value.")
        return tuple(_converted(v, element, name, field) for v in value)
    return _converted(value, element, name, field)


def _converted(value: Any, element: Any, name: str, field: dataclasses.Field) -> Any:
    if element is str and value == "" and field.metadata["role"] in ("input", "output"):
        raise UserError(f"{name} is empty; leave it out, or say what it names.")
    if typing.get_origin(element) is Literal:
        choices = typing.get_args(element)
        if value not in choices:
            hint = did_you_mean(str(value), choices)
            raise UserError(f"{name} cannot be '{value}': choose one of {', '.join(choices)}.{hint}")
        return value
    if element is bool:
        if not isinstance(value, bool):
            raise UserError(f"{name} is a switch and cannot be '{value}'.")
        return value
    if element == Size:
        return _size(value, name, field)
    try:
        if element is int and isinstance(value, bool):
            raise ValueError
        result = int(str(value)) if element is int else element(value)
    except (TypeError, ValueError):
        noun = {int: "a whole number", float: "a number", str: "a text"}[element]
        raise UserError(f"{name} must be {noun}, not '{value}'.") from None
    if element is float and not math.isfinite(result):
        raise UserError(f"{name} must be a finite number, not {value}.")
    for kind, bound in field.metadata["bounds"].items():
        if not BOUNDS[kind](result, bound):
            raise UserError(f"{name} must be {kind.replace('_', ' ')} {bound}, not {value}.")
    return result


def _size(value: Any, name: str, field: dataclasses.Field) -> Size:
    """A side, or two of them as 96x64 or (96, 64); a square is always one number."""
    sides = re.split("[x,]", value.lower()) if isinstance(value, str) else value
    sides = list(sides) if isinstance(sides, (list, tuple)) else [sides]
    if len(sides) not in (1, 2):
        raise UserError(f"{name} must be a side or HEIGHTxWIDTH, such as 64 or 96x64, not '{value}'.")
    checked = [_converted(side, int, name, field) for side in sides]
    return checked[0] if len(set(checked)) == 1 else (checked[0], checked[1])


def changed_method_options(before: dict[str, Any], config: Any) -> list[str]:
    """Sentences such as '--epochs was 3 and is now 5' for method options that differ from an earlier run.

    What a run does not name was no option when it was begun; a new option's default is what was done until then.
    """
    differences = []
    for field in fields(config):
        if field.metadata["role"] != "method" or field.name in config.idle():
            continue
        if field.name not in before and field.default is dataclasses.MISSING:
            continue
        earlier = before.get(field.name, field.default)
        earlier = list(earlier) if isinstance(earlier, tuple) else earlier
        now = getattr(config, field.name)
        now = list(now) if isinstance(now, tuple) else now
        if earlier != now:
            differences.append(f"{spelled(field)} was {earlier} and is now {now}")
    return differences
