"""Curves of a run as inline SVG, each with a label that states its numbers."""

import html
from itertools import groupby

import numpy as np
from matplotlib.ticker import MaxNLocator

# The size of a panel, in SVG units
WIDTH, HEIGHT = 260, 120
# Margins around the curve, for tick labels
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 16
# Most points of a curve; a longer curve is averaged over consecutive steps
MAX_POINTS = 200


def curve_panel(name: str, points):
    """Write a <figure> of one curve.

    None makes a gap. With more than MAX_POINTS, each point is a mean over consecutive logged steps,
    and the label gives their number. data-points, "step:value", lets html_report.js show the value
    at the pointer.

    Args:
        points: (step, value or None) pairs, steps ascending, at least one value a number.
    """
    drawn, merged = _thinned(points)
    values = [value for _, value in drawn if value is not None]
    ticks = _ticks(min(values), max(values))
    first, last = points[0][0], points[-1][0]
    # A single step has no width, and _x divides by it
    steps = first, max(last, first + 1)
    places = [None if v is None else (_x(step, steps), _y(v, ticks)) for step, v in drawn]
    least, most, begin, end = (_short(v) for v in (min(values), max(values), values[0], values[-1]))
    said = f"steps {first} to {last}: {begin} to {end}, within {least} and {most}"
    said += f"; a point is the mean of {merged} logged steps" if merged > 1 else ""
    title = html.escape(name.replace("_", " "))
    data = " ".join(f"{step}:{_short(value)}" for step, value in drawn if value is not None)
    return (
        f'<figure class="curve"><figcaption><b>{title}</b> <output>{end}</output></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}, {said}" data-points="{data}"'
        f' data-first="{steps[0]}" data-last="{steps[1]}" data-left="{LEFT}" data-right="{WIDTH - RIGHT}">'
        f"<title>{title}, {said}</title>{_grid(ticks, first, last)}{_line(places)}</svg></figure>"
    )


def _thinned(points):
    """Return (at most MAX_POINTS points, number of original points averaged into each)."""
    merged = -(-len(points) // MAX_POINTS)
    if merged == 1:
        return points, 1
    parts = [points[i : i + merged] for i in range(0, len(points), merged)]
    # A mean stands at the last of its steps, so that the curve ends at the last step
    return [(part[-1][0], _mean([value for _, value in part])) for part in parts], merged


def _mean(values):
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _x(step, steps):
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - steps[0]) / (steps[1] - steps[0])


def _y(value, ticks):
    return TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - value) / (ticks[-1] - ticks[0])


def _ticks(low, high):
    """Return round numbers around low and high, which _short writes differently."""
    # Without more room the ticks of a nearly constant curve would all be written alike
    if high - low <= 1e-3 * abs(high):
        room = 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
    return MaxNLocator(nbins=3, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)


def _short(value):
    return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 else f"{value:.4g}"


def _grid(ticks, first, last):
    lines = "".join(
        f'<path class="grid" d="M{LEFT} {_y(tick, ticks):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 4}" y="{_y(tick, ticks) + 3:.1f}" text-anchor="end">{_short(tick)}</text>'
        for tick in ticks
    )
    begin = f'<text x="{LEFT}" y="{HEIGHT - 3}">{first}</text>' if last > first else ""
    return (
        f'{lines}{begin}<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{last}</text>'
    )


def _line(places):
    """Draw the curve, with a gap where a value is missing; a single point is a dot."""
    shapes = []
    for missing, run in groupby(places, key=lambda place: place is None):
        run = [] if missing else list(run)
        if len(run) == 1:
            shapes.append('<circle class="line" cx="{:.1f}" cy="{:.1f}" r="2"/>'.format(*run[0]))
        elif run:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
            shapes.append(f'<path class="line" d="M{path}"/>')
    return "".join(shapes)
