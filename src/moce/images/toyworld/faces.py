"""Faces that are happy, sad, angry, surprised, asleep or winking; who it is varies freely."""

from moce.images.toyworld.canvas import Canvas, Drawing
from moce.images.toyworld.colours import mix


def _head(c: Canvas) -> tuple[float, float]:
    """Head, ears and hair; gives the height of the eyes and their distance from the middle."""
    c.backdrop()
    c.any_pose(turn=16, scale=(0.68, 0.88), warp=0.03)
    wide, tall = c.between(0.68, 0.88), c.between(0.82, 0.95)
    hair = c.number(0, 4)
    if hair == 1:
        c.oval(0, -0.2, wide * 1.16, tall * 0.95, c.accent)
    elif hair == 2:
        c.box(-wide * 1.12, -0.4, wide * 1.12, 0.8, c.accent)
        c.oval(0, -0.38, wide * 1.12, tall * 0.7, c.accent)
    for s in (-1, 1):
        c.oval(s * wide * 0.98, 0.02, 0.14, 0.2, mix(c.ink, c.accent, 0.25))
    c.oval(0, 0, wide, tall, c.ink)
    if hair in (1, 2):
        c.blob(
            [
                (-wide * 0.95, -0.35),
                (-wide * 0.5, -0.58),
                (0.1, -0.5),
                (wide * 0.6, -0.62),
                (wide * 0.95, -0.35),
                (wide * 0.6, -0.85),
                (0, -1.0),
                (-wide * 0.6, -0.85),
            ],
            c.accent,
        )
    elif hair == 3:
        for k in range(5):
            x = (k - 2) * wide * 0.34
            c.polygon([(x - 0.14, -0.68), (x + c.between(-0.1, 0.1), -1.2), (x + 0.14, -0.68)], c.accent)
    nose = mix(c.ink, c.detail, 0.35)
    if c.chance(0.5):
        c.oval(0, 0.12, 0.09, 0.12, nose)
    else:
        c.line([(0, 0.0), (0.07, 0.18), (-0.03, 0.2)], 0.06, nose)
    return c.between(-0.25, -0.12), c.between(0.28, 0.38)


def _open_eye(c: Canvas, x: float, y: float, size: float = 0.15) -> None:
    c.oval(x, y, size, size * 1.05, (250, 250, 250))
    c.dot(x, y, size * 0.62, (12, 12, 16))


def _brow(c: Canvas, s: int, apart: float, y: float, inner: float, outer: float) -> None:
    c.line([(s * (apart - 0.16), y + inner), (s * (apart + 0.18), y + outer)], 0.09, c.detail)


def happy(c: Canvas) -> None:
    y, apart = _head(c)
    for s in (-1, 1):
        _open_eye(c, s * apart, y)
    wide, deep = c.between(0.36, 0.48), c.between(0.3, 0.42)
    if c.chance(0.6):  # an open laugh
        c.polygon(
            [
                (-wide, 0.36),
                (wide, 0.36),
                (wide * 0.7, 0.36 + deep * 0.75),
                (0, 0.36 + deep),
                (-wide * 0.7, 0.36 + deep * 0.75),
            ],
            c.detail,
        )
        c.box(
            -wide * 0.8,
            0.37,
            wide * 0.8,
            0.46,
            mix(c.ink, (255, 255, 255), 0.85) if sum(c.detail) < 380 else (40, 20, 30),
        )
    else:
        c.arc(0, 0.3, wide, deep, 10, 170, 0.1, c.detail)


def sad(c: Canvas) -> None:
    y, apart = _head(c)
    for s in (-1, 1):
        _open_eye(c, s * apart, y + 0.03, 0.13)
        _brow(c, s, apart, y - 0.2, -0.1, 0.08)
    c.arc(0, 0.75, c.between(0.3, 0.42), c.between(0.25, 0.35), 200, 340, 0.1, c.detail)
    if c.chance(0.5):
        c.oval(c.rng.choice((-1, 1)) * apart, y + 0.34, 0.07, 0.13, mix(c.ground, (255, 255, 255), 0.5))


def angry(c: Canvas) -> None:
    y, apart = _head(c)
    for s in (-1, 1):
        _open_eye(c, s * apart, y + 0.04, 0.13)
        _brow(c, s, apart, y - 0.14, 0.13, -0.1)
    if c.chance(0.5):  # bared teeth
        c.box(-0.36, 0.42, 0.36, 0.66, c.detail)
        teeth = (245, 245, 245) if sum(c.detail) < 380 else (40, 20, 30)
        for k in range(4):
            c.box(-0.31 + 0.16 * k, 0.46, -0.2 + 0.16 * k, 0.62, teeth)
    else:
        c.line([(-0.34, 0.62), (0, 0.5), (0.34, 0.62)], 0.1, c.detail)


def surprised(c: Canvas) -> None:
    y, apart = _head(c)
    for s in (-1, 1):
        _open_eye(c, s * apart, y, c.between(0.18, 0.22))
        c.arc(s * apart, y - 0.2, 0.18, 0.14, 200, 340, 0.07, c.detail)
    c.oval(0, 0.53, c.between(0.15, 0.21), c.between(0.2, 0.28), c.detail)


def asleep(c: Canvas) -> None:
    y, apart = _head(c)
    for s in (-1, 1):
        c.arc(s * apart, y - 0.03, 0.18, 0.13, 10, 170, 0.08, c.detail)
    c.oval(c.between(-0.05, 0.05), 0.5, c.between(0.08, 0.12), c.between(0.06, 0.1), c.detail)
    x, y = c.between(0.85, 0.95), c.between(-0.95, -0.8)
    for size in (0.2, 0.13):
        c.line(
            [(x - size, y - size), (x + size, y - size), (x - size, y + size), (x + size, y + size)],
            0.08,
            c.ink,
        )
        x, y = x - 0.25, y + 0.36


def winking(c: Canvas) -> None:
    y, apart = _head(c)
    s = c.rng.choice((-1, 1))
    _open_eye(c, s * apart, y, 0.16)
    c.line(
        [(-s * (apart + 0.17), y - 0.09), (-s * (apart - 0.15), y + 0.02), (-s * (apart + 0.17), y + 0.11)],
        0.08,
        c.detail,
    )
    wide = c.between(0.3, 0.42)
    c.arc(0.06 * s, 0.3, wide, 0.3, 5, 165, 0.1, c.detail)
    if c.chance(0.4):
        c.oval(-0.1 * s, 0.64, 0.12, 0.16, c.accent)


DRAWINGS: dict[str, Drawing] = {
    "happy": happy,
    "sad": sad,
    "angry": angry,
    "surprised": surprised,
    "asleep": asleep,
    "winking": winking,
}
