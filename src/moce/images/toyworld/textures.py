"""Textures that fill the picture: stripes, checks, dots, bricks, zigzag, weave; any period, any angle."""

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import Colour, mix


def _cloth(c: Canvas, turn: float) -> float:
    """Ground and a random pose; gives the period. The pattern must cover -1.6 to 1.6."""
    c.clouds(c.ground, 0.05)
    c.pose(
        1.0,
        c.between(-turn, turn),
        c.between(-0.2, 0.2),
        c.between(-0.2, 0.2),
        c.chance(0.5),
        c.about(1, 0.2),
        c.between(0.0, 0.06),
    )
    return c.between(0.32, 0.6)


def _uneven(c: Canvas, colour: Colour, amount: float = 0.2) -> Colour:
    return mix(colour, c.detail, amount * c.rng.random())


def stripes(c: Canvas) -> None:
    period, share = _cloth(c, 180) * 0.9, c.between(0.35, 0.6)
    two = c.chance(0.3)
    for k in range(int(3.4 / period) + 1):
        x = -1.7 + k * period
        c.polygon(
            [
                (x, -1.7),
                (x + share * period, -1.7),
                (x + share * period, 0),
                (x + share * period, 1.7),
                (x, 1.7),
                (x, 0),
            ],
            c.accent if two and k % 2 else c.ink,
        )


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
            (u, v), r = c.at([(x, -1.7 + row * period)])[0], size * period * c.unit
            c.draw.ellipse((u - r, v - r, u + r, v + r), fill=c.ink)


def bricks(c: Canvas) -> None:
    high = _cloth(c, 20) * 0.68
    wide, gap = high * c.between(1.9, 2.3), c.between(0.05, 0.075)
    for row in range(int(3.4 / high) + 1):
        y = -1.7 + row * high
        for k in range(int(3.6 / wide) + 2):
            x = -1.9 + (k + 0.5 * (row % 2)) * wide
            c.polygon(
                [(x, y), (x + wide - gap, y), (x + wide - gap, y + high - gap), (x, y + high - gap)],
                _uneven(c, c.ink, 0.25),
            )


def zigzag(c: Canvas) -> None:
    period, high = _cloth(c, 180), c.between(0.2, 0.34)
    step = period * c.between(0.85, 1.05)
    two = c.chance(0.3)
    for row in range(int(3.8 / step) + 1):
        y = -1.9 + row * step
        path = [
            (-1.9 + k * period * 0.55, y + (high if k % 2 else 0))
            for k in range(int(3.8 / period / 0.55) + 1)
        ]
        c.line(path, step * 0.45, c.accent if two and row % 2 else c.ink)


def weave(c: Canvas) -> None:
    half = max(_cloth(c, 45), 0.42) * 0.75
    shadow = mix(c.ground, c.detail, 0.6)
    c.box(-2, -2, 2, 2, shadow)
    count = int(4.0 / half) + 1
    over, wide = c.between(0.14, 0.24) * half, c.between(0.36, 0.42) * half
    across, down = (c.ink, c.accent) if c.chance(0.5) else (c.ink, c.ink)
    for row in range(count):
        for k in range(count):
            x, y = -2 + (k + 0.5) * half, -2 + (row + 0.5) * half
            reach = half / 2 + over
            if (row + k) % 2:  # the strand across lies on top here, else the one down does
                ends, colour = (reach, wide), across
            else:
                ends, colour = (wide, reach), mix(down, c.detail, 0.18)
            u, v = ends
            c.polygon([(x - u, y - v), (x + u, y - v), (x + u, y + v), (x - u, y + v)], shadow)
            u, v = max(u - 0.035, 0.03), max(v - 0.035, 0.03)
            c.polygon([(x - u, y - v), (x + u, y - v), (x + u, y + v), (x - u, y + v)], colour)


DRAWINGS: dict[str, Drawing] = {
    "stripes": stripes,
    "checks": checks,
    "dots": dots,
    "bricks": bricks,
    "zigzag": zigzag,
    "weave": weave,
}
