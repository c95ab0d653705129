"""The sky: sun, moon, rain, lightning, rainbow, tornado."""

import math

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import Colour, mix, tone


def _cloud(c: Canvas, x: float, y: float, wide: float, colour: Colour) -> None:
    for dx, dy, r in ((-0.55, 0.05, 0.38), (-0.15, -0.14, 0.48), (0.3, -0.06, 0.42), (0.62, 0.08, 0.34)):
        c.oval(x + dx * wide, y + dy * wide, r * wide * c.about(1, 0.1), r * wide * 0.85, colour)
    c.oval(x, y + 0.16 * wide, wide * 0.82, wide * 0.26, colour)


def _puffs(c: Canvas, count: int) -> None:
    for _ in range(count):
        x, y, w = c.between(-1, 1), c.between(-0.9, 0.9), c.between(0.2, 0.4)
        c.oval(x, y, w, w * 0.3, mix(c.ground, c.accent, 0.25))


def sun(c: Canvas) -> None:
    c.backdrop(0.3)
    _puffs(c, c.number(0, 3))
    c.any_pose(turn=180, scale=(0.6, 0.9))
    size, rays = c.between(0.4, 0.5), c.number(8, 12)
    pointed = c.chance(0.5)
    for k in range(rays):
        angle = math.tau * k / rays
        x, y = math.cos(angle), math.sin(angle)
        if pointed:
            c.polygon(
                [
                    (0.55 * x - 0.12 * y, 0.55 * y + 0.12 * x),
                    (x, y),
                    (0.55 * x + 0.12 * y, 0.55 * y - 0.12 * x),
                ],
                c.ink,
            )
        else:
            c.line([(0.66 * x, 0.66 * y), (0.95 * x, 0.95 * y)], 0.1, c.ink)
    c.oval(0, 0, size, size, c.ink)


def moon(c: Canvas) -> None:
    c.backdrop(0.2)
    for _ in range(c.number(4, 9)):  # stars
        x, y, s = c.between(-0.95, 0.95), c.between(-0.95, 0.95), c.between(0.05, 0.1)
        c.line([(x - s, y), (x + s, y)], 0.035, c.accent)
        c.line([(x, y - s), (x, y + s)], 0.035, c.accent)
    c.any_pose(turn=40, scale=(0.55, 0.85))
    bite = c.between(0.1, 0.35)  # where the inner edge of the crescent lies
    outer = [(0.85 * math.cos(t), 0.85 * math.sin(t)) for t in (math.radians(60 + 15 * k) for k in range(17))]
    (_, y0), (x1, y1) = outer[0], outer[-1]
    inner = [
        (x1 - (bite + 0.5) * math.sin(math.pi * k / 10) * 0.8, y1 + (y0 - y1) * k / 10) for k in range(1, 10)
    ]
    c.polygon(outer + inner, c.ink)
    for _ in range(3):
        angle = math.radians(c.between(140, 220))
        c.dot(
            0.66 * math.cos(angle), 0.66 * math.sin(angle), c.between(0.05, 0.09), mix(c.ink, c.ground, 0.4)
        )


def rain(c: Canvas) -> None:
    c.backdrop(0.2)
    c.any_pose(turn=5, scale=(0.72, 0.95))
    slant = c.between(0.08, 0.3)
    for row in range(3):
        for k in range(5):
            x = -0.72 + 0.36 * k + (0.18 if row % 2 else 0) + c.between(-0.05, 0.05)
            y = 0.12 + 0.32 * row + c.between(-0.05, 0.05)
            c.line([(x, y), (x - slant, y + 0.2)], 0.075, c.accent)
    _cloud(c, 0, -0.4, c.between(0.8, 0.95), c.ink)


def lightning(c: Canvas) -> None:
    c.backdrop(0.2)
    c.any_pose(turn=6, scale=(0.75, 0.98))
    x = c.between(-0.15, 0.2)
    s = 1 if c.chance(0.5) else -1
    bolt = [(0.08, -0.3), (-0.3, 0.36), (-0.06, 0.36), (-0.22, 1.0), (0.34, 0.18), (0.08, 0.18), (0.32, -0.3)]
    c.polygon([(x + s * u * 1.1, v) for u, v in bolt], c.accent)
    _cloud(c, 0, -0.45, c.between(0.8, 0.95), c.ink)


def rainbow(c: Canvas) -> None:
    c.backdrop(0.2)
    _puffs(c, c.number(0, 2))
    c.any_pose(turn=6, scale=(0.8, 1.0), warp=0.02)
    bands = c.number(4, 5)
    for k in range(bands):
        colour = tone(c.rng, (0.25, 0.8)[k % 2] + c.between(-0.1, 0.1), c.between(0.5, 1.0))
        r = 0.95 - 0.13 * k
        c.arc(0, 0.5, r, r, 180, 360, 0.15, colour)
    for s in (-1, 1):
        if c.chance(0.75):
            _cloud(c, s * 0.68, 0.55, 0.36, c.ink)


def tornado(c: Canvas) -> None:
    c.backdrop(0.3)
    c.pose()
    floor = c.between(0.65, 0.8)
    c.box(-1.3, floor, 1.3, 1.4, mix(c.ground, c.accent, 0.5))
    c.any_pose(turn=6, scale=(0.8, 0.95))
    lean, bend = c.between(-0.25, 0.25), c.between(-0.25, 0.25)
    rows = 8
    shade = mix(c.ink, c.detail, 0.3)
    for k in range(rows):
        t = k / (rows - 1)
        x = lean * t + bend * math.sin(math.pi * t) + c.between(-0.04, 0.04)
        wide = 0.85 * (1 - t) ** 1.25 + 0.1
        c.oval(x, -0.75 + 1.5 * t, wide, 0.16, c.ink if k % 2 == 0 else shade)
    for _ in range(5):
        c.dot(lean + c.between(-0.5, 0.5), c.between(0.5, 0.85), 0.06, c.accent)


DRAWINGS: dict[str, Drawing] = {
    "sun": sun,
    "moon": moon,
    "rain": rain,
    "lightning": lightning,
    "rainbow": rainbow,
    "tornado": tornado,
}
