"""Textures that fill the picture: stripes, checks, dots, bricks, zigzag, weave; any period, any angle."""

import math

from moce.images.toyworld.canvas import Canvas, Colour, Drawing, mix


def _cloth(c: Canvas, turn: float) -> float:
    """Ground and a random pose; gives the period. The pattern must cover -1.6 to 1.6."""
    c.clouds(c.ground, 0.05)
    c.pose(1.0, c.between(-turn, turn), c.between(-0.2, 0.2), c.between(-0.2, 0.2), c.chance(0.5), c.about(1, 0.2), c.between(0.0, 0.06))
    return c.between(0.32, 0.6)


def _uneven(c: Canvas, colour: Colour, amount: float = 0.2) -> Colour:
    return mix(colour, c.detail, amount * c.rng.random())


def stripes(c: Canvas) -> None:
    period, share = _cloth(c, 180) * 0.9, c.between(0.35, 0.6)
    two = c.chance(0.3)
    for k in range(int(3.4 / period) + 1):
        x = -1.7 + k * period
        c.polygon([(x, -1.7), (x + share * period, -1.7), (x + share * period, 0), (x + share * period, 1.7), (x, 1.7), (x, 0)], c.accent if two and k % 2 else c.ink)


def checks(c: Canvas) -> None:
    period = _cloth(c, 45)
    half = max(period / 1.4, 0.28)
    count = int(3.6 / half) + 1
    for row in range(count):
        for k in range(row % 2, count, 2):
            x, y = -1.8 + k * half, -1.8 + row * half
            c.polygon([(x, y), (x + half, y), (x + half, y + half), (x, y + half)], c.ink)


def dots(c: Canvas) -> None:
    period, size = _cloth(c, 45), c.between(0.26, 0.36)
    shifted = c.chance(0.5)
    count = int(3.4 / period) + 1
    for row in range(count):
        for k in range(count):
            x = -1.7 + (k + (0.5 if shifted and row % 2 else 0)) * period
            (u, v), r = c.at([(x, -1.7 + row * period)])[0], size * period * c._unit
            c.draw.ellipse((u - r, v - r, u + r, v + r), fill=c.ink)


def bricks(c: Canvas) -> None:
    high = _cloth(c, 20) * 0.68
    wide, gap = high * c.between(1.9, 2.3), c.between(0.05, 0.075)
    for row in range(int(3.4 / high) + 1):
        y = -1.7 + row * high
        for k in range(int(3.6 / wide) + 2):
            x = -1.9 + (k + 0.5 * (row % 2)) * wide
            c.polygon([(x, y), (x + wide - gap, y), (x + wide - gap, y + high - gap), (x, y + high - gap)], _uneven(c, c.ink, 0.25))


def zigzag(c: Canvas) -> None:
    period, high = _cloth(c, 180), c.between(0.2, 0.34)
    step = period * c.between(0.85, 1.05)
    two = c.chance(0.3)
    for row in range(int(3.8 / step) + 1):
        y = -1.9 + row * step
        path = [(-1.9 + k * period * 0.55, y + (high if k % 2 else 0)) for k in range(int(3.8 / period / 0.55) + 1)]
        c.line(path, step * 0.45, c.accent if two and row % 2 else c.ink)


def weave(c: Canvas) -> None:
    period = max(_cloth(c, 45) * 0.9, 0.4)
    half = period / 2
    count = int(3.4 / period) + 1
    shade_a, shade_b = mix(c.ink, c.detail, 0.3), c.accent
    for row in range(2 * count):
        for k in range(2 * count):
            x, y = -1.7 + k * half, -1.7 + row * half
            if (row + k) % 2:  # a strand across
                c.polygon([(x - 0.08 * half, y + 0.12 * half), (x + 1.08 * half, y + 0.12 * half), (x + 1.08 * half, y + 0.88 * half), (x - 0.08 * half, y + 0.88 * half)], c.ink)
                c.line([(x + 0.1 * half, y + 0.5 * half), (x + 0.9 * half, y + 0.5 * half)], 0.03, shade_a)
            else:  # a strand down
                c.polygon([(x + 0.12 * half, y - 0.08 * half), (x + 0.88 * half, y - 0.08 * half), (x + 0.88 * half, y + 1.08 * half), (x + 0.12 * half, y + 1.08 * half)], shade_b)
                c.line([(x + 0.5 * half, y + 0.1 * half), (x + 0.5 * half, y + 0.9 * half)], 0.03, mix(shade_b, c.detail, 0.3))


DRAWINGS: dict[str, Drawing] = {
    "stripes": stripes,
    "checks": checks,
    "dots": dots,
    "bricks": bricks,
    "zigzag": zigzag,
    "weave": weave,
}
