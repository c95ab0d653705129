"""Landscapes: mountains, sea, desert, forest, volcano, waterfall; at any time of day, in any light."""

import math

from moce.images.toyworld.canvas import Canvas, Colour, Drawing, Point, brightness, mix, relit, tone


def _sky(c: Canvas, sun: float = 0.5) -> float:
    """A sky from one brightness at the top to another at the horizon; gives the horizon's height."""
    c.clouds(c.ground, 0.04)
    c.pose(1.0, c.between(-4, 4), mirror=c.chance(0.5))
    low = relit(mix(c.ground, c.accent, 0.3), brightness(c.ground))
    bands, top = 6, c.between(-0.6, -0.2)
    for k in range(bands):
        c.box(-1.5, top + 0.15 * k, 1.5, 2.0, mix(c.ground, low, k / (bands - 1)))
    if c.chance(sun):
        c.dot(c.between(-0.8, 0.8), c.between(-0.8, -0.35), c.between(0.1, 0.18), mix(c.ground, (255, 255, 255), 0.6))
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
            c.polygon([(x, y), right, (x + 0.05, (y + right[1]) / 2 + 0.12), (x - 0.02, left[1] - 0.02), left], snow)
            c.polygon([right, (x1, y1), (x + (x1 - x) * 0.35, y1 + 0.25), (x + 0.04, y + 0.3)], mix(c.ink, c.detail, 0.25))


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
    horizon = _sky(c, 0.7) + 0.05
    colours = [mix(c.ink, c.ground, share) for share in (0.35, 0.18, 0.0)]
    for k, colour in enumerate(colours):
        base = horizon + 0.3 * k
        x, high = c.between(-0.7, 0.7), c.between(0.3, 0.5)
        crest = [(-1.8, base + 0.2), (x - 0.9, base + 0.02), (x, base - high), (x + 0.7, base + 0.12), (1.8, base + 0.05)]
        path = [(-1.8, base + 0.2), (x - 1.1, base + 0.05), (x - 0.4, base - high * 0.55), (x, base - high)]
        c.polygon([*_eased(path), *_eased([crest[2], (x + 0.35, base - high * 0.35), crest[3], crest[4]]), (1.8, 1.8), (-1.8, 1.8)], colour)
        shade = mix(colour, (0, 0, 0), 0.35) if brightness(colour) > 0.35 else mix(colour, (255, 255, 255), 0.25)
        lee = _eased([(x, base - high), (x + 0.35, base - high * 0.35), (x + 0.7, base + 0.12), (x + 1.1, base + 0.3)])
        foot = _eased([(x + 1.1, base + 0.3), (x + 0.3, base + 0.35), (x + 0.12, base), (x, base - high)])
        c.polygon(lee + foot, shade)


def _eased(points: list[Point]) -> list[Point]:
    from moce.images.toyworld.canvas import smooth

    return smooth(points, closed=False)


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
    c.line([(x - wide * 0.5, foot - tall * 0.44), (x + wide * 0.5, foot - tall * 0.44)], 0.03, mix(shade, c.detail, 0.4))


def volcano(c: Canvas) -> None:
    horizon = _sky(c, 0.2) + 0.35
    x, top = c.between(-0.3, 0.3), c.between(-0.35, -0.15)
    half, foot = c.between(0.16, 0.24), c.between(0.9, 1.2)
    smoke = tone(c.rng, min(max(brightness(c.ground) + (0.3 if brightness(c.ground) < 0.5 else -0.3), 0), 1), 0.2)
    drift = c.between(-0.25, 0.25)
    for k in range(5):
        c.oval(x + drift * k * 0.35 + c.between(-0.1, 0.1), top - 0.1 - 0.17 * k, 0.16 + 0.07 * k, 0.15 + 0.03 * k, smoke)
    fire = c.detail
    for k in range(5):  # thrown rocks
        angle = math.radians(-150 + 30 * k + c.between(-8, 8))
        reach = c.between(0.25, 0.5)
        c.line([(x + 0.1 * math.cos(angle), top + 0.1 * math.sin(angle)), (x + reach * math.cos(angle), top + reach * math.sin(angle))], 0.06, fire)
    c.polygon([(x - half, top), (x + half, top), (x + foot * 0.55, horizon * 0.5 + top * 0.3), (x + foot, horizon + 0.3), (x - foot, horizon + 0.3), (x - foot * 0.55, horizon * 0.5 + top * 0.3)], c.ink)
    c.oval(x, top, half, 0.06, fire)
    for dx in (-0.55, 0.15, 0.6)[: c.number(2, 3)]:
        sway = c.between(-0.1, 0.1)
        c.curve([(x + dx * half, top), (x + dx * 0.35 + sway, top + 0.3), (x + dx * 0.5, top + c.between(0.5, 0.8))], 0.1, fire)
    c.box(-1.6, horizon + 0.25, 1.6, 1.8, mix(c.ground, c.ink, 0.6))


def waterfall(c: Canvas) -> None:
    _sky(c, 0.2)
    top, pool = c.between(-0.5, -0.25), c.between(0.55, 0.7)
    x, half = c.between(-0.3, 0.3), c.between(0.24, 0.36)
    rock = c.ink
    c.polygon([(-1.6, top - c.between(0, 0.2)), (x - half, top), (x + half, top), (1.6, top - c.between(0, 0.2)), (1.6, 1.6), (-1.6, 1.6)], rock)
    crack = mix(rock, c.detail, 0.35)
    for _ in range(9):
        u, v = c.between(-1.1, 1.1), c.between(top + 0.1, pool)
        c.line([(u, v), (u + c.between(-0.12, 0.12), v + c.between(0.12, 0.3))], 0.05, crack)
    water = mix(rock, (255, 255, 255), 0.8) if brightness(rock) < 0.6 else mix(rock, (0, 0, 0), 0.7)
    streak = mix(water, rock, 0.45)
    c.oval(x, pool + 0.35, 1.0, 0.4, streak)
    c.polygon([(x - half, top - 0.02), (x + half, top - 0.02), (x + half * 1.15, pool + 0.1), (x - half * 1.15, pool + 0.1)], water)
    for k in range(4):
        u = x + half * (-0.7 + 0.45 * k + c.between(-0.06, 0.06))
        c.line([(u, top + c.between(0.02, 0.25)), (u, pool - c.between(0.0, 0.25))], 0.05, streak)
    for k in range(6):
        c.oval(x + half * (-1.3 + 0.52 * k), pool + 0.1 + c.between(-0.04, 0.06), 0.14, 0.1, mix(water, c.ground, 0.15))


DRAWINGS: dict[str, Drawing] = {
    "mountains": mountains,
    "sea": sea,
    "desert": desert,
    "forest": forest,
    "volcano": volcano,
    "waterfall": waterfall,
}
