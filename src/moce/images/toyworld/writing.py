"""Writing: handwritten digits (scikit-learn's real ones) and printed letters in matplotlib's typefaces.

The handwritten digits are the only pictures of the toy world that somebody made by hand: 8 x 8 pixels, about 180 of
each digit. Training takes the first three quarters of each digit's scans and testing the rest.
"""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from moce.errors import UserError
from moce.images.toyworld.canvas import Canvas, Drawing

DIGITS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
LETTERS = ("A", "E", "G", "K", "R", "S")
TRAINING_SHARE = 0.75

TYPEFACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono",
    "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmtt10",
)  # fmt: skip


@functools.cache
def _handwriting() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255 / 16)).clip(0, 255).astype(np.uint8), digits.target


def handwritten(digit: int, split: str) -> np.ndarray:
    """uint8 [count, 8, 8]: the scans of one digit in one split; those of train and test are not the same ones."""
    scans, target = _handwriting()
    own = scans[target == digit]
    cut = int(len(own) * TRAINING_SHARE)
    return own[:cut] if split == "train" else own[cut:]


def _digit(c: Canvas, digit: int) -> None:
    c.backdrop(0.7)
    scans = handwritten(digit, c.split)
    scan = Image.fromarray(scans[c.number(0, len(scans) - 1)])
    padded = Image.new("L", (12, 12))
    padded.paste(scan, (2, 2))
    c.any_pose(turn=18, scale=(0.62, 0.95), mirror=False, warp=0.0)
    a, b, x, d, e, y = c.affine
    a, b, d, e = (value / 48 for value in (a, b, d, e))  # the scan enlarged to 96 pixels is 2 x 2 units
    large = padded.resize((144, 144), Image.Resampling.BICUBIC).point(_SHARPEN)
    determinant = a * e - b * d
    inverse = (e / determinant, -b / determinant, -d / determinant, a / determinant)
    back = (
        inverse[0], inverse[1], 72 - inverse[0] * x - inverse[1] * y,
        inverse[2], inverse[3], 72 - inverse[2] * x - inverse[3] * y,
    )  # fmt: skip
    mask = large.transform(c.image.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    c.stamp(mask, c.ink)


# Pen strokes, not the soft patches that interpolation leaves.
_SHARPEN = [round(255 / (1 + math.exp(-(v - 105) / 14))) for v in range(256)]


@functools.cache
def _typeface(name: str, size: int) -> ImageFont.FreeTypeFont:
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise UserError("The toy world's letters need the typefaces of matplotlib: install matplotlib.")
    return ImageFont.truetype(
        str(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"), size
    )


def _letter(c: Canvas, letter: str) -> None:
    c.backdrop(0.9)
    size = round(c.pixels * c.between(0.62, 1.0) / 4) * 4
    face = _typeface(TYPEFACES[c.number(0, len(TYPEFACES) - 1)], size)
    mask = Image.new("L", c.image.size)
    pen = ImageDraw.Draw(mask)
    left, top, right, bottom = pen.textbbox((0, 0), letter, font=face)
    room = max(0.0, c.pixels - 0.9 * max(right - left, bottom - top)) / 2
    x, y = (c.pixels / 2 + c.between(-0.7, 0.7) * room for _ in range(2))
    pen.text((x - (left + right) / 2, y - (top + bottom) / 2), letter, fill=255, font=face)
    mask = mask.rotate(c.between(-20, 20), Image.Resampling.BILINEAR, center=(x, y))
    if c.chance(0.3):  # a printed shadow
        shift = round(c.pixels * 0.03)
        c.image.paste(c.accent, (shift, shift), mask)
    c.stamp(mask, c.ink)


def _write_digit(digit: int) -> Drawing:
    return lambda c: _digit(c, digit)


def _print_letter(letter: str) -> Drawing:
    return lambda c: _letter(c, letter)


DIGIT_DRAWINGS: dict[str, Drawing] = {name: _write_digit(digit) for name, digit in DIGITS.items()}
LETTER_DRAWINGS: dict[str, Drawing] = {letter: _print_letter(letter) for letter in LETTERS}
