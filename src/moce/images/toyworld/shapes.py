"""Plane shapes: circle, triangle, square, star, cross, heart; filled, outlined, striped or doubled, at any angle."""

import math

from PIL import Image, ImageChops, ImageDraw

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import mix
from moce.images.toyworld.curves import Point, ring

OUTLINES: dict[str, list[Point]] = {
    "circle": ring(0, 0, 0.85, 0.85, points=40),
    "triangle": [(0, -0.9), (0.85, 0.62), (-0.85, 0.62)],
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "star": [
        (r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5)) for k in range(10) for r in [(0.95, 0.4)[k % 2]]
    ],
    "cross": [
        (-0.28, -0.88), (0.28, -0.88), (0.28, -0.28), (0.88, -0.28), (0.88, 0.28), (0.28, 0.28),
        (0.28, 0.88), (-0.28, 0.88), (-0.28, 0.28), (-0.88, 0.28), (-0.88, -0.28), (-0.28, -0.28),
    ],
    "heart": [
        (0.86 * math.sin(t) ** 3, 0.056 * sum(a * math.cos(n * t) for n, a in ((1, -13), (2, 5), (3, 2), (4, 1))))
        for t in (math.tau * k / 36 for k in range(36))
    ],
}  # fmt: skip


def _shape(c: Canvas, outline: list[Point], turn: float) -> None:
    c.backdrop()
    c.any_pose(turn=turn, scale=(0.45, 0.92), warp=0.02)
    style = c.number(0, 4)
    if style == 0:  # outline only
        c.line([*outline, outline[0]], 0.17, c.ink)
    elif style == 1:  # one inside the other
        c.polygon(outline, c.ink)
        c.polygon([(0.55 * x, 0.55 * y) for x, y in outline], c.accent)
    elif style == 2:  # striped
        mask = Image.new("L", c.image.size)
        ImageDraw.Draw(mask).polygon(c.at(outline), fill=255)
        bars = Image.new("L", c.image.size)
        brush, step = ImageDraw.Draw(bars), c.pixels * c.between(0.07, 0.12)
        for k in range(int(c.pixels / step) + 1):
            brush.rectangle((k * step, 0, k * step + step / 2, c.pixels), fill=255)
        c.stamp(mask, c.ink)
        c.stamp(ImageChops.multiply(mask, bars), c.accent)
    else:
        if style == 3:  # with a shadow
            c.polygon([(x + 0.12, y + 0.12) for x, y in outline], mix(c.ground, c.detail, 0.5))
        c.polygon(outline, c.ink)


def _drawing(name: str) -> Drawing:
    turn = {"heart": 45.0, "triangle": 180.0, "star": 180.0}.get(name, 180.0)
    return lambda c: _shape(c, OUTLINES[name], turn)


DRAWINGS: dict[str, Drawing] = {name: _drawing(name) for name in OUTLINES}
