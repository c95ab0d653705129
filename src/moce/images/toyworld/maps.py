"""Maps: river, island, crossroads, roundabout, blocks (a street grid), hill (contour lines)."""

import math

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import mix
from moce.images.toyworld.curves import Point, smooth


def _sheet(c: Canvas, turn: float = 180.0) -> None:
    c.clouds(c.ground, 0.06)
    c.pose(
        1.0,
        c.between(-turn, turn),
        c.between(-0.25, 0.25),
        c.between(-0.25, 0.25),
        c.chance(0.5),
        c.about(1, 0.1),
        c.between(0.0, 0.05),
    )


def _scatter(c: Canvas, count: int, clear: float) -> None:
    """Houses and trees, away from the middle lines."""
    for _ in range(count):
        x, y = c.between(-1.2, 1.2), c.between(-1.2, 1.2)
        if abs(x) < clear or abs(y) < clear:
            continue
        if c.chance(0.5):
            s = c.between(0.06, 0.1)
            c.box(x - s, y - s, x + s, y + s, mix(c.ground, c.accent, 0.7))
        else:
            c.dot(x, y, c.between(0.05, 0.09), mix(c.ground, c.detail, 0.35))


def river(c: Canvas) -> None:
    _sheet(c)
    _scatter(c, 16, 0.0)
    sway, wide = c.between(0.25, 0.45), c.between(0.2, 0.32)
    path: list[Point] = [(-1.7 + 0.68 * k, sway * (-1) ** k * c.between(0.6, 1.1)) for k in range(6)]
    c.curve(path, wide + 0.1, mix(c.ground, c.ink, 0.45))
    c.curve(path, wide, c.ink)
    if c.chance(0.6):  # a tributary
        x, y = path[2]
        c.curve(
            [(x, y), (x + 0.25, y + 0.5 * (1 if y < 0 else -1)), (x + 0.1, y + 1.6 * (1 if y < 0 else -1))],
            wide * 0.55,
            c.ink,
        )


def _coast(c: Canvas, size: float, rough: float) -> list[Point]:
    count = 11
    return [
        (r * math.cos(math.tau * k / count), r * math.sin(math.tau * k / count))
        for k in range(count)
        for r in [size * (1 + c.between(-rough, rough))]
    ]


def island(c: Canvas) -> None:
    _sheet(c, 25)
    wave = mix(c.ground, c.accent, 0.5)
    for row in range(6):  # wavelets all over the sea
        for k in range(4):
            x, y = -1.3 + 0.75 * k + c.between(-0.15, 0.15) + 0.3 * (row % 2), -1.1 + 0.44 * row
            c.arc(x, y, 0.11, 0.09, 180, 360, 0.05, wave)
            c.arc(x + 0.22, y, 0.11, 0.09, 180, 360, 0.05, wave)
    coast = _coast(c, c.between(0.52, 0.68), 0.28)
    c.blob([(1.3 * x, 1.3 * y) for x, y in coast], mix(c.ground, c.ink, 0.3))
    c.blob([(1.12 * x, 1.12 * y) for x, y in coast], mix(c.ground, c.ink, 0.55))
    c.blob(coast, c.ink)
    c.blob([(0.62 * x, 0.62 * y) for x, y in coast], mix(c.accent, c.ink, 0.2))
    for _ in range(c.number(4, 8)):  # trees
        x, y = c.between(-0.33, 0.33), c.between(-0.33, 0.33)
        c.dot(x, y, c.between(0.06, 0.09), mix(c.ink, c.detail, 0.7))


def _street(c: Canvas, points: list[Point], wide: float) -> None:
    c.line(points, wide, c.ink)


def _dashes(c: Canvas, x0: float, y0: float, x1: float, y1: float) -> None:
    count = 7
    for k in range(count):
        a, b = (k + 0.2) / count, (k + 0.65) / count
        c.line(
            [(x0 + (x1 - x0) * a, y0 + (y1 - y0) * a), (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b)],
            0.045,
            c.detail,
        )


def crossroads(c: Canvas) -> None:
    _sheet(c)
    wide = c.between(0.3, 0.42)
    _scatter(c, 26, wide * 0.8)
    skew = c.between(-0.3, 0.3)
    _street(c, [(-1.8, 0), (1.8, 0)], wide)
    _street(c, [(-skew, -1.8), (skew, 1.8)], wide)
    for s in (-1, 1):
        _dashes(c, s * wide * 0.7, 0, s * 1.7, 0)
        _dashes(c, s * skew * wide * 0.4, s * wide * 0.7, s * skew * 0.95, s * 1.7)


def roundabout(c: Canvas) -> None:
    _sheet(c)
    wide, size = c.between(0.22, 0.28), c.between(0.42, 0.52)
    _scatter(c, 26, 0.25)
    arms = c.number(3, 4)
    for k in range(arms):
        angle = math.tau * k / arms + c.between(-0.2, 0.2)
        _street(
            c,
            [(0.3 * math.cos(angle), 0.3 * math.sin(angle)), (2 * math.cos(angle), 2 * math.sin(angle))],
            wide * 0.85,
        )
    c.oval(0, 0, size + wide / 2, size + wide / 2, c.ink)
    c.oval(0, 0, size - wide / 2, size - wide / 2, mix(c.ground, c.accent, 0.5))
    c.dot(0, 0, 0.1, c.detail)


def blocks(c: Canvas) -> None:
    _sheet(c, 45)
    c.clouds(c.ink, 0.04)
    step, wide = c.between(0.5, 0.68), c.between(0.11, 0.16)
    rows = int(3.4 / step) + 1
    for row in range(rows):
        for k in range(rows):
            x, y = -1.7 + k * step, -1.7 + row * step
            if c.chance(0.08):  # a park
                c.box(x, y, x + step - wide, y + step - wide, mix(c.ground, c.accent, 0.7))
                c.dot(x + step * 0.35, y + step * 0.4, 0.12, mix(c.ground, c.detail, 0.4))
                continue
            inner = step - wide
            c.box(x, y, x + inner, y + inner, c.ground)
            for du in (0.06, 0.54):
                for dv in (0.06, 0.54):
                    if c.chance(0.85):
                        c.box(
                            x + du * inner,
                            y + dv * inner,
                            x + (du + 0.4) * inner,
                            y + (dv + 0.4) * inner,
                            mix(c.ground, c.accent, c.between(0.35, 0.8)),
                        )


def hill(c: Canvas) -> None:
    _sheet(c)
    outline = _coast(c, 1.0, 0.2)
    rings = c.number(5, 6)
    lift_x, lift_y = c.between(-0.25, 0.25), c.between(-0.25, 0.25)
    for k in range(rings):
        share = 1.25 - 1.15 * k / (rings - 1)
        level = [(share * x + (1 - share) * lift_x, share * y + (1 - share) * lift_y) for x, y in outline]
        c.blob([(x, y) for x, y in level], mix(c.ground, c.accent, 0.6 * k / (rings - 1)))
        path = smooth(level, closed=True)
        c.line([*path, path[0]], 0.055, c.ink)
    c.polygon(
        [(lift_x - 0.07, lift_y + 0.05), (lift_x, lift_y - 0.09), (lift_x + 0.07, lift_y + 0.05)], c.detail
    )


DRAWINGS: dict[str, Drawing] = {
    "river": river,
    "island": island,
    "crossroads": crossroads,
    "roundabout": roundabout,
    "blocks": blocks,
    "hill": hill,
}
