"""A drawn curve has the logged values."""

import xml.etree.ElementTree as xml

import pytest

from deepseek_jax.reports.svg_curves import MAX_POINTS, curve_panel


def points_of(panel):
    """(x, y) of a curve's line, by an XML parser, and its ticks as (label, y)."""
    svg = xml.fromstring(panel).find("svg")
    lines = [e.get("d") for e in svg.iter("path") if e.get("class") == "line"]
    ticks = [(float(e.text), float(e.get("y")) - 3) for e in svg.iter("text") if e.get("x") == "36"]
    return [[tuple(map(float, p.split())) for p in line[1:].split("L")] for line in lines], ticks


def test_a_curve_is_drawn_where_its_ticks_say():
    """Oracle: heights, read off by the line through the first and last tick, are the values given."""
    values = [0.0, 3.0, -1.5, 0.25]
    (line,), ticks = points_of(curve_panel("loss", list(enumerate(values))))
    (low, low_y), (high, high_y) = ticks[0], ticks[-1]
    read = [low + (y - low_y) / (high_y - low_y) * (high - low) for _, y in line]
    assert read == pytest.approx(values, abs=0.005 * (high - low))  # coordinates have one decimal
    steps = [x - line[0][0] for x, _ in line]
    assert steps == pytest.approx([steps[1] * i for i in range(4)], abs=0.2)


def test_a_missing_value_parts_the_curve_and_a_point_alone_is_a_dot():
    """Oracle: by hand."""
    panel = curve_panel(
        "kl", [(0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, None), (5, 1.0), (6, 3.0)]
    )
    assert [len(line) for line in points_of(panel)[0]] == [2, 2] and panel.count("<circle") == 1


def test_a_long_curve_is_averaged_and_says_so():
    """Oracle: numpy's means of three; the last step stays the last."""
    values = [float(i % 3) for i in range(3 * MAX_POINTS)]
    panel = curve_panel("loss", list(enumerate(values)))
    assert len(points_of(panel)[0][0]) == MAX_POINTS and f"{3 * MAX_POINTS - 1}:1" in panel
    assert "within 1 and 1" in panel and "the mean of 3 logged steps" in panel


def test_an_axis_is_named_and_so_is_the_unit():
    """Oracle: by hand: the steps' axis, and the unit in the heading and in what a screen reader says; a
    single step has its number below its point, on the left.
    """
    panel = curve_panel("entropy", [(0, 1.0), (9, 2.0)], "nats")
    texts = [e.text for e in xml.fromstring(panel).find("svg").iter("text")]
    assert texts[-3:] == ["0", "step", "9"]
    single = list(xml.fromstring(curve_panel("kl", [(7, 1.0)])).find("svg").iter("text"))
    (circle,) = xml.fromstring(curve_panel("kl", [(7, 1.0)])).find("svg").iter("circle")
    assert [e.text for e in single[-2:]] == ["7", "step"]
    assert float(single[-2].get("x")) == float(circle.get("cx"))
    assert "<b>entropy</b> <small>nats</small>" in panel
    assert 'aria-label="entropy in nats, steps 0 to 9: 1 to 2' in panel
    assert 'aria-label="entropy, steps' in curve_panel("entropy", [(0, 1.0)])
