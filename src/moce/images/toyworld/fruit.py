"""Fruit: apple, banana, grapes, pear, cherries, pineapple."""

import math

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import mix


def _lay(c: Canvas, turn: float = 25.0) -> None:
    c.backdrop()
    if c.chance(0.35):  # a plate
        c.pose()
        c.oval(0, 0.1, c.between(0.8, 1.0), c.between(0.7, 1.0), mix(c.ground, c.accent, 0.25))
    c.any_pose(turn=turn, scale=(0.62, 0.88))


def _shine(c: Canvas, x: float, y: float, size: float) -> None:
    if c.chance(0.75):
        c.oval(x, y, size * 0.6, size, mix(c.ink, (255, 255, 255), 0.65), 25)


def _leaf(c: Canvas, x: float, y: float, side: int) -> None:
    c.blob(
        [(x, y), (x + side * 0.22, y - 0.2), (x + side * 0.5, y - 0.16), (x + side * 0.25, y + 0.03)],
        c.accent,
    )


def apple(c: Canvas) -> None:
    _lay(c)
    wide = c.about(0.8, 0.07)
    side = [
        (0, -0.42),
        (wide * 0.5, -0.62),
        (wide, -0.25),
        (wide * 0.88, 0.4),
        (wide * 0.42, 0.85),
        (0, 0.74),
    ]
    c.blob(side + [(-x, y) for x, y in side[-2:0:-1]], c.ink)
    _shine(c, -wide * 0.5, -0.15, 0.22)
    c.curve([(0, -0.38), (0.03, -0.65), (0.14, -0.95)], 0.1, c.accent)
    if c.chance(0.8):
        _leaf(c, 0.06, -0.7, 1)
    c.arc(0, -0.46, 0.22, 0.1, 10, 170, 0.05, mix(c.ink, c.detail, 0.5))


def banana(c: Canvas) -> None:
    _lay(c, 50)
    count = c.number(1, 2)
    for k in range(count):
        sag = c.about(0.5, 0.15) - 0.42 * k
        shade = c.ink if k == count - 1 else c.accent
        c.blob([
            (-0.92, -0.42), (-0.74, -0.5), (-0.45, sag * 0.3 - 0.12), (0.05, sag * 0.55 - 0.08),
            (0.5, sag * 0.2 - 0.12), (0.82, -0.55), (0.95, -0.5), (0.82, 0.0),
            (0.45, sag * 0.75 + 0.22), (-0.1, sag + 0.24), (-0.62, sag * 0.55 + 0.16), (-0.9, -0.1),
        ], shade)  # fmt: skip
        c.curve(
            [(-0.7, 0.0), (-0.3, sag * 0.7 + 0.05), (0.2, sag * 0.8 + 0.04), (0.68, 0.0)],
            0.05,
            mix(shade, c.detail, 0.4),
        )
    c.line([(0.86, -0.5), (0.93, -0.75)], 0.15, c.accent)
    c.dot(-0.88, -0.4, 0.09, c.detail)


def grapes(c: Canvas) -> None:
    _lay(c, 15)
    c.line([(0, -0.6), (c.between(-0.1, 0.1), -1.0)], 0.1, c.accent)
    _leaf(c, 0.0, -0.72, 1 if c.chance(0.5) else -1)
    size = c.between(0.24, 0.28)
    edge = mix(c.ink, c.detail, 0.45)
    rows = [4, 3, 2, 1] if c.chance(0.5) else [3, 4, 3, 2, 1]
    for row, count in enumerate(rows):
        for k in range(count):
            x = (k - (count - 1) / 2) * size * 1.55 + c.between(-0.03, 0.03)
            y = -0.5 + row * 1.3 / (len(rows) - 1) + c.between(-0.03, 0.03)
            c.oval(x, y, size, size, edge)
            c.oval(x, y - 0.02, size * 0.84, size * 0.84, c.ink)
            c.dot(x - size * 0.3, y - size * 0.35, size * 0.22, mix(c.ink, (255, 255, 255), 0.6))


def pear(c: Canvas) -> None:
    _lay(c)
    wide, neck = c.about(0.66, 0.08), c.about(0.24, 0.12)
    side = [
        (0, -0.78),
        (neck, -0.66),
        (neck * 1.15, -0.3),
        (wide * 0.85, 0.1),
        (wide, 0.5),
        (wide * 0.6, 0.88),
        (0, 0.92),
    ]
    c.blob(side + [(-x, y) for x, y in side[-2:0:-1]], c.ink)
    _shine(c, -wide * 0.5, 0.35, 0.24)
    c.curve([(0, -0.74), (0.04, -0.9), (0.12, -1.08)], 0.1, c.accent)
    if c.chance(0.6):
        _leaf(c, 0.05, -0.88, 1)
    c.oval(0.02, 0.86, 0.09, 0.05, mix(c.ink, c.detail, 0.6))


def cherries(c: Canvas) -> None:
    _lay(c, 18)
    knot = (c.between(-0.1, 0.3), -0.9)
    size = c.about(0.38, 0.08)
    drops = [(-0.48, c.between(0.3, 0.55)), (0.46, c.between(0.35, 0.6))]
    for x, y in drops:
        c.curve(
            [knot, ((x + knot[0]) / 2 + 0.1, (y + knot[1]) / 2 - 0.15), (x, y - size * 0.7)], 0.08, c.detail
        )
    if c.chance(0.7):
        _leaf(c, knot[0], knot[1] + 0.02, 1 if knot[0] < 0.1 else -1)
    for x, y in drops:
        c.oval(x, y, size, size * 0.97, c.ink)
        c.arc(x, y - size * 0.72, size * 0.3, size * 0.14, 0, 180, 0.045, mix(c.ink, c.detail, 0.5))
        c.oval(
            x - size * 0.4, y - size * 0.15, size * 0.14, size * 0.24, mix(c.ink, (255, 255, 255), 0.6), 20
        )


def pineapple(c: Canvas) -> None:
    _lay(c, 20)
    wide, tall = c.about(0.46, 0.08), c.about(0.6, 0.06)
    for k in range(7):
        angle = math.radians(-150 + 20 * k)
        reach = 0.62 - 0.05 * abs(k - 3)
        x, y = reach * math.cos(angle) * 0.85, reach * math.sin(angle)
        c.polygon([(-0.16 + 0.03 * k, -0.2), (x, -0.22 + y), (-0.06 + 0.05 * k, -0.15)], c.accent)
    c.oval(0, 0.35, wide, tall, c.ink)
    line = mix(c.ink, c.detail, 0.75)
    for k in range(-4, 5):
        for s in (-1, 1):  # the lattice, cut to the fruit
            inside = []
            for j in range(13):
                y = -tall + tall * j / 6
                x = s * y * 0.62 + k * 0.26
                if (x / wide) ** 2 + (y / tall) ** 2 < 0.96:
                    inside.append((x, 0.35 + y))
            if len(inside) > 1:
                c.line([inside[0], inside[-1]], 0.045, line)


DRAWINGS: dict[str, Drawing] = {
    "apple": apple,
    "banana": banana,
    "grapes": grapes,
    "pear": pear,
    "cherries": cherries,
    "pineapple": pineapple,
}
