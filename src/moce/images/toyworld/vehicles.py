"""Vehicles: car, bus, boat, plane, bicycle, train."""

import math

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import mix


def _road(c: Canvas) -> None:
    c.backdrop()
    c.pose()
    if c.chance(0.6):
        c.box(-1.3, c.between(0.35, 0.6), 1.3, 1.4, mix(c.ground, c.accent, 0.4))
    c.any_pose(turn=8, scale=(0.72, 0.95), warp=0.02)


def _wheel(c: Canvas, x: float, y: float, size: float) -> None:
    c.oval(x, y, size * 1.12, size * 1.12, mix(c.ground, c.accent, 0.8))
    c.oval(x, y, size * 0.95, size * 0.95, c.detail)
    c.oval(x, y, size * 0.45, size * 0.45, mix(c.detail, c.ink, 0.65))


def car(c: Canvas) -> None:
    _road(c)
    roof, nose = c.between(-0.48, -0.3), c.between(0.0, 0.12)
    back, front = c.between(-0.62, -0.5), c.between(0.3, 0.42)
    c.polygon([(back - 0.12, 0.02), (back + 0.12, roof), (front - 0.1, roof), (front + 0.25, 0.02)], c.ink)
    c.blob(
        [
            (-0.95, 0.0),
            (-0.8, -0.08),
            (0.45, -0.08),
            (0.9, nose),
            (0.98, 0.3),
            (0.8, 0.4),
            (-0.8, 0.4),
            (-0.98, 0.3),
        ],
        c.ink,
    )
    c.box(-0.95, 0.1, 0.95, 0.38, c.ink)
    glass, top = c.accent, roof + 0.09
    middle = (back + front) / 2
    c.polygon([(back + 0.02, -0.02), (back + 0.17, top), (middle - 0.04, top), (middle - 0.04, -0.02)], glass)
    c.polygon(
        [(middle + 0.05, -0.02), (middle + 0.05, top), (front - 0.13, top), (front + 0.11, -0.02)], glass
    )
    c.dot(0.9, 0.16, 0.06, c.accent)
    c.line([(middle + 0.15, 0.1), (middle + 0.25, 0.1)], 0.04, c.detail)
    for x in (-0.55, 0.55):
        _wheel(c, x, 0.4, c.about(0.23, 0.08))


def bus(c: Canvas) -> None:
    _road(c)
    top, low = c.between(-0.68, -0.5), 0.45
    c.box(-0.98, top, 0.98, low, c.ink)
    windows = c.number(4, 5)
    step = 1.5 / windows
    for k in range(windows):
        c.box(-0.88 + step * k, top + 0.14, -0.88 + step * (k + 0.78), top + 0.5, c.accent)
    c.box(0.7, top + 0.14, 0.9, low - 0.04, c.accent)
    c.line([(-0.98, 0.2), (0.62, 0.2)], 0.06, mix(c.ink, c.detail, 0.5))
    for x in (-0.6, 0.45):
        _wheel(c, x, low, c.about(0.2, 0.08))


def boat(c: Canvas) -> None:
    c.backdrop(0.6)
    c.pose()
    level = c.between(0.35, 0.55)
    c.box(-1.3, level, 1.3, 1.4, mix(c.ground, c.accent, 0.5))
    c.any_pose(turn=9, scale=(0.72, 0.92), warp=0.02)
    c.line([(0, 0.4), (0, -0.95)], 0.08, c.accent)
    c.polygon([(0.08, -0.9), (0.08, 0.2), (c.between(0.6, 0.8), 0.2)], c.ink)
    if c.chance(0.75):
        c.polygon([(-0.08, -0.7), (-0.08, 0.2), (-c.between(0.45, 0.65), 0.2)], c.accent)
    c.polygon([(-0.9, 0.34), (0.92, 0.34), (0.62, 0.78), (-0.6, 0.78)], c.ink)
    c.line([(-0.78, 0.48), (0.8, 0.48)], 0.06, mix(c.ink, c.detail, 0.6))
    wave = mix(c.ground, c.accent, 0.85)
    c.line([(-1.3 + 0.2 * k, 0.84 + 0.05 * (-1) ** k) for k in range(14)], 0.06, wave)


def plane(c: Canvas) -> None:
    c.backdrop(0.4)
    for _ in range(c.number(0, 3)):
        w = c.between(0.2, 0.4)
        c.oval(c.between(-1, 1), c.between(-1, 1), w, w * 0.35, mix(c.ground, c.accent, 0.3))
    if c.chance(0.5):  # from below
        c.any_pose(turn=180, scale=(0.75, 0.95), warp=0.02)
        sweep, span = c.between(0.2, 0.42), c.between(0.82, 0.98)
        for s in (-1, 1):
            c.polygon([(0, -0.25), (s * span, sweep - 0.05), (s * span, sweep + 0.12), (0, 0.2)], c.ink)
            c.polygon([(0, 0.58), (s * 0.38, 0.8), (s * 0.38, 0.93), (0, 0.82)], c.ink)
            c.oval(s * span * 0.45, sweep * 0.45 - 0.1, 0.07, 0.14, c.accent)
        c.oval(0, 0, 0.14, 0.95, c.ink)
        c.oval(0, -0.68, 0.09, 0.1, c.detail)
    else:  # from the side
        c.any_pose(turn=20, scale=(0.75, 0.95), warp=0.02)
        c.polygon([(-0.95, -0.58), (-0.72, -0.58), (-0.4, -0.05), (-0.85, -0.05)], c.accent)
        c.blob([(-0.95, -0.1), (0.5, -0.22), (0.9, -0.05), (0.98, 0.1), (0.7, 0.2), (-0.4, 0.2)], c.ink)
        c.polygon([(0.2, 0.05), (-0.12, 0.05), (-0.5, 0.62), (-0.28, 0.62)], mix(c.ink, c.accent, 0.75))
        for k in range(6):
            c.dot(-0.5 + 0.19 * k, -0.03, 0.055, c.detail)
        c.polygon([(0.72, -0.1), (0.88, -0.06), (0.9, 0.04), (0.72, 0.03)], c.detail)


def bicycle(c: Canvas) -> None:
    _road(c)
    size, y = c.between(0.36, 0.42), 0.32
    for x in (-0.56, 0.56):
        c.arc(x, y, size, size, 0, 360, 0.08, c.ink)
        for k in range(3):
            dx, dy = size * math.cos(1.05 * k), size * math.sin(1.05 * k)
            c.line([(x - dx, y - dy), (x + dx, y + dy)], 0.02, mix(c.ground, c.ink, 0.6))
    seat, bar, crank = (-0.26, -0.4), (0.38, -0.42), (-0.06, 0.32)
    frame = c.accent if c.chance(0.5) else c.ink
    c.line([(-0.56, y), seat, bar, crank, (-0.56, y)], 0.075, frame)
    c.line([crank, seat, (-0.3, -0.52)], 0.075, frame)
    c.line([(0.56, y), (0.34, -0.58), (0.5, -0.68)], 0.075, frame)
    c.line([(-0.46, -0.55), (-0.14, -0.55)], 0.11, frame)
    c.dot(*crank, 0.1, frame)


def train(c: Canvas) -> None:
    _road(c)
    c.line([(-1.6, 0.62), (1.6, 0.62)], 0.06, c.accent)
    for k in range(9):
        c.line([(-1.4 + 0.35 * k, 0.62), (-1.4 + 0.35 * k, 0.72)], 0.08, c.accent)
    cab = c.between(-0.62, -0.5)
    c.box(-0.92, cab, -0.32, 0.35, c.ink)
    c.box(-0.98, cab - 0.12, -0.26, cab, c.accent)
    c.box(-0.8, cab + 0.14, -0.44, cab + 0.45, c.accent)
    c.box(-0.4, -0.25, 0.72, 0.35, c.ink)
    c.oval(0.72, 0.05, 0.12, 0.3, c.ink)
    c.polygon([(0.42, -0.24), (0.34, -0.66), (0.7, -0.66), (0.62, -0.24)], c.accent)
    c.oval(0.05, -0.27, 0.12, 0.12, c.accent)
    for x in (-0.05, 0.3):
        c.line([(x, -0.22), (x, 0.33)], 0.05, mix(c.ink, c.detail, 0.5))
    c.polygon([(0.72, 0.3), (1.0, 0.58), (0.68, 0.58)], c.accent)
    for k in range(c.number(1, 4)):
        c.oval(
            0.48 - 0.24 * k, -0.78 - 0.06 * k, 0.12 + 0.04 * k, 0.1 + 0.03 * k, mix(c.ground, c.accent, 0.5)
        )
    for x, size in ((-0.66, 0.22), (-0.14, 0.17), (0.2, 0.17), (0.52, 0.17)):
        _wheel(c, x, 0.6 - size, size)


DRAWINGS: dict[str, Drawing] = {
    "car": car,
    "bus": bus,
    "boat": boat,
    "plane": plane,
    "bicycle": bicycle,
    "train": train,
}
