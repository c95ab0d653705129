"""Points along ellipses and smooth curves, in the coordinates of a canvas."""

import math
from collections.abc import Sequence

Point = tuple[float, float]


def ring(x: float, y: float, across: float, down: float, turn: float = 0.0, points: int = 22) -> list[Point]:
    """Points on an ellipse."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [
        (x + across * p * c - down * q * s, y + across * p * s + down * q * c)
        for p, q in (_CIRCLE if points == 22 else _unit_circle(points))
    ]


def _unit_circle(points: int) -> list[Point]:
    return [(math.cos(math.tau * k / points), math.sin(math.tau * k / points)) for k in range(points)]


_CIRCLE = _unit_circle(22)


# Catmull-Rom weights of four neighbouring points, at five places between the middle two.
_WEIGHTS = [
    (
        (-t + 2 * t * t - t**3) / 2,
        (2 - 5 * t * t + 3 * t**3) / 2,
        (t + 4 * t * t - 3 * t**3) / 2,
        (t**3 - t * t) / 2,
    )
    for t in (k / 5 for k in range(5))
]


def smooth(points: Sequence[Point], closed: bool) -> list[Point]:
    """The Catmull-Rom curve through the points, in five pieces between each two."""
    count = len(points)
    result: list[Point] = []
    for k in range(count if closed else count - 1):
        places = (k - 1, k, k + 1, k + 2)
        p, q, r, s = (points[j % count if closed else min(max(j, 0), count - 1)] for j in places)
        for a, b, c, d in _WEIGHTS:
            x, y = (a * p[i] + b * q[i] + c * r[i] + d * s[i] for i in (0, 1))
            result.append((x, y))
    if not closed:
        result.append(points[-1])
    return result


def divided(points: Sequence[Point], pieces: int = 3) -> list[Point]:
    """A polygon with each side cut in pieces, so that a warp can bend it."""
    result = []
    for k, (x0, y0) in enumerate(points):
        x1, y1 = points[(k + 1) % len(points)]
        result += [(x0 + (x1 - x0) * j / pieces, y0 + (y1 - y0) * j / pieces) for j in range(pieces)]
    return result
