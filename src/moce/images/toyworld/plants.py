"""Plants: tulip, sunflower, cactus, fir, palm, leaf."""

import math

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import mix


def _stand(c: Canvas, turn: float = 10.0) -> None:
    c.backdrop()
    if c.chance(0.4):  # ground to grow from
        c.pose()
        level = c.between(0.45, 0.9)
        c.box(-1.3, level, 1.3, 1.4, mix(c.ground, c.accent, 0.35))
    c.any_pose(turn=turn)


def tulip(c: Canvas) -> None:
    _stand(c)
    bend = c.between(-0.2, 0.2)
    top = c.between(-0.2, 0.0)
    c.curve([(0, top), (bend, 0.5), (0, 1.0)], 0.11, c.accent)
    for side in (-1, 1):
        reach, tip = c.between(0.3, 0.55), c.between(-0.1, 0.25)
        c.blob(
            [
                (0.02 * side, 0.95),
                (reach * 0.55 * side, 0.55),
                (reach * side, tip),
                (reach * 0.8 * side, 0.6),
            ],
            c.accent,
        )
    w, h = c.about(0.42), c.about(0.85, 0.1)
    base = top + 0.12
    cup = [
        (-w, base - h),
        (-w * 0.5, base - 0.55 * h),
        (0, base - h * 1.08),
        (w * 0.5, base - 0.55 * h),
        (w, base - h),
    ]
    side_curve = [
        (w * 1.08, base - 0.4 * h),
        (w * 0.7, base - 0.05),
        (0, base + 0.05),
        (-w * 0.7, base - 0.05),
    ]
    c.polygon([*cup, *side_curve, (-w * 1.08, base - 0.4 * h)], c.ink)
    shade = mix(c.ink, c.detail, 0.35)
    for side in (-1, 1):
        c.line([(side * w * 0.5, base - 0.52 * h), (side * w * 0.28, base - 0.1)], 0.05, shade)


def sunflower(c: Canvas) -> None:
    _stand(c)
    middle = c.between(-0.35, -0.2)
    c.curve([(0, middle), (c.between(-0.15, 0.15), 0.5), (0, 1.0)], 0.12, c.accent)
    side = 1 if c.chance(0.5) else -1
    c.blob([(0, 0.75), (0.3 * side, 0.45), (0.6 * side, 0.45), (0.35 * side, 0.72)], c.accent)
    count, start, size = c.number(9, 13), c.between(0, 360), c.about(0.6, 0.1)
    core = c.between(0.4, 0.52) * size
    for k in range(count):
        angle = start + 360 * k / count
        x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        r = size * c.about(0.72, 0.06)
        c.oval(r * x, middle + r * y, size * 0.34, size * 0.17, c.ink, angle)
    c.oval(0, middle, core, core, c.detail)
    for k in range(7):
        angle = math.tau * k / 7
        c.dot(
            core * 0.55 * math.cos(angle),
            middle + core * 0.55 * math.sin(angle),
            0.035,
            mix(c.detail, c.ink, 0.5),
        )


def cactus(c: Canvas) -> None:
    _stand(c, 6)
    width = c.about(0.34, 0.15)
    top = c.between(-0.95, -0.75)
    if c.chance(0.5):  # in a pot
        floor = 0.55
        c.polygon([(-0.42, 0.5), (0.42, 0.5), (0.32, 1.0), (-0.32, 1.0)], c.accent)
    else:
        floor = 1.0
    c.line([(0, top + width / 2), (0, floor)], width, c.ink)
    arm = width * c.about(0.62, 0.1)
    for side, present in ((-1, True), (1, c.chance(0.8))):
        if present:
            out, low = side * c.between(0.5, 0.68), c.between(-0.05, 0.3)
            c.line([(0, low), (out, low), (out, low - c.between(0.35, 0.6))], arm, c.ink)
    spine = mix(c.ink, c.detail, 0.6)
    for x in (-0.28, 0.0, 0.28):
        c.line([(x * width, top + width * 0.4), (x * width, floor - 0.05)], 0.03, spine)


def fir(c: Canvas) -> None:
    _stand(c, 6)
    c.box(-0.09, 0.55, 0.09, 1.0, c.accent)
    tiers = c.number(3, 4)
    wide, rise = c.about(0.68, 0.15), 1.55 / tiers
    for k in range(tiers):
        low = 0.65 - k * rise * 0.86
        w = wide * (1 - 0.72 * k / tiers)
        c.polygon([(-w, low), (0, low - rise * 1.35), (w, low)], c.ink)
        c.line([(-w * 0.85, low), (w * 0.85, low)], 0.045, mix(c.ink, c.detail, 0.5))


def palm(c: Canvas) -> None:
    _stand(c, 6)
    lean = c.between(-0.35, 0.35)
    x, y = lean * 0.6, c.between(-0.5, -0.3)
    c.taper([(-lean * 0.4, 1.0), (-lean * 0.1, 0.3), (x, y)], 0.2, 0.12, c.accent)
    fronds = c.number(6, 8)
    for k in range(fronds):
        angle = math.radians(-200 + 220 * k / (fronds - 1) + c.between(-8, 8))
        reach = c.about(0.72, 0.1)
        dx, dy = reach * math.cos(angle), reach * 0.75 * math.sin(angle)
        c.taper([(x, y), (x + dx * 0.6, y + dy * 0.8 - 0.12), (x + dx, y + dy + 0.3)], 0.24, 0.03, c.ink)
    for dx in (-0.09, 0.08):
        c.dot(x + dx, y + 0.08, 0.085, c.detail)


def leaf(c: Canvas) -> None:
    c.backdrop()
    c.any_pose(turn=180, scale=(0.7, 0.95))
    wide, point = c.between(0.36, 0.55), c.between(0.0, 0.25)
    side = [(0, -0.95), (wide * 0.6, -0.5), (wide, point - 0.1), (wide * 0.7, 0.4), (0, 0.62)]
    c.line([(0, 0.55), (c.between(-0.08, 0.08), 1.0)], 0.08, c.ink)
    c.blob(side + [(-x, y) for x, y in side[-2:0:-1]], c.ink)
    vein = mix(c.ink, c.detail, 0.65)
    c.line([(0, -0.85), (0, 0.6)], 0.05, vein)
    for k in range(4):
        y = -0.35 + 0.24 * k
        reach = wide * (0.55, 0.75, 0.72, 0.5)[k]
        for s in (-1, 1):
            c.line([(0, y + 0.08), (s * reach, y - 0.16)], 0.035, vein)


DRAWINGS: dict[str, Drawing] = {
    "tulip": tulip,
    "sunflower": sunflower,
    "cactus": cactus,
    "fir": fir,
    "palm": palm,
    "leaf": leaf,
}
