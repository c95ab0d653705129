"""The sheet that every toy picture is drawn on: colours, pose, brushes, and the light that falls on it at the end.

Coordinates run from -1 to 1 in both directions, x to the right, y down, at every size; so the same picture exists at 16
and at 256 pixels. Things are drawn two or three times too large and averaged down (PIL's antialiasing is poor).

Colours say nothing about the class: hue and saturation are drawn at random and only the brightness is arranged, so that
the subject can be told from the ground. Nothing but `random.Random` and raw PCG64 bits is random here; both are
documented to stay the same from version to version.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from moce.images.toyworld.colours import Colour, brightness, mix, relit, tone
from moce.images.toyworld.curves import Point, divided, ring, smooth

Drawing = Callable[["Canvas"], None]


class Canvas:
    """One picture in the making.

    ground, ink, detail, accent: the colours of the background, of the subject, of what is drawn on the subject (eyes,
    windows), and of the subject's second part. All differ in brightness from what they lie on.
    """

    def __init__(self, rng: random.Random, size: int, split: str = "train") -> None:
        self.rng = rng
        self.size = size
        self.split = split
        self.oversample = 3 if size <= 64 else 2
        self.pixels = size * self.oversample
        low, high = 0.1 + 0.22 * rng.random(), 0.66 + 0.28 * rng.random()
        ground, ink = (low, high) if rng.random() < 0.5 else (high, low)
        self.ground, self.ink = tone(rng, ground), tone(rng, ink)
        self.accent = tone(rng, ink + (ground - ink) * 0.33)
        self.detail = tone(rng, 0.03 + 0.12 * rng.random() if ink > 0.5 else 0.97 - 0.12 * rng.random())
        self.image = Image.new("RGB", (self.pixels, self.pixels), self.ground)
        self.draw = ImageDraw.Draw(self.image)
        self.pose()

    # Chance ----------------------------------------------------------------------------------------------------

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def about(self, value: float, spread: float = 0.15) -> float:
        """`value`, give or take the share `spread` of it."""
        return value * (1 + spread * (2 * self.rng.random() - 1))

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    # Where things land -------------------------------------------------------------------------------------------

    def pose(
        self,
        scale: float = 1.0,
        turn: float = 0.0,
        x: float = 0.0,
        y: float = 0.0,
        mirror: bool = False,
        stretch: float = 1.0,
        warp: float = 0.0,
    ) -> None:
        """Sets where the subject's coordinates land: first bent by `warp`, then stretched, turned (degrees), moved."""
        angle = math.radians(turn)
        across, down = scale * math.sqrt(stretch), scale / math.sqrt(stretch)
        across = -across if mirror else across
        half = self.pixels / 2
        self.affine = (
            half * across * math.cos(angle), -half * down * math.sin(angle), half * (1 + x),
            half * across * math.sin(angle), half * down * math.cos(angle), half * (1 + y),
        )  # fmt: skip
        self._warp = (warp, *(self.rng.random() * math.tau for _ in range(2))) if warp else None
        self.unit = half * scale

    def any_pose(
        self,
        scale: tuple[float, float] = (0.62, 0.9),
        turn: float = 15.0,
        mirror: bool = True,
        warp: float = 0.05,
    ) -> None:
        """A random pose that keeps most of the subject in sight; `turn` is the largest angle."""
        size = self.between(*scale)
        room = max(0.0, 1.0 - size) * 0.9
        self.pose(
            size,
            self.between(-turn, turn),
            self.between(-room, room),
            self.between(-room, room),
            mirror and self.chance(0.5),
            self.about(1.0, 0.13),
            warp,
        )

    def at(self, points: Sequence[Point]) -> list[Point]:
        """Subject coordinates to pixels of the oversized sheet."""
        a, b, c, d, e, f = self.affine
        if self._warp is not None:
            size, p, q = self._warp
            sin = math.sin
            points = [(x + size * sin(2.6 * y + p), y + size * sin(2.6 * x + q)) for x, y in points]
        return [(a * x + b * y + c, d * x + e * y + f) for x, y in points]

    # Brushes -------------------------------------------------------------------------------------------------------

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        self.draw.polygon(self.at(points), fill=fill)

    def blob(self, points: Sequence[Point], fill: Colour) -> None:
        """The smooth closed curve through the points (Catmull-Rom), filled."""
        self.draw.polygon(self.at(smooth(points, closed=True)), fill=fill)

    def oval(self, x: float, y: float, across: float, down: float, fill: Colour, turn: float = 0.0) -> None:
        """An ellipse by its centre and half axes, turned clockwise by degrees."""
        self.draw.polygon(self.at(ring(x, y, across, down, turn)), fill=fill)

    def dot(self, x: float, y: float, radius: float, fill: Colour) -> None:
        """A small disc that pose and warp move but do not bend."""
        (u, v), r = self.at([(x, y)])[0], radius * self.unit
        self.draw.ellipse((u - r, v - r, u + r, v + r), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.polygon(divided([(left, top), (right, top), (right, bottom), (left, bottom)]), fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A polyline with round ends and corners; width in subject coordinates."""
        thick = max(1, round(width * self.unit))
        landed = self.at(points)
        self.draw.line(landed, fill=fill, width=thick)
        if thick > 2:
            r = thick / 2
            for u, v in landed:
                self.draw.ellipse((u - r, v - r, u + r, v + r), fill=fill)

    def curve(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """The smooth open curve through the points."""
        self.line(smooth(points, closed=False), width, fill)

    def arc(
        self,
        x: float,
        y: float,
        across: float,
        down: float,
        start: float,
        end: float,
        width: float,
        fill: Colour,
    ) -> None:
        """Part of an ellipse, from angle start to end (degrees, clockwise from the right)."""
        steps = max(6, int(abs(end - start) / 15))
        angles = [math.radians(start + (end - start) * k / steps) for k in range(steps + 1)]
        self.line([(x + across * math.cos(t), y + down * math.sin(t)) for t in angles], width, fill)

    def taper(self, points: Sequence[Point], start: float, end: float, fill: Colour) -> None:
        """A smooth band along the points whose width goes from `start` to `end`."""
        path = smooth(points, closed=False)
        left, right = [], []
        for k, (x, y) in enumerate(path):
            (x0, y0), (x1, y1) = path[max(k - 1, 0)], path[min(k + 1, len(path) - 1)]
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            half = (start + (end - start) * k / (len(path) - 1)) / 2
            nx, ny = -(y1 - y0) / length * half, (x1 - x0) / length * half
            left.append((x + nx, y + ny))
            right.append((x - nx, y - ny))
        self.polygon(left + right[::-1], fill)

    def stamp(self, mask: Image.Image, fill: Colour) -> None:
        """Paints `fill` wherever the mask (grey, as large as the sheet) is white."""
        self.image.paste(fill, mask=mask)

    # Grounds -------------------------------------------------------------------------------------------------------

    def backdrop(self, clutter: float = 1.0) -> None:
        """A ground that is never quite plain: soft patches of nearly the same brightness, and some things on it."""
        self.clouds(self.ground, self.between(0.02, 0.1))
        level = brightness(self.ground)
        if not self.chance(0.7 * clutter):
            return
        kind = self.number(0, 3)
        for _ in range(self.number(1, 5)):
            colour = tone(self.rng, level + self.between(-0.1, 0.1))
            u, v = (self.rng.random() * self.pixels for _ in range(2))
            r, s = (self.pixels * self.between(0.06, 0.35) for _ in range(2))
            if kind == 0:
                self.draw.ellipse((u - r, v - s, u + r, v + s), fill=colour)
            elif kind == 1:
                self.draw.rectangle((u - r, v - s, u + r, v + s), fill=colour)
            elif kind == 2:
                corners = [(u + self.between(-2, 2) * r, v + self.between(-2, 2) * s) for _ in range(3)]
                self.draw.polygon(corners, fill=colour)
            else:
                ends = [tuple(self.between(-0.3, 1.3) * self.pixels for _ in range(2)) for _ in range(2)]
                self.draw.line(ends, fill=colour, width=max(1, int(r / 5)))

    def clouds(self, colour: Colour, spread: float) -> None:
        """Fills the sheet with soft patches around `colour`; brightness differs by up to `spread`."""
        count = self.number(2, 4)
        level = brightness(colour)
        tint = tone(self.rng, level)
        patches = Image.new("RGB", (count, count))
        patches.putdata(
            [
                relit(mix(colour, tint, 0.5 * self.rng.random()), level + self.between(-spread, spread))
                for _ in range(count * count)
            ]
        )
        self.image.paste(patches.resize((self.pixels, self.pixels), Image.Resampling.BICUBIC))

    # The end ---------------------------------------------------------------------------------------------------------

    def finished(self, noise_seed: int) -> np.ndarray:
        """The picture, uint8 [size, size, 3]: averaged down, sometimes soft, unevenly lit, slightly noisy."""
        small = self.image.reduce(self.oversample)
        if self.chance(0.25):
            small = small.filter(ImageFilter.GaussianBlur(self.between(0.25, 0.6) * self.size / 32))
        corners = Image.new("L", (2, 2))
        light = self.between(0.82, 1.05)
        corners.putdata([round(127 * light * self.about(1.0, 0.16)) for _ in range(4)])
        lit = np.asarray(corners.resize((self.size, self.size), Image.Resampling.BILINEAR), dtype=np.float32)
        picture = np.asarray(small, dtype=np.float32) * (lit[:, :, None] / 127)
        grain = self.between(0.0, 0.05) ** 2 * 60  # standard deviation in grey levels of one uniform draw
        if grain > 0.02:
            raw = np.random.PCG64(noise_seed).random_raw((self.size * self.size * 3 + 7) // 8).view(np.uint8)
            picture += (raw[: picture.size].reshape(picture.shape).astype(np.float32) - 127.5) * (grain / 2)
        return picture.clip(0, 255).round().astype(np.uint8)
