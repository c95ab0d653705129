"""Small charts that stand in a line of text or a row of a table: differences with whiskers, votes, gauges, shares.

SVG in the page's colours, as in charts.py.
"""

from collections.abc import Sequence

from markupsafe import Markup, escape

from moce.study.bars import signed
from moce.study.charts import colour, ticks
from moce.study.intervals import Interval

FOREST_WIDE, FOREST_STEP = 300, 13  # pixels of a row of differences, and of each method in it


def forest_axis(reach: float) -> Markup:
    """The scale above rows of differences from -reach to reach, in points."""
    marks = ticks(-100 * reach, 100 * reach, about=6)
    parts = [
        f'<text x="{_across(value / 100, reach):.1f}" y="12" text-anchor="middle">{signed(value)}</text>'
        for value in marks
    ]
    return Markup(
        f'<svg class="forest" width="{FOREST_WIDE}" height="16" aria-hidden="true">{"".join(parts)}</svg>'
    )


def forest_row(differences: Sequence[tuple[int, float, Interval, bool]], reach: float, said: str) -> Markup:
    """Differences (colour, value, interval, whether it is filled) as dots with whiskers around 0."""
    high = FOREST_STEP * max(len(differences), 1) + 4
    middle = _across(0, reach)
    parts = [f'<line class="axis" x1="{middle}" x2="{middle}" y1="0" y2="{high}"/>']
    for row, (number, value, (low, top), full) in enumerate(differences):
        y, paint = 2 + FOREST_STEP * (row + 0.5), colour(number)
        filled = paint if full else "var(--card)"
        parts.append(
            f'<line x1="{_across(low, reach):.1f}" x2="{_across(top, reach):.1f}" y1="{y}" y2="{y}" '
            f'style="stroke:{paint};stroke-width:1.6"/>'
            f'<circle cx="{_across(value, reach):.1f}" cy="{y}" r="3.6" '
            f'style="stroke:{paint};stroke-width:1.6;fill:{filled}"/>'
        )
    size = f'width="{FOREST_WIDE}" height="{high}"'
    return Markup(f'<svg class="forest" {size} role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>')


def _across(value: float, reach: float) -> float:
    room = FOREST_WIDE / 2 - 14
    return round(FOREST_WIDE / 2 + min(max(value / reach, -1), 1) * room, 1)


def vote_chart(votes: Sequence[float], chosen: int | None) -> Markup:
    """Shares of the votes by cluster, most first; the chosen cluster is dark, the line is the even share."""
    order = sorted(range(len(votes)), key=lambda k: -votes[k])
    top = max(votes[order[0]], 1e-9)
    wide, high, base = 420, 96, 78
    step = wide / len(votes)
    parts = []
    for place, k in enumerate(order):
        if votes[k] > 0:
            tall = max(70 * votes[k] / top, 0.8)
            kind = "bar chosen" if k == chosen else "bar"
            said = f"cluster {k}: {100 * votes[k]:.1f} %"
            place_and_size = (
                f'x="{step * place:.2f}" y="{base - tall:.1f}" width="{max(step * 0.82, 0.8):.2f}"'
            )
            parts.append(
                f'<rect class="{kind}" {place_and_size} height="{tall:.1f}"><title>{said}</title></rect>'
            )
    even = base - 70 / len(votes) / top
    parts.append(f'<line class="axis" x1="0" x2="{wide}" y1="{base}" y2="{base}"/>')
    parts.append(f'<polyline class="mark" points="0,{even:.1f} {wide},{even:.1f}"/>')
    parts.append(
        f'<text x="0" y="{high - 4}">{len(votes)} clusters, most votes first; dotted: all alike</text>'
    )
    frame = f'viewBox="0 0 {wide} {high}" role="img" aria-label="votes by cluster"'
    return Markup(f'<svg class="chart votes" {frame}>{"".join(parts)}</svg>')


def gauge(
    value: float,
    scale: tuple[float, float],
    bad: tuple[float, float],
    band: tuple[float, float] | None = None,
    said: str = "",
) -> Markup:
    """A value on a line: `bad` is where it gives a warning, `band` where it usually lies."""
    wide, high, middle = 420, 46, 16

    def at(x: float) -> float:
        inside = min(max(x, scale[0]), scale[1])
        return 8 + (inside - scale[0]) / max(scale[1] - scale[0], 1e-12) * (wide - 16)

    def box(ends: tuple[float, float], kind: str, half: int) -> str:
        left, right = at(ends[0]), at(ends[1])
        return (
            f'<rect class="{kind}" x="{left:.1f}" width="{max(right - left, 0):.1f}" y="{middle - half}" '
            f'height="{2 * half}" rx="2"/>'
        )

    parts = [box(scale, "track", 3), box(bad, "bad", 3)]
    parts += [box(band, "band", 6)] if band else []
    parts.append(f'<circle class="marker" cx="{at(value):.1f}" cy="{middle}" r="6.5"/>')
    edges = sorted({scale[0], scale[1], bad[0], bad[1]})
    places = [(x, at(x)) for x in edges]
    for x, place in places:
        anchor = "start" if place < 30 else "end" if place > wide - 30 else "middle"
        if all(abs(place - other) > 26 for _, other in places if other < place):
            parts.append(f'<text x="{place:.1f}" y="{high - 6}" text-anchor="{anchor}">{x:.3g}</text>')
    return Markup(
        f'<svg class="chart gauge" viewBox="0 0 {wide} {high}" role="img" '
        f'aria-label="{escape(said)}">{"".join(parts)}</svg>'
    )


def share_bar(
    shares: Sequence[float], paints: Sequence[str], marked: int | None = None, said: str = ""
) -> Markup:
    """Shares of a whole side by side, in the given colours; the marked one stands out."""
    wide, high, x, parts = 420, 20, 0.0, []
    whole = max(sum(shares), 1e-12)
    for number, (share, paint) in enumerate(zip(shares, paints, strict=True)):
        if share > 0:
            width = wide * share / whole
            y, tall = (0, high) if marked in (None, number) else (5, high - 10)
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.2f}" height="{tall}" style="fill:{paint}">'
                f"<title>{number}: {100 * share / whole:.0f} %</title></rect>"
            )
            x += width
    return Markup(
        f'<svg class="chart shares" viewBox="0 0 {wide} {high}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(said)}">{"".join(parts)}</svg>'
    )
