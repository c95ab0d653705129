"""Landscapes: mountains, sea, desert, forest, volcano, waterfall; at any time of day, in any light."""

import math

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import Colour, brightness, mix, relit, tone
from moce.images.toyworld.curves import Point, smooth


def _sky(c: Canvas, sun: float = 0.5) -> float:
    """A sky from one brightness at the top to another at the horizon; gives the horizon's height."""
    c.clouds(c.ground, 0.04)
    c.pose(1.0, c.between(-4, 4), mirror=c.chance(0.5))
    low = relit(mix(c.ground, c.accent, 0.3), brightness(c.ground))
    bands, top = 6, c.between(-0.6, -0.2)
    for k in range(bands):
        c.box(-1.5, top + 0.15 * k, 1.5, 2.0, mix(c.ground, low, k / (bands - 1)))
    if c.chance(sun):
        c.dot(
            c.between(-0.8, 0.8),
            c.between(-0.8, -0.35),
            c.between(0.1, 0.18),
            mix(c.ground, (255, 255, 255), 0.6),
        )
    if c.chance(0.35):
        for _ in range(c.number(1, 3)):
            x, y, w = c.between(-0.9, 0.9), c.between(-0.9, -0.3), c.between(0.15, 0.35)
            c.oval(x, y, w, 0.07, mix(c.ground, (255, 255, 255), 0.35))
            c.oval(x + w * 0.2, y - 0.06, w * 0.5, 0.07, mix(c.ground, (255, 255, 255), 0.35))
    return c.between(-0.05, 0.3)


def _ridge(c: Canvas, level: float, rough: float, step: float) -> list[Point]:
    points, x, up = [(-1.6, level + 0.3)], -1.6, False
    while x < 1.6:
        x += step * c.between(0.6, 1.3)
        up = not up
        points.append((x, level - (c.between(0.55, 1.0) if up else c.between(-0.15, 0.2)) * rough))
    return points


def mountains(c: Canvas) -> None:
    horizon = _sky(c) + 0.2
    far = mix(c.ground, c.ink, 0.45)
    back = _ridge(c, horizon - 0.1, 0.7, 0.5)
    c.polygon([*back, (1.8, 1.6), (-1.8, 1.6)], far)
    front = _ridge(c, horizon + 0.2, 0.95, 0.62)
    c.polygon([*front, (1.8, 1.6), (-1.8, 1.6)], c.ink)
    snow = mix(c.ink, (255, 255, 255), 0.8) if brightness(c.ink) < 0.6 else mix(c.ink, (0, 0, 0), 0.6)
    for k in range(1, len(front) - 1):
        (x0, y0), (x, y), (x1, y1) = front[k - 1 : k + 2]
        if y < y0 and y < y1:
            s = c.between(0.3, 0.42)
            left, right = (x + (x0 - x) * s, y + (y0 - y) * s), (x + (x1 - x) * s, y + (y1 - y) * s)
            c.polygon(
                [(x, y), right, (x + 0.05, (y + right[1]) / 2 + 0.12), (x - 0.02, left[1] - 0.02), left], snow
            )
            c.polygon(
                [right, (x1, y1), (x + (x1 - x) * 0.35, y1 + 0.25), (x + 0.04, y + 0.3)],
                mix(c.ink, c.detail, 0.25),
            )


def sea(c: Canvas) -> None:
    horizon = _sky(c, 0.7)
    c.box(-1.6, horizon, 1.6, 1.8, c.ink)
    light, dark = mix(c.ink, (255, 255, 255), 0.55), mix(c.ink, (0, 0, 0), 0.4)
    crest = light if brightness(c.ink) < 0.6 else dark
    y, gap = horizon + 0.12, c.between(0.13, 0.18)
    while y < 1.3:
        period, phase, high = (y - horizon) * 0.5 + 0.2, c.between(0, 6.28), 0.03 + 0.07 * (y - horizon)
        wave = [(x / 8, y + high * math.sin(x / 8 / period * 3.1 + phase)) for x in range(-11, 12)]
        c.line(wave, 0.035 + 0.04 * (y - horizon), crest)
        y, gap = y + gap, gap * 1.25
    if c.chance(0.4):  # a far sail
        x, s = c.between(-0.7, 0.7), c.between(0.12, 0.2)
        c.polygon([(x, horizon), (x, horizon - 2 * s), (x + s, horizon)], c.detail)


def desert(c: Canvas) -> None:
    horizon = _sky(c, 0.7) - 0.05
    for k, share in enumerate((0.4, 0.2, 0.0)):
        colour = mix(c.ink, c.ground, share)
        base, x, high = horizon + 0.38 * k, c.between(-0.8, 0.8), c.between(0.2, 0.34)
        crest, side = (x, base - high), 1 if c.chance(0.5) else -1
        # A dune: a long gentle back up to a sharp crest, and a short steep side in the shade.
        back = smooth(
            [
                (x - side * 2.6, base + 0.1),
                (x - side * 1.1, base),
                (x - side * 0.4, base - 0.7 * high),
                crest,
            ],
            False,
        )
        front = smooth(
            [
                crest,
                (x + side * 0.45, base - 0.1),
                (x + side * 1.1, base + 0.12),
                (x + side * 2.6, base + 0.08),
            ],
            False,
        )
        c.polygon([*back, *front, (side * 3.0, 1.8), (-side * 3.0, 1.8)], colour)
        shade = (
            mix(colour, (0, 0, 0), 0.4) if brightness(colour) > 0.35 else mix(colour, (255, 255, 255), 0.25)
        )
        foot = smooth(
            [
                front[-6],
                (x + side * 0.7, base + 0.24),
                (x + side * 0.2, base + 0.22),
                (x - side * 0.06, base),
                crest,
            ],
            False,
        )
        c.polygon([*front, *foot], shade)
        for j in range(1, 4):  # ripples of sand
            dy = 0.1 * j + 0.05
            c.line(
                [(u - side * 0.1 * j, v + dy + 0.02 * (-1) ** i) for i, (u, v) in enumerate(back[4:-3])],
                0.022,
                shade,
            )
    if c.chance(0.6):
        x, low, tall = c.between(-0.7, 0.7), c.between(0.6, 0.95), c.between(0.45, 0.65)
        c.line([(x, low), (x, low - tall)], 0.13, c.detail)
        for s in (-1, 1):
            c.line(
                [(x, low - 0.4 * tall), (x + 0.2 * s, low - 0.4 * tall), (x + 0.2 * s, low - 0.75 * tall)],
                0.085,
                c.detail,
            )


def forest(c: Canvas) -> None:
    horizon = _sky(c, 0.3) + 0.2
    c.box(-1.6, horizon, 1.6, 1.8, mix(c.ground, c.ink, 0.6))
    round_tops = c.chance(0.4)
    for row in range(3):
        share = 0.45 + 0.275 * row
        colour = mix(c.ground, c.ink, share)
        count = 8 - 2 * row
        size = 0.42 + 0.2 * row
        for k in range(count):
            x = -1.2 + 2.4 * (k + c.between(0.2, 0.8)) / count
            foot = horizon + 0.1 + 0.32 * row + c.between(-0.05, 0.05)
            tall = size * c.about(1.35, 0.2)
            _tree(c, x, foot, size * 0.36, tall, colour, round_tops)


def _tree(c: Canvas, x: float, foot: float, wide: float, tall: float, colour: Colour, rounded: bool) -> None:
    c.box(x - wide * 0.16, foot - tall * 0.4, x + wide * 0.16, foot, mix(colour, c.detail, 0.55))
    shade = mix(colour, c.detail, c.between(0.0, 0.2))
    if rounded:
        c.oval(x, foot - tall * 0.62, wide * 0.95, tall * 0.4, shade)
        return
    for k in range(3):
        w, low = wide * (1 - 0.26 * k), foot - tall * (0.2 + 0.24 * k)
        c.polygon([(x - w, low), (x, low - tall * 0.42), (x + w, low)], shade)
    c.line(
        [(x - wide * 0.5, foot - tall * 0.44), (x + wide * 0.5, foot - tall * 0.44)],
        0.03,
        mix(shade, c.detail, 0.4),
    )


def volcano(c: Canvas) -> None:
    horizon = _sky(c, 0.2) + 0.35
    x, top = c.between(-0.3, 0.3), c.between(-0.2, 0.05)
    half, foot = c.between(0.17, 0.24), c.between(0.95, 1.25)
    level = brightness(c.ground)
    smoke = tone(c.rng, level + (0.3 if level < 0.5 else -0.3), 0.25)
    drift = c.between(-0.12, 0.12)
    for k in range(6):  # the plume, wider the higher
        for s in (-1, 1):
            y = top - 0.08 - 0.17 * k
            c.oval(
                x + drift * k + s * (0.03 + 0.05 * k),
                y,
                0.12 + 0.055 * k,
                0.14,
                mix(smoke, c.ground, 0.25 * c.rng.random()),
            )
    for k in range(7):  # thrown rocks
        angle = math.radians(-160 + 23 * k + c.between(-8, 8))
        reach = c.between(0.3, 0.6)
        c.dot(x + reach * math.cos(angle), top + reach * math.sin(angle), c.between(0.035, 0.06), c.ink)
    left = smooth(
        [
            (x - half, top),
            (x - half - 0.12, top + 0.28),
            (x - foot * 0.62, horizon - 0.02),
            (x - foot - 0.3, horizon + 0.3),
        ],
        False,
    )
    right = smooth(
        [
            (x + half, top),
            (x + half + 0.12, top + 0.28),
            (x + foot * 0.62, horizon - 0.02),
            (x + foot + 0.3, horizon + 0.3),
        ],
        False,
    )
    c.polygon([*left, *right[::-1]], c.ink)
    fire = c.detail
    c.oval(x, top, half, 0.08, fire)
    for lean in (-0.7, 0.0, 0.75):  # streams of lava, thinner the lower
        low = c.between(0.35, 0.75) * (horizon + 0.3 - top)
        sway = c.between(-0.06, 0.06)
        c.taper(
            [
                (x + lean * half * 0.7, top),
                (x + lean * 0.28 + sway, top + low * 0.5),
                (x + lean * 0.5, top + low),
            ],
            0.13,
            0.05,
            fire,
        )
    c.box(-1.6, horizon + 0.25, 1.6, 1.8, mix(c.ground, c.ink, 0.55))


def waterfall(c: Canvas) -> None:
    _sky(c, 0.2)
    top, pool = c.between(-0.5, -0.3), c.between(0.5, 0.62)
    x, half = c.between(-0.3, 0.3), c.between(0.3, 0.42)
    rock = c.ink
    dark = brightness(rock) < 0.5
    water = mix(rock, (255, 255, 255), 0.85) if dark else mix(rock, (0, 0, 0), 0.75)
    streak, crack = mix(water, rock, 0.45), mix(rock, (255, 255, 255) if dark else (0, 0, 0), 0.16)
    c.box(-1.6, top, 1.6, 1.8, rock)
    for s in (-1, 1):  # cliffs that rise on both sides, in steps
        edge = [(x + s * half, pool + 0.1)]
        edge += [(x + s * (half + 0.14 * k), top - 0.16 * k + dy) for k in range(4) for dy in (0.02, -0.13)]
        c.polygon([*edge, (x + s * 2.4, top - 0.75), (x + s * 2.4, pool + 0.1)], rock)
        for _ in range(3):
            u, v = x + s * c.between(half + 0.15, 1.2), c.between(top - 0.05, pool)
            c.line(
                [(u, v), (u + c.between(-0.05, 0.05), v + c.between(0.15, 0.3)), (u + s * 0.15, v + 0.32)],
                0.04,
                crack,
            )
    if c.chance(0.7):
        for s in (-1, 1):  # trees above
            for k in range(2):
                u, v = x + s * (half + 0.5 + 0.28 * k), top - 0.58
                c.polygon([(u - 0.13, v), (u, v - c.between(0.3, 0.45)), (u + 0.13, v)], rock)
    c.box(-1.6, pool, 1.6, 1.8, streak)
    for k in range(3):  # rings on the pool
        c.arc(x, pool + 0.1, half + 0.15 + 0.25 * k, 0.14 + 0.13 * k, 0, 180, 0.05, water)
    lip = smooth([(x - half, top - 0.05), (x - half * 0.98, top + 0.12), (x - half * 1.02, pool)], False)
    rim = smooth([(x + half * 1.02, pool), (x + half * 0.98, top + 0.12), (x + half, top - 0.05)], False)
    c.polygon([*lip, *rim], water)
    for k in range(5):
        u = x + half * (-0.76 + 0.38 * k + c.between(-0.06, 0.06))
        c.line([(u, top + c.between(0.02, 0.3)), (u, pool - c.between(0.0, 0.3))], 0.04, streak)
    for k in range(7):  # spray
        c.oval(
            x + half * (-1.35 + 0.45 * k),
            pool + 0.04 + c.between(-0.06, 0.05),
            0.12,
            0.1,
            mix(water, streak, 0.15),
        )


DRAWINGS: dict[str, Drawing] = {
    "mountains": mountains,
    "sea": sea,
    "desert": desert,
    "forest": forest,
    "volcano": volcano,
    "waterfall": waterfall,
}
