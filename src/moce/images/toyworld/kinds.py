"""The kinds of the toy world, and one picture of it: a pure function of kind, class, split, number, size and seed."""

import hashlib
import random

import numpy as np

from moce.images.toyworld import (
    creatures,
    faces,
    fruit,
    landscapes,
    maps,
    plants,
    shapes,
    sky,
    textures,
    vehicles,
    writing,
)
from moce.images.toyworld.canvas import Canvas, Drawing

# Raise it whenever a picture changes: it is part of every picture's seed and of every fingerprint.
VERSION = 1

_NATURAL: dict[str, dict[str, Drawing]] = {
    "plants": plants.DRAWINGS,
    "creatures": creatures.DRAWINGS,
    "landscapes": landscapes.DRAWINGS,
    "fruit": fruit.DRAWINGS,
    "faces": faces.DRAWINGS,
    "sky": sky.DRAWINGS,
}
_MADE: dict[str, dict[str, Drawing]] = {
    "digits": writing.DIGIT_DRAWINGS,
    "letters": writing.LETTER_DRAWINGS,
    "shapes": shapes.DRAWINGS,
    "textures": textures.DRAWINGS,
    "vehicles": vehicles.DRAWINGS,
    "maps": maps.DRAWINGS,
}
_DRAWINGS = {**_NATURAL, **_MADE}

KINDS: dict[str, list[str]] = {kind: list(drawings) for kind, drawings in _DRAWINGS.items()}
NATURAL: list[str] = list(_NATURAL)
MADE: list[str] = list(_MADE)
CLASSES_PER_KIND = 6


def picture(kind: str, name: str, split: str, number: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """uint8 [size, size, 3]: picture `number` of class `name`. The scene is the same at every size."""
    key = f"toyworld {VERSION} {seed} {kind} {name} {split} {number}"
    digest = hashlib.sha256(key.encode()).digest()
    canvas = Canvas(random.Random(int.from_bytes(digest[:16], "big")), size, split)
    _DRAWINGS[kind][name](canvas)
    return canvas.finished(noise_seed=int.from_bytes(digest[16:24], "big"))
