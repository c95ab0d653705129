"""Charts of the page as SVG, which is text inside it.

SVG is written here and not by a plotting library, so that its colours are the page's (light or dark), a chart takes a
few kilobytes and nothing has to be imported. Colours are the variables --c0 to --c7 of the page, one per run or expert.
Text in a chart is numbers and fixed words; names that people chose stand beside it in the page, which escapes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

NUM_COLOURS = 8
WIDE, HIGH = 520, 240  # pixels of a chart, as it is drawn
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 12, 42  # around the plot
MOST_POINTS = 240  # of a line; more are averaged


def colour(number: int) -> str:
    """The page's colour of a run or an expert."""
    return f"var(--c{number % NUM_COLOURS})"


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    x: list[float]
    y: list[float]
    colour: int
    dash: int = 0  # 0 is a full line, higher ones are more and more dotted


def thinned(values: Sequence[float], limit: int = MOST_POINTS) -> list[float]:
    """At most `limit` numbers: means of neighbours."""
    parts = np.array_split(np.asarray(values, dtype=float), min(len(values), limit))
    return [float(part.mean()) for part in parts]


def smoothed(values: Sequence[float]) -> list[float]:
    """Running means over a twelfth of the length, as the noise of single batches hides what matters."""
    half = len(values) // 25
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=float))])
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, len(values) - 1 - place))  # narrower at both ends, so centred
    return [float(v) for v in (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Plot:
    """The plane of a chart: numbers to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    labels: tuple[str, str]
    wide: int = WIDE
    high: int = HIGH

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = (x - self.x[0]) / max(self.x[1] - self.x[0], 1e-12)
        up = (y - self.y[0]) / max(self.y[1] - self.y[0], 1e-12)
        return LEFT + across * (self.wide - LEFT - RIGHT), self.high - BOTTOM - up * (
            self.high - TOP - BOTTOM
        )

    def path(self, xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray) -> str:
        """'12.0,30.5 13.0,29.9 ...' of a line."""
        return " ".join("{:.1f},{:.1f}".format(*self.place(x, y)) for x, y in zip(xs, ys, strict=True))

    def drawn(self, content: str) -> Markup:
        """The SVG with axes around `content`, which is clipped to the plot."""
        parts = []
        bottom, right = self.high - BOTTOM, self.wide - RIGHT
        for value in ticks(*self.y, about=4):
            y = self.place(self.x[0], value)[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in ticks(*self.x):
            x = self.place(value, self.y[0])[0]
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        middle = (LEFT + right) / 2
        parts.append(
            f'<text class="label" x="{middle}" y="{self.high - 6}" text-anchor="middle">{self.labels[0]}</text>'
        )
        clip = f'x="{LEFT}" y="{TOP - 2}" width="{right - LEFT}" height="{bottom - TOP + 3}"'
        view = f'viewBox="{LEFT} {TOP - 2} {right - LEFT} {bottom - TOP + 3}"'
        said = f'role="img" aria-label="{self.labels[1]} over {self.labels[0]}"'
        inner = f"<svg {clip} {view}>{content}</svg>"
        return Markup(
            f'<svg class="chart" viewBox="0 0 {self.wide} {self.high}" {said}>{"".join(parts)}{inner}</svg>'
        )


DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")


def line_chart(
    lines: list[Line],
    labels: tuple[str, str],
    y: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
) -> Markup:
    """Lines over one x axis; `marks` are dotted horizontal lines.

    Without `y` the first twentieth of each line does not decide on the height: a loss starts far above where it stays.
    """
    if y is None:
        seen = np.concatenate([np.asarray(line.y)[len(line.y) // 20 :] for line in lines])
        low, high = float(seen.min()), float(seen.max())
        room = 0.06 * max(high - low, 1e-3)
        y = (low - room, high + room)
    starts, ends = zip(*((line.x[0], line.x[-1]) for line in lines), strict=True)
    plot = Plot((min(starts), max(ends)), y, labels)
    content = []
    for mark in marks:
        path = plot.path(plot.x, (mark, mark))
        content.append(f'<polyline class="mark" points="{path}"/>')
    for line in lines:
        dashed = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash else ""
        x, measured = thinned(line.x), thinned(line.y)
        smooth, stroke = smoothed(measured), f'style="stroke:{colour(line.colour)}"'
        if smooth != measured:
            content.append(f'<polyline class="line raw" {stroke} points="{plot.path(x, measured)}"/>')
        path = plot.path(x, smooth)
        content.append(f'<polyline class="line" {stroke} points="{path}"{dashed}/>')
    return plot.drawn("".join(content))


def dot_chart(points: Sequence[tuple[float, float, str]], labels: tuple[str, str]) -> Markup:
    """Dots (x, y, name); the dotted line is y = 0. A name is shown where the pointer rests on its dot."""
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    low, high = min([*ys, 0.0]), max([*ys, 0.0])
    wide, tall = 0.06 * max(max(xs) - min(xs), 1e-3), 0.1 * max(high - low, 1e-2)
    plot = Plot((min(xs) - wide, max(xs) + wide), (low - tall, high + tall), labels)
    content = [f'<polyline class="mark" points="{plot.path(plot.x, (0, 0))}"/>']
    for x, y, name in points:
        across, up = plot.place(x, y)
        content.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4.5" style="fill:{colour(0)}">'
            f"<title>{escape(name)}: {y:+.1f}</title></circle>"
        )
    return plot.drawn("".join(content))


def share_chart(x: Sequence[float], shares_TE: Sequence[Sequence[float]], labels: tuple[str, str]) -> Markup:
    """Shares that add up to 1, as areas on top of each other, the first at the bottom."""
    times = thinned(x)
    parts = [smoothed(thinned([row[e] for row in shares_TE])) for e in range(len(shares_TE[0]))]
    tops = np.vstack([np.zeros(len(times)), np.cumsum(parts, axis=0)])
    plot = Plot((times[0], times[-1]), (0.0, 1.0), labels)
    content = []
    for e in range(len(parts)):
        lower, upper = plot.path(times, tops[e]), plot.path(times[::-1], tops[e + 1][::-1])
        content.append(f'<polygon class="area" style="fill:{colour(e)}" points="{lower} {upper}"/>')
    return plot.drawn("".join(content))


CELL, CELLS_PER_ROW = 30, 32  # pixels of a square of the map, clusters side by side


def routing_map(gates_KE: Sequence[Sequence[float]], order: Sequence[int]) -> list[tuple[list[int], Markup]]:
    """Clusters (across) by experts (down); how full a square is coloured is the gate.

    Returns blocks of at most 32 clusters, each with its clusters.
    """
    experts, blocks = len(gates_KE[0]), []
    for start in range(0, len(order), CELLS_PER_ROW):
        part = list(order[start : start + CELLS_PER_ROW])
        wide, high = CELL * len(part), CELL * experts
        content = []
        for e in range(experts + 1):
            content.append(f'<line class="grid" x1="0" x2="{wide}" y1="{CELL * e}" y2="{CELL * e}"/>')
        for x, cluster in enumerate(part):
            for e, gate in enumerate(gates_KE[cluster]):
                if gate >= 0.01:
                    title = f"cluster {cluster} to expert {e}: {gate:.2f}"
                    place = f'x="{CELL * x + 1.5}" y="{CELL * e + 1.5}"'
                    content.append(
                        f'<rect {place} width="{CELL - 3}" height="{CELL - 3}" rx="4" style="fill:{colour(e)}" '
                        f'fill-opacity="{gate:.2f}"><title>{title}</title></rect>'
                    )
            content.append(
                f'<text x="{CELL * (x + 0.5)}" y="{high + 17}" text-anchor="middle">{cluster}</text>'
            )
        blocks.append(
            (part, Markup(f'<svg class="map" width="{wide}" height="{high + 24}" role="img" '
                          f'aria-label="clusters by experts">{"".join(content)}</svg>'))
        )  # fmt: skip
    return blocks


OVERVIEW_WIDE, OVERVIEW_ROW = 960, 18


def routing_overview(gates_KE: Sequence[Sequence[float]], order: Sequence[int]) -> Markup:
    """The whole map at once, for more clusters than one can number: columns without names."""
    step, high = OVERVIEW_WIDE / len(order), OVERVIEW_ROW * len(gates_KE[0])
    content = [
        f'<line class="grid" x1="0" x2="{OVERVIEW_WIDE}" y1="{y}" y2="{y}"/>'
        for y in range(0, high + 1, OVERVIEW_ROW)
    ]
    for x, cluster in enumerate(order):
        for e, gate in enumerate(gates_KE[cluster]):
            if gate >= 0.05:
                place = f'x="{step * x:.2f}" y="{OVERVIEW_ROW * e + 1}" width="{step + 0.1:.2f}"'
                look = f'height="{OVERVIEW_ROW - 2}" style="fill:{colour(e)}" fill-opacity="{gate:.2f}"'
                content.append(f"<rect {place} {look}><title>cluster {cluster}: {gate:.2f}</title></rect>")
    frame = f'width="{OVERVIEW_WIDE}" height="{high}" role="img" aria-label="all clusters by experts"'
    return Markup(f'<svg class="map" {frame}>{"".join(content)}</svg>')
