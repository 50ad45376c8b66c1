"""The curves of a page: what a reader asks for first, then the others in the boards' groups.

A curve that says nothing is folded apart: a constant, and what cannot be told from noise.
"""

import fnmatch
import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

from deepseek_jax.reports.page import Page
from deepseek_jax.reports.svg_curves import curve_panel
from deepseek_jax.training.boards import OTHER, group_of
from deepseek_jax.training.metric_names import GROUPS, column_of

# Most curves of a page; each has at most 7 kB
PANELS = 300
# Patterns of metrics that are not folded, in order; the part of a name before the first slash counts
FIRST = (
    "reward reward_* accuracy held_out_accuracy margin safe_probability completion_length "
    "completion_length_effort_* loss held_out_* kl entropy grad_norm all_equal_share turns tool_calls"
).split()
# Metrics of reinforcement with names like rewards
ABOUT_REWARDS = ("reward_group_std", "reward_errors", "reward_seconds")
# Metric -> its title; other titles are the names, with spaces
TITLES = {"all_equal_share": "groups without a signal"}
# Units of metric_names that say nothing on a page
UNSAID = ("number", "ratio", "reward", "yours")
# Numbers below this are rounding, such as a GRPO loss whose advantages add up to 0
ROUNDING = 1e-6
# Fewest values among which noise is looked for
FEWEST = 8


class Curves:
    """The curves of a page; it draws at most PANELS of them."""

    def __init__(self, page: Page):
        self.page, self.left = page, PANELS

    def part(self):
        """Write the curves of each phase, and folded the curves of the phases before."""
        phase_curves, base_curves = (
            "\n".join(self._phase(title, records) for title, records in curves.items())
            for curves in (self.page.curves, self.page.base_curves)
        )
        if not phase_curves + base_curves:
            # An evaluation trains nothing
            return "" if self.page.scores else "<p>No stage has logged a step yet.</p>"
        fold = f"<details><summary>before that: {html.escape(', '.join(self.page.base_curves))}</summary>"
        return phase_curves + (f"{fold}{base_curves}</details>" if base_curves else "")

    def _phase(self, title: str, records: list[Mapping]):
        """Write a phase's curves: the first ones open, then the others by group, then flat ones."""
        metric_names = dict.fromkeys(name for record in records for name in record)
        points = {
            name: [(record["step"], record[name]) for record in records if name in record]
            for name in metric_names
            if name not in ("step", "phase")
        }
        points = {n: p for n, p in points.items() if any(value is not None for _, value in p)}
        first_names = sorted((n for n in points if _rank(n) is not None), key=_rank)
        flat_names = [
            name for name in points if _says_nothing(_values(points[name]), name in first_names)
        ]
        first_names = [name for name in first_names if name not in flat_names]
        groups: dict[str, list[str]] = {group: [] for group in (*GROUPS, OTHER)}
        for name in points:
            if name not in (*first_names, *flat_names):
                groups[group_of(name)].append(name)
        groups = {group: names for group, names in groups.items() if names}
        first_panels = self._panels(first_names, points)
        group_panels = "".join(
            f"<h4>{group}</h4>{self._panels(names, points)}" for group, names in groups.items()
        )
        num_others = sum(map(len, groups.values()))
        body = first_panels + _folded(f"{num_others} more: {', '.join(groups)}", group_panels)
        if flat_names:
            titles = ", ".join(html.escape(_title(name)) for name in flat_names)
            flat_panels = self._panels(flat_names, points)
            body += _folded(f"{len(flat_names)} constant or noise: {titles}", flat_panels)
        return f"<h3>{html.escape(title)}</h3>{body}"

    def _panels(self, names, points):
        drawn_names = names[: self.left]
        self.left -= len(drawn_names)
        panels = "".join(
            curve_panel(_title(name), points[name], unit_of(name)) for name in drawn_names
        )
        num_left_out = len(names) - len(drawn_names)
        omission = f"<p>{num_left_out} more are in metrics.jsonl</p>" if num_left_out else ""
        return f'<div class="panels">{panels}</div>{omission}'


def unit_of(name: str) -> str:
    """Return the unit of a metric as the page has it; "" for a plain number or a user's own."""
    column = column_of(name)
    return "" if column is None or column[1].unit in UNSAID else column[1].unit


def _folded(summary, body):
    return f"<details><summary>{summary}</summary>{body}</details>" if body else ""


def _title(name):
    return TITLES.get(name, name.removesuffix("_gib").replace("_", " "))


def _rank(name):
    """Return the place of a metric in FIRST, or None."""
    first = name.partition("/")[0]
    if first in ABOUT_REWARDS:
        return None
    matches = (i for i, pattern in enumerate(FIRST) if fnmatch.fnmatchcase(first, pattern))
    return next(matches, None)


def _values(points):
    return [value for _, value in points if value is not None]


def _says_nothing(values: Sequence[float], is_first: bool):
    """Return True for a constant, for rounding, and, unless the metric is in FIRST, for noise."""
    low, high = min(values), max(values)
    if len(values) > 1 and high - low <= ROUNDING * max(abs(low), abs(high)):
        return True
    if max(abs(low), abs(high)) < ROUNDING:
        return True
    return not is_first and len(values) >= FEWEST and _is_noise(values)


def _is_noise(values):
    """Return True if neighbours differ as much as any two values: von Neumann's ratio, 5% level.

    For independent values the ratio of the mean squared step to the variance is 2, with a standard
    deviation of about 2 / sqrt(n). A curve that goes somewhere has a smaller one.
    """
    n = len(values)
    steps, spread = np.sum(np.diff(values) ** 2), n * np.var(values)
    return steps > spread * (2 - 1.645 * 2 / math.sqrt(n))
