"""Creatures: cat, owl, fish, butterfly, snail, spider."""

import math

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import mix


def _eye(c: Canvas, x: float, y: float, size: float, look: float = 0.0) -> None:
    c.oval(x, y, size, size, (250, 250, 245))
    c.oval(x + look * size, y, size * 0.55, size * 0.6, (12, 12, 18))


def cat(c: Canvas) -> None:
    c.backdrop()
    c.any_pose(turn=18, scale=(0.62, 0.85))
    wide, ear = c.about(0.78, 0.1), c.about(0.55, 0.12)
    for s in (-1, 1):
        c.polygon([(s * wide * 0.98, 0.0), (s * wide * 0.88, -0.5 - ear), (s * wide * 0.15, -0.5)], c.ink)
        c.polygon([(s * wide * 0.85, -0.2), (s * wide * 0.8, -0.3 - ear), (s * wide * 0.35, -0.45)], c.accent)
    c.oval(0, 0.1, wide, 0.68, c.ink)
    dark = mix(c.detail, c.ink, 0.1)
    if c.chance(0.4):  # tabby stripes
        for x in (-0.2, 0.0, 0.2):
            c.line([(x, -0.5), (x * 0.8, -0.28)], 0.08, mix(c.ink, c.detail, 0.45))
    slit, look = c.between(0.06, 0.11), c.between(-0.03, 0.03)
    for s in (-1, 1):
        c.oval(s * 0.34, -0.02, 0.19, 0.14, c.accent if c.chance(0.5) else (245, 245, 235), s * -12)
        c.oval(s * 0.34 + look, -0.02, slit, 0.14, (10, 10, 14))
    c.polygon([(-0.11, 0.24), (0.11, 0.24), (0, 0.37)], dark)
    c.line([(-0.2, 0.5), (0, 0.38), (0.2, 0.5)], 0.05, dark)
    for s in (-1, 1):
        for tilt in (-0.1, 0.06, 0.2):
            c.line([(s * 0.3, 0.38), (s * 1.08, 0.32 + tilt)], 0.035, dark)


def owl(c: Canvas) -> None:
    c.backdrop()
    if c.chance(0.5):  # a branch
        c.pose()
        c.line([(-1.3, c.between(0.6, 0.8)), (1.3, c.between(0.6, 0.8))], 0.12, mix(c.ground, c.accent, 0.6))
    c.any_pose(turn=8, scale=(0.68, 0.9))
    wide = c.about(0.6, 0.12)
    body = [
        (0, -0.72),
        (wide * 0.8, -0.85),
        (wide * 0.95, -0.4),
        (wide * 1.05, 0.3),
        (wide * 0.6, 0.85),
        (0, 0.95),
    ]
    c.blob(body + [(-x, y) for x, y in body[-2:0:-1]], c.ink)
    for s in (-1, 1):
        c.polygon([(s * wide * 0.95, -0.55), (s * wide * 1.0, -1.08), (s * wide * 0.35, -0.78)], c.ink)
        c.blob(
            [(s * wide * 0.98, -0.1), (s * wide * 1.12, 0.4), (s * wide * 0.75, 0.8), (s * wide * 0.7, 0.3)],
            c.accent,
        )
    feather = mix(c.ink, c.detail, 0.4)
    for row in range(3):
        for k in range(-1 - row % 2, 2):
            x = (k + (0.5 if row % 2 else 0)) * 0.24
            c.line(
                [(x - 0.07, 0.28 + 0.2 * row), (x, 0.36 + 0.2 * row), (x + 0.07, 0.28 + 0.2 * row)],
                0.04,
                feather,
            )
    size, look = c.between(0.24, 0.3), c.between(-0.2, 0.2)
    for s in (-1, 1):
        c.oval(s * 0.27, -0.4, size * 1.15, size * 1.15, c.detail)
        _eye(c, s * 0.27, -0.4, size * 0.9, look)
    c.polygon([(-0.11, -0.3), (0.11, -0.3), (0, -0.02)], c.accent)
    for s in (-1, 1):
        c.line([(s * 0.2, 0.9), (s * 0.22, 1.0)], 0.1, c.accent)


def fish(c: Canvas) -> None:
    c.backdrop()
    if c.chance(0.5):
        for _ in range(c.number(2, 5)):  # bubbles
            c.dot(
                c.between(-0.9, 0.9), c.between(-0.9, 0.9), c.between(0.04, 0.1), mix(c.ground, c.accent, 0.5)
            )
    c.any_pose(turn=25, scale=(0.68, 0.92))
    tall = c.between(0.36, 0.58)
    flare = c.about(0.48, 0.2)
    c.blob([(0.45, 0), (0.95, -flare), (0.82, 0), (0.95, flare)], c.accent)
    c.blob([(-0.25, -tall * 0.7), (0.05, -tall - 0.3), (0.35, -tall * 0.55)], c.accent)
    c.blob([(-0.05, tall * 0.7), (0.15, tall + 0.22), (0.3, tall * 0.6)], c.accent)
    c.blob(
        [
            (-0.92, 0.05),
            (-0.5, -tall * 0.85),
            (0.05, -tall * 0.9),
            (0.6, -0.08),
            (0.6, 0.08),
            (0.0, tall * 0.9),
            (-0.5, tall * 0.8),
        ],
        c.ink,
    )
    mark = mix(c.ink, c.detail, 0.5)
    if c.chance(0.5):
        for k in range(c.number(2, 3)):
            x = -0.2 + 0.22 * k
            c.line([(x, -tall * (0.72 - 0.2 * k)), (x + 0.03, tall * (0.66 - 0.2 * k))], 0.09, mark)
    c.arc(-0.62, 0.02, 0.24, tall * 0.7, -60, 60, 0.05, mark)
    c.oval(0.0, 0.1, 0.2, 0.1, c.accent, 20)
    _eye(c, -0.62, -0.1, 0.12, -0.1)
    c.line([(-0.9, 0.1), (-0.74, 0.16)], 0.05, c.detail)


def butterfly(c: Canvas) -> None:
    c.backdrop()
    c.any_pose(turn=40, scale=(0.7, 0.95))
    span, low = c.about(0.85, 0.12), c.about(0.62, 0.15)
    lift = c.between(0.6, 0.9)
    for s in (-1, 1):
        c.blob(
            [(s * 0.05, 0.05), (s * low * 0.7, 0.1), (s * low, 0.5), (s * low * 0.6, 0.85), (s * 0.15, 0.4)],
            c.accent,
        )
        c.blob(
            [
                (s * 0.05, -0.1),
                (s * span * 0.5, -lift),
                (s * span, -lift * 0.95),
                (s * span * 0.95, -0.2),
                (s * 0.4, 0.18),
            ],
            c.ink,
        )
        c.oval(s * span * 0.62, -lift * 0.55, 0.16, 0.16, c.detail)
        c.oval(s * low * 0.6, 0.45, 0.1, 0.1, mix(c.accent, c.detail, 0.7))
        c.curve([(0, -0.4), (s * 0.12, -0.75), (s * 0.3, -0.92)], 0.06, c.ink)
    c.oval(0, 0.05, 0.085, 0.5, c.detail)
    c.oval(0, -0.44, 0.12, 0.12, c.detail)


def snail(c: Canvas) -> None:
    c.backdrop()
    c.any_pose(turn=12, scale=(0.66, 0.9))
    c.blob(
        [
            (-0.95, 0.5),
            (-0.85, 0.1),
            (-0.62, 0.2),
            (-0.45, 0.5),
            (0.4, 0.55),
            (0.98, 0.75),
            (0.4, 0.85),
            (-0.6, 0.85),
        ],
        c.accent,
    )
    for dx in (-0.12, 0.1):
        x, y = -0.78 + dx * 1.8, c.between(-0.45, -0.3)
        c.line([(-0.75 + dx, 0.2), (x, y)], 0.07, c.accent)
        c.dot(x, y, 0.085, c.detail)
    size = c.about(0.62, 0.08)
    c.oval(0.12, 0.0, size, size, c.ink)
    turns, start = c.between(1.8, 2.4), c.between(0, 6.28)
    steps = 34
    spiral = []
    for k in range(steps):
        t = k / (steps - 1)
        angle, r = start + math.tau * turns * t, size * (0.06 + 0.86 * t)
        spiral.append((0.12 + r * math.cos(angle), r * math.sin(angle)))
    c.line(spiral, 0.08, c.detail)


def spider(c: Canvas) -> None:
    c.backdrop()
    c.any_pose(turn=35, scale=(0.72, 0.95))
    dark = c.ink
    if c.chance(0.35):
        c.line([(0, -0.3), (0, -1.6)], 0.04, c.accent)
    for s in (-1, 1):
        for k, (knee, foot) in enumerate(
            [
                ((0.5, -0.75), (0.8, -0.9)),
                ((0.7, -0.42), (1.0, -0.3)),
                ((0.7, 0.1), (1.0, 0.42)),
                ((0.55, 0.4), (0.72, 0.95)),
            ]
        ):
            jx, jy = c.between(-0.07, 0.07), c.between(-0.07, 0.07)
            c.line(
                [
                    (s * 0.12, -0.15 + 0.09 * k),
                    (s * knee[0] + jx, knee[1] + jy),
                    (s * foot[0] + jx, foot[1] - jy),
                ],
                0.075,
                dark,
            )
    body = c.about(0.36, 0.12)
    c.oval(0, 0.3, body, body * 1.2, dark)
    c.oval(0, -0.2, body * 0.66, body * 0.62, dark)
    mark = c.detail
    if c.chance(0.6):
        c.polygon([(-0.12, 0.12), (0.12, 0.12), (-0.12, 0.48), (0.12, 0.48)], mark)
    for s in (-1, 1):
        c.dot(s * 0.09, -0.3, 0.055, mark)


DRAWINGS: dict[str, Drawing] = {
    "cat": cat,
    "owl": owl,
    "fish": fish,
    "butterfly": butterfly,
    "snail": snail,
    "spider": spider,
}
