"""Completions on the page: what was rewarded, some side by side, and a table of all of them.

The texts are data: html_report.js inserts them as text.

Tests: tests/reports/test_html_report.py.
"""

import html
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from deepseek_jax.errors import shortened
from deepseek_jax.training.completions import fair_limit, spoken_lines

# Fields that have a filter, if the samples differ in them
CHOICES = ("stage", "kind", "task", "language", "phase", "step")
# Limits: completions of a prompt, characters of a text, bytes of all samples and of all pairs
COMPLETIONS, CHARACTERS, SAMPLES_BYTES, PAIRS_BYTES = 64, 8000, 4 << 20, 1 << 20
# Most lines of a conversation; together they have at most CHARACTERS
LINES = 200

# The filter by reward
BOUNDS = (
    '<span><label>reward from <input type="number" name="low" step="any"></label> '
    '<label>to <input type="number" name="high" step="any"></label></span>'
)

NO_SCRIPT = "<noscript><p>Showing completions needs JavaScript.</p></noscript>"


def pairs_data(pairs: Sequence[dict]):
    """Write the first prompts with completions side by side as JSON, in at most PAIRS_BYTES."""
    shown_pairs, size = [], 0
    for pair in pairs:
        shown_pair = _plain(pair) | {"sides": _cards(pair["sides"])}
        size += len(_json(shown_pair))
        if size > PAIRS_BYTES:
            break
        shown_pairs.append(shown_pair)
    return _json(shown_pairs)


def shown_samples(samples: Sequence[dict]):
    """Choose the samples that fit in SAMPLES_BYTES, in order.

    First come the groups with a `place`, for the part about what was rewarded, then the first
    prompts of every sort. Samples of one sort agree in all CHOICES.
    """
    groups = [
        _plain(group) | {"completions": _cards(group["completions"][:COMPLETIONS])}
        for group in samples
    ]
    counts: Counter[tuple] = Counter()
    ranks = []
    for group in groups:
        key = tuple(group.get(name) for name in CHOICES)
        ranks.append(-1 if "place" in group else counts[key])
        counts[key] += 1
    indices, size = set(), 0
    for i in sorted(range(len(groups)), key=ranks.__getitem__):
        size += len(_json(groups[i]))
        if size > SAMPLES_BYTES:
            break
        indices.add(i)
    return [group for i, group in enumerate(groups) if i in indices]


def samples_data(groups: list[dict]):
    """Write the samples as JSON for the page."""
    return _json(groups)


def rewarded_part(groups: list[dict]):
    """Write the place where html_report.js puts the groups with a `place`."""
    if not any("place" in group for group in groups):
        return ""
    return (
        "<p>Groups of completions to one prompt, the best rewarded first. The advantage compares a "
        "completion with its group: training makes completions above 0 more likely, and those below "
        "less. Groups that differ in their rewards come first.</p>"
        f'<div id="rewards"></div>{NO_SCRIPT}'
    )


def completions_part(pairs: Sequence[dict], note: str):
    """Write the place where html_report.js puts the completions that stand side by side."""
    if not pairs:
        return ""
    return (
        f'<p>{html.escape(note)}</p><div id="pairs"></div>'
        f'<button type="button" id="more-pairs" hidden>Show more</button>{NO_SCRIPT}'
    )


def samples_part(groups: list[dict], number: int, note: str):
    """Write the filters, and the table that html_report.js fills.

    Args:
        number: Count of all samples, on the page or not.
        note: A sentence about the choice of the samples.
    """
    if not groups:
        return ""
    selects = []
    for key in CHOICES:
        values = dict.fromkeys(group[key] for group in groups if group.get(key) not in (None, ""))
        if len(values) > 1:
            selects.append(_select(key, map(str, values)))
    completions = [completion for group in groups for completion in group["completions"]]
    if any(completion.get("right") is not None for completion in completions):
        selects.append(_select("answer", ("right", "wrong")))
    if any(completion.get("unread") for completion in completions):
        selects.append(_select("read", ("unread",)))
    return (
        f"<p>{_said(groups, completions, number, note)}</p>"
        f'<form id="filters">{"".join(selects)}'
        '<label>text <input type="search" name="text"></label>'
        f"{BOUNDS if _are_paid(completions) else ''}"
        '<button type="reset">Reset</button></form>'
        '<p><span id="count" role="status"></span> '
        '<button type="button" id="copy">copy as jsonl</button></p>'
        '<div class="wide"><table id="completions-table"><thead></thead><tbody></tbody></table></div>'
        f'<button type="button" id="more" hidden>Show more</button>{NO_SCRIPT}'
    )


def _are_paid(completions):
    return any(completion.get("total") is not None for completion in completions)


def _said(groups, completions, number, note):
    sentences = html.escape(note)
    sentences += " Click a column's name to sort by it, and a completion to open it."
    if len(groups) < number:
        sentences += f" {len(groups)} of {number} prompts are here, because the page is limited."
    if any(completion.get("unread") for completion in completions):
        sentences += " Unread: it states something that no rule reads as a number, and scores 0."
    if any(completion.get("languages") for completion in completions):
        sentences += " A bar shows the languages of the words in its reasoning."
    return sentences.strip()


def _select(name, values):
    options = "".join(
        f'<option value="{html.escape(value)}">{html.escape(value)}</option>' for value in values
    )
    return f'<label>{name} <select name="{name}"><option value="">any</option>{options}</select></label>'


def _cards(completions):
    """Return completions as the page can hold them: conversations have lines, not messages."""
    return [
        _plain({name: value for name, value in completion.items() if name != "messages"})
        | ({"lines": _lines(completion["messages"])} if "messages" in completion else {})
        for completion in completions
    ]


def _lines(messages):
    lines = spoken_lines(messages)
    if len(lines) > LINES:
        gap = ("", f"{len(lines) - LINES} lines left out")
        lines = [*lines[: LINES // 2], gap, *lines[-LINES // 2 :]]
    max_characters = fair_limit([len(text) for _, text in lines], CHARACTERS)
    return [(who, shortened(text, max_characters)) for who, text in lines]


def _plain(value):
    """Return a value as the page can hold it: long texts cut in the middle, not finite as None."""
    if isinstance(value, str):
        return shortened(value, CHARACTERS)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _json(value):
    # Without "<" no string can end its own script element
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
