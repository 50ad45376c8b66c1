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


def curve_panel(title: str, points, unit: str = ""):
    """Write a <figure> of one curve.

    None makes a gap. With more than MAX_POINTS, each point is a mean over consecutive logged steps,
    and the label gives their number. data-points, "step:value", lets html_report.js show the value
    at the pointer.

    Args:
        title: The name of the curve.
        points: (step, value or None) pairs, steps ascending, at least one value a number.
        unit: The unit of the values, or "".
    """
    curve_points, steps_per_point = _thinned(points)
    values = [value for _, value in curve_points if value is not None]
    ticks = _ticks(min(values), max(values))
    first, last = points[0][0], points[-1][0]
    # A single step has no width, and _x divides by it
    steps = first, max(last, first + 1)
    coordinates = [
        None if v is None else (_x(step, steps), _y(v, ticks)) for step, v in curve_points
    ]
    least, most, begin, end = (_short(v) for v in (min(values), max(values), values[0], values[-1]))
    description = f"steps {first} to {last}: {begin} to {end}, within {least} and {most}"
    description += (
        f"; a point is the mean of {steps_per_point} logged steps" if steps_per_point > 1 else ""
    )
    title, unit = html.escape(title), html.escape(unit)
    heading = f"<b>{title}</b> <small>{unit}</small>" if unit else f"<b>{title}</b>"
    label = f"{title} in {unit}, {description}" if unit else f"{title}, {description}"
    data = " ".join(f"{step}:{_short(value)}" for step, value in curve_points if value is not None)
    return (
        f'<figure class="curve"><figcaption><span>{heading}</span> <output>{end}</output></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
        f'data-points="{data}" data-first="{steps[0]}" data-last="{steps[1]}" data-left="{LEFT}" '
        f'data-right="{WIDTH - RIGHT}">'
        f"<title>{label}</title>{_grid(ticks, first, last)}{_line(coordinates)}</svg></figure>"
    )


def _thinned(points):
    """Return (at most MAX_POINTS points, number of original points averaged into each)."""
    steps_per_point = -(-len(points) // MAX_POINTS)
    if steps_per_point == 1:
        return points, 1
    chunks = [points[i : i + steps_per_point] for i in range(0, len(points), steps_per_point)]
    # A mean stands at the last of its steps, so that the curve ends at the last step
    return [
        (chunk[-1][0], _mean([value for _, value in chunk])) for chunk in chunks
    ], steps_per_point


def _mean(values):
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def _x(step, steps):
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - steps[0]) / (steps[1] - steps[0])


def _y(value, ticks):
    return TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - value) / (ticks[-1] - ticks[0])


def _ticks(low, high):
    """Return round numbers around low and high, which _short writes differently."""
    # Without more room the ticks of a nearly constant curve would all be written alike
    if high - low <= 1e-3 * abs(high):
        margin = 0.1 * abs(high) or 1.0
        low, high = low - margin, high + margin
    return MaxNLocator(nbins=3, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)


def _short(value):
    return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 else f"{value:.4g}"


def _grid(ticks, first, last):
    lines = "".join(
        f'<path class="grid" d="M{LEFT} {_y(tick, ticks):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 4}" y="{_y(tick, ticks) + 3:.1f}" text-anchor="end">{_short(tick)}</text>'
        for tick in ticks
    )
    begin = f'<text x="{LEFT}" y="{HEIGHT - 3}">{first}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    axis = f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">step</text>'
    end = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{last}</text>'
    # A single step is drawn on the left
    end = end if last > first else ""
    return f"{lines}{begin}{axis}{end}"


def _line(coordinates):
    """Draw the curve, with a gap where a value is missing; a single point is a dot."""
    shapes = []
    for is_gap, run in groupby(coordinates, key=lambda coordinate: coordinate is None):
        points = [] if is_gap else list(run)
        if len(points) == 1:
            shapes.append('<circle class="line" cx="{:.1f}" cy="{:.1f}" r="2"/>'.format(*points[0]))
        elif points:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            shapes.append(f'<path class="line" d="M{path}"/>')
    return "".join(shapes)
