"""Colours by brightness: hue and saturation are drawn at random, so that they say nothing about the class."""

import colorsys
import random

Colour = tuple[int, int, int]

_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in brightness (ITU-R BT.601)


def brightness(colour: Colour) -> float:
    """How bright a colour looks, 0 to 1."""
    return sum(w * c for w, c in zip(_WEIGHTS, colour)) / 255


def tone(rng: random.Random, level: float, saturation: float | None = None) -> Colour:
    """A colour of any hue with brightness `level` (0 to 1)."""
    saturation = 0.9 * rng.random() ** 0.8 if saturation is None else saturation
    return _at_level(colorsys.hsv_to_rgb(rng.random(), saturation, 1.0), level)


def relit(colour: Colour, level: float) -> Colour:
    """The same hue at brightness `level`."""
    top = max(max(colour), 1)
    return _at_level((colour[0] / top, colour[1] / top, colour[2] / top), level)


def _at_level(rgb: tuple[float, float, float], level: float) -> Colour:
    level = min(max(level, 0.0), 1.0)
    own = sum(w * c for w, c in zip(_WEIGHTS, rgb))
    if level <= own:  # darken towards black, else lighten towards white
        channels = [c * level / own for c in rgb]
    else:
        share = (level - own) / (1 - own)
        channels = [c + (1 - c) * share for c in rgb]
    red, green, blue = (round(255 * c) for c in channels)
    return red, green, blue


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` (0 to 1) of `b` in it."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b))
    return red, green, blue
