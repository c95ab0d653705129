"""Bars in groups around 0 with whiskers, for the page and as a file of its own: what each half is worth on each task.

The file has the page's light colours written out, since nothing around it would say what they are.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from moce.engine.files import write_whole
from moce.study.charts import colour, ticks
from moce.study.intervals import Interval

Bar = tuple[float, Interval | None]  # a difference of shares, and its interval

BAR, GAP, LEFT, TOP, HIGH = 13, 16, 46, 14, 230  # pixels: a bar, between groups, around them, of the plot
NAMES = 92  # below the plot, for names that are written aslant
LIGHT = {
    "var(--c0)": "#3b76b8", "var(--c1)": "#dd7d2d", "var(--c2)": "#3d9a63", "var(--soft)": "#5c646e",
    "var(--rule)": "#e4e1da", "var(--ink)": "#1f2328",
}  # fmt: skip


def bar_chart(
    names: Sequence[str], bars: Sequence[Sequence[Bar]], legend: Sequence[str], said: str
) -> Markup:
    """Groups of bars in points, one group for each name; `bars[group][i]` is of `legend[i]`."""
    ends = [end for group in bars for value, interval in group for end in (value, *(interval or ()))]
    low, high = 100 * min([0.0, *ends]), 100 * max([0.0, *ends])
    room = max(high - low, 1.0)
    low, high = low - 0.04 * room, high + 0.04 * room
    each = len(legend) * BAR + GAP
    wide, tall = LEFT + each * len(names) + GAP, TOP + HIGH + NAMES

    def y(points: float) -> float:
        return round(TOP + (high - points) / (high - low) * HIGH, 1)

    parts = []
    for mark in ticks(low, high):
        kind = "axis" if mark == 0 else "grid"
        paint = "var(--soft)" if mark == 0 else "var(--rule)"
        parts.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{wide}" y1="{y(mark)}" y2="{y(mark)}" style="stroke:{paint}"/>'
            f'<text x="{LEFT - 6}" y="{y(mark) + 4}" text-anchor="end">{signed(mark)}</text>'
        )
    for number, (name, group) in enumerate(zip(names, bars, strict=True)):
        start = LEFT + GAP + each * number
        for place, (value, interval) in enumerate(group):
            x, top = start + BAR * place, min(y(100 * value), y(0))
            size = f'width="{BAR - 2}" height="{max(abs(y(100 * value) - y(0)), 0.6):.1f}"'
            title = f"<title>{escape(name)}, {escape(legend[place])}: {signed(round(100 * value, 2))} points</title>"
            parts.append(f'<rect x="{x}" y="{top}" {size} style="fill:{colour(place)}">{title}</rect>')
            if interval is not None:
                middle, (below, above) = x + (BAR - 2) / 2, (y(100 * end) for end in interval)
                parts.append(
                    f'<line x1="{middle}" x2="{middle}" y1="{above}" y2="{below}" '
                    f'style="stroke:var(--ink);stroke-width:1.2"/>'
                )
        middle, bottom = start + len(legend) * BAR / 2, TOP + HIGH + 14
        turned = f'transform="rotate(-40 {middle} {bottom})" text-anchor="end"'
        parts.append(f'<text x="{middle}" y="{bottom}" {turned}>{escape(name)}</text>')
    for place, name in enumerate(legend):
        x = LEFT + 6 + 190 * place
        parts.append(f'<rect x="{x}" y="{tall - 12}" width="10" height="10" style="fill:{colour(place)}"/>')
        parts.append(f'<text x="{x + 15}" y="{tall - 3}">{escape(name)}</text>')
    frame = (
        f'viewBox="0 0 {max(wide, LEFT + 190 * len(legend))} {tall}" role="img" aria-label="{escape(said)}"'
    )
    return Markup(f'<svg class="bars-by-task" {frame}>{"".join(parts)}</svg>')


def signed(points: float) -> str:
    """'+2.5'."""
    return f"{points:+g}".replace("-", "−") if points else "0"


def write_svg(path: Path, chart: str) -> None:
    """A chart as a file that any program shows."""
    chart = str(chart)  # as Markup it would escape what is added
    for name, written in LIGHT.items():
        chart = chart.replace(name, written)
    style = (
        "<style>text{font:12px sans-serif;fill:#5c646e}</style><rect width='100%' height='100%' fill='#fff'/>"
    )
    start = chart.index(">") + 1
    text = (
        chart[:start].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + style + chart[start:]
    )
    with write_whole(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
