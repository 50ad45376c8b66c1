"""The results of a run on its page: the headline, every score, and the findings.

Tests: tests/reports/test_html_report.py.
"""

import html
import math

from deepseek_jax.reports.html_table import html_table
from deepseek_jax.reports.page import Page

# Number of scores in the headline, for all compared rows together
HEADLINE_SCORES = 4
# The beginning of a score's name for greedy answers
GREEDY = "greedy_"


def results_part(page: Page):
    """Write the headline, before and after in large, then all scores and the findings."""
    if not any(page.scores.values()):
        return "<p>Nothing is measured yet.</p>"
    scores = _Scores(page)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in page.notes)
    findings = "" if page.findings is None else f"<h3>Findings</h3>{_findings(*page.findings)}"
    return f"{scores.headline()}{notes}{scores.table()}{findings}"


class _Scores:
    """The scores of a page, and the ends of the line on which each is drawn."""

    def __init__(self, page: Page):
        self.page = page
        self.names = list(
            dict.fromkeys(name for row_scores in page.scores.values() for name in row_scores)
        )
        self.forms = {name: page.form_of(name) for name in self.names}
        self.lines = {name: self._line(name) for name in self.names}

    def _line(self, name):
        """Return the ends of a score's line: it has 0, all numbers and, for a percentage, 1."""
        numbers = [
            number
            for row_scores in self.page.scores.values()
            for number in row_scores.get(name, ())
        ]
        finite_numbers = [
            number for number in numbers if number is not None and math.isfinite(number)
        ]
        top = 1.0 if "%" in self.forms[name] else 0.0
        return min([0.0, *finite_numbers]), max([top, *finite_numbers])

    def _shown_first(self):
        """List (before, after, score) of each card; a greedy score is in the card of the sampled."""
        scores_per_pair = max(1, HEADLINE_SCORES // max(1, len(self.page.compared)))
        return [
            (before, after, name)
            for before, after in self.page.compared
            for name in self._carded(after)[:scores_per_pair]
        ]

    def _carded(self, row):
        names = self.page.scores.get(row, {})
        return [
            name
            for name in names
            if not (name.startswith(GREEDY) and name.removeprefix(GREEDY) in names)
        ]

    def headline(self):
        """Write the first scores of the compared rows as cards."""
        cards = [self._card(*card) for card in self._shown_first()]
        return f'<div class="cards">{"".join(cards)}</div>'

    def _card(self, before, after, name):
        scores, form, greedy = self.page.scores, self.forms[name], GREEDY + name
        old, new = scores.get(before, {}).get(name), scores[after][name]
        ways = [("sampled", name), ("greedy", greedy)] if greedy in scores[after] else [("", name)]
        changes = "".join(self._change(before, after, way, score) for way, score in ways)
        sides = [(before, old, "old")] * (old is not None) + [(after, new, "")]
        rows = "".join(
            f'<span class="side">{html.escape(title)} <small>{_interval(interval, form)}</small></span>'
            f"{_whisker(interval, self.lines[name], kind)}"
            for title, interval, kind in sides
        )
        return (
            f'<div class="score"><h3>{html.escape(self.page.title_of(name))}</h3>'
            f"{changes}{rows}</div>"
        )

    def _change(self, before, after, way, name):
        """Write a score before and after in large; a greedy one, which comes second, is smaller."""
        form, old = self.forms[name], self.page.scores.get(before, {}).get(name)
        old_text = "" if old is None else f'<span class="old">{old[0]:{form}}</span> → '
        new_text = f"<b>{self.page.scores[after][name][0]:{form}}</b>"
        way_text = f" <small>{way}</small>" if way else ""
        return f'<p class="change {way}">{old_text}{new_text}{way_text}</p>'

    def table(self):
        """Write a table of every score of every row, or nothing if the headline shows them all.

        With at most two rows and more than two scores, the rows become columns and the table is
        folded.
        """
        scores, names = self.page.scores, self.names
        cards = {(row, name) for *rows, name in self._shown_first() for row in rows}
        if all((row, name) in cards for row, row_scores in scores.items() for name in row_scores):
            return ""
        titles = {name: html.escape(self.page.title_of(name)) for name in names}
        is_transposed = len(scores) <= 2 < len(names)
        if is_transposed:
            heads = "score", *map(html.escape, scores)
            rows = [
                [titles[name], *(self._cell(row_scores, name) for row_scores in scores.values())]
                for name in names
            ]
        else:
            heads = "", *titles.values()
            rows = [
                [html.escape(row), *(self._cell(row_scores, name) for name in names)]
                for row, row_scores in scores.items()
            ]
        note = "<p>Under each mean its 95% interval.</p>"
        body = note + html_table(heads, rows, "numbers")
        # The headline already shows the first scores
        return (
            f"<details><summary>all {len(names)} scores</summary>{body}</details>"
            if is_transposed
            else body
        )

    def _cell(self, row_scores, name):
        """Write a mean with its interval, as numbers and as a dot on the score's line."""
        if name not in row_scores:
            return ""
        interval, form = row_scores[name], self.forms[name]
        text = f"{interval[0]:{form}}<small>{_interval(interval, form)}</small>"
        return f"{text}{_whisker(interval, self.lines[name])}"


def _interval(interval, form):
    _, low, high = interval
    return "" if low is None else f"{low:{form}} to {high:{form}}"


def _whisker(interval, line, kind=""):
    """Draw a mean and its interval on a line; nothing if a number is not finite."""
    mean = interval[0]
    low, high = (mean if value is None else value for value in interval[1:])
    if not all(map(math.isfinite, (mean, low, high))):
        return ""
    begin, width = line[0], (line[1] - line[0]) or 1
    positions = (f"{100 * (value - begin) / width:.1f}" for value in (mean, low, high))
    mean_x, low_x, high_x = positions
    return (
        f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" class="whisker {kind}">'
        f'<path class="grid" d="M0 4H100"/><path class="interval" d="M{low_x} 4H{high_x}"/>'
        f'<path class="mean" d="M{mean_x} 0V8"/></svg>'
    )


def _findings(heads, rows):
    """Write a table of texts, where the second line of a cell has a smaller font."""
    cells = [
        [
            f"{first_line}<small>{second_line}</small>" if second_line else first_line
            for first_line, _, second_line in (html.escape(text).partition("\n") for text in row)
        ]
        for row in rows
    ]
    return html_table(map(html.escape, heads), cells, "numbers")
