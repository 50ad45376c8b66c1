"""A run of several stages as one HTML page, which needs no server, no network and no other file.

It has the stages' lineage, scores, curves and samples. A model's text is data in the page, never markup:
html_report.js inserts it as text, and the page's Content-Security-Policy lets no other script run.
"""

import html
import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from deepseek_jax.reports.svg_curves import curve_panel
from deepseek_jax.reports.svg_lineage import lineage_graph
from deepseek_jax.training.metrics import HEADLINE

SCRIPT, STYLE = (Path(__file__).with_suffix(suffix).read_text() for suffix in (".js", ".css"))
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{title}</h1><nav aria-label="parts of this page">{links}</nav></header>
<main>
{parts}
</main>
<script type="application/json" id="samples-data">{samples}</script>
<script>{script}</script>
</body>
</html>
"""


def report_page(
    title: str,
    stages: list[dict],
    scores: dict,
    forms: dict,
    names: dict,
    curves: dict,
    samples: list[dict],
    findings: dict | None = None,
) -> str:
    """The page's HTML.

    stages: dicts of name, title, hash (or None), state (a word or two: "complete", "not begun"), and inputs,
    a dict from the name of an input to its hash and the name of the stage that made it, or None.
    scores, forms, names: as in tables.stages_table. curves: heading -> records of training.metrics.
    samples: dicts of stage, kind, language, prompt, answer and completions, this prompt's group: dicts of
    text, total (the reward), parts (name -> reward), advantage, right (bool), languages (language -> share
    of the thought's words) and length in tokens. findings: (heads, rows) of a table of texts, or None.
    Raises ValueError for a number that is not finite.
    """
    parts = {"Lineage": _lineage(stages), "Scores": _scores(scores, forms, names)}
    parts |= {} if findings is None else {"Findings": _findings(*findings)}
    parts |= {"Curves": _curves(curves), "Samples": _samples(samples)}
    # Without "<" no string can end the script element that it is in
    data = json.dumps(samples, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return PAGE.format(
        title=html.escape(title),
        # The policy names this script by its hash, so a script inside a model's text cannot run
        digest=b64encode(sha256(SCRIPT.encode()).digest()).decode(),
        style=STYLE,
        links="".join(f'<a href="#{part.lower()}">{part}</a>' for part in parts),
        parts="\n".join(
            f'<section id="{part.lower()}"><h2>{part}</h2>\n{body}\n</section>'
            for part, body in parts.items()
        ),
        samples=data,
        script=SCRIPT,
    )


def _lineage(stages):
    titles = {stage["name"]: stage["title"] for stage in stages}
    rows = [
        [
            f"{html.escape(stage['title'])} <small>{html.escape(stage['name'])}</small>",
            f'<span class="state {stage["state"].replace(" ", "-")}">{stage["state"]}</span>',
            f"<code>{stage['hash'] or ''}</code>",
            ", ".join(html.escape(titles[p]) for _, p in stage["inputs"].values() if p is not None),
            " ".join(
                f'<span class="input">{html.escape(name)} <code>{digest}</code></span>'
                for name, (digest, _) in stage["inputs"].items()
            ),
        ]
        for stage in stages
    ]
    return (
        f'<div class="wide">{lineage_graph(stages)}</div>'
        "<p>A stage's hash is computed from the hashes of its inputs. It is an input of the stages that "
        "are made from it.</p>"
        + _table(("stage", "state", "hash", "made from", "hashes of its inputs"), rows)
    )


def _scores(scores, forms, names):
    known = [s for s in forms if any(s in of_stage for of_stage in scores.values())]
    if not known:
        return "<p>No stage is measured yet.</p>"
    tops = {
        s: 1.0 if "%" in forms[s] else max(v[s][2] for v in scores.values() if s in v)
        for s in known
    }
    rows = [
        [html.escape(title), *(_cell(of_stage.get(s), forms[s], tops[s]) for s in known)]
        for title, of_stage in scores.items()
    ]
    return "<p>On held-out prompts. Under each mean its 95% interval.</p>" + _table(
        ("stage", *(html.escape(names[score]) for score in known)), rows, "numbers"
    )


def _findings(heads, rows):
    """A table of texts; the second line of a cell has a smaller font."""
    cells = [
        [
            f"{first}<small>{rest}</small>" if rest else first
            for first, _, rest in (html.escape(text).partition("\n") for text in row)
        ]
        for row in rows
    ]
    return _table(map(html.escape, heads), cells, "numbers")


def _cell(interval, form, top):
    """A mean with its interval, in numbers and as a dot on a line from 0 to top."""
    if interval is None:
        return ""
    mean, low, high = (format(value, form) for value in interval)
    middle, left, right = (f"{100 * max(value, 0) / (top or 1):.1f}" for value in interval)
    return (
        f"{mean}<small>{low} to {high}</small>"
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" class="whisker">'
        f'<path class="grid" d="M0 4H100"/><path class="interval" d="M{left} 4H{right}"/>'
        f'<path class="mean" d="M{middle} 0V8"/></svg>'
    )


def _table(heads, rows, kind=""):
    """A table of HTML cells; the first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"\n<tbody>{body}</tbody></table></div>"
    )


def _curves(curves):
    return "\n".join(_phase(title, records) for title, records in curves.items()) or (
        "<p>No stage has logged a step yet.</p>"
    )


def _phase(title, records):
    """Curves of one phase: HEADLINE metrics and rewards first, all others in a closed <details>."""
    logged = dict.fromkeys(name for record in records for name in record)
    points = {
        n: [(r["step"], r[n]) for r in records if n in r]
        for n in logged
        if n not in ("step", "phase")
    }
    points = {name: p for name, p in points.items() if any(value is not None for _, value in p)}
    first = [name for name in HEADLINE if name in points]
    first += [name for name in points if name.startswith("reward_") and name not in first]
    rest = [name for name in points if name not in first]
    open_, closed = ("".join(curve_panel(n, points[n]) for n in part) for part in (first, rest))
    more = (
        f'<details><summary>{len(rest)} more</summary><div class="panels">{closed}</div></details>'
    )
    return f'<h3>{html.escape(title)}</h3><div class="panels">{open_}</div>{more if rest else ""}'


def _samples(samples):
    if not samples:
        return "<p>No stage is measured yet.</p>"
    choices = {
        key: dict.fromkeys(group[key] for group in samples) for key in ("stage", "kind", "language")
    }
    selects = [_select(key, ("any", *values)) for key, values in choices.items()]
    selects.append(_select("answer", ("any", "right", "wrong")))
    return (
        "<p>All completions of some held-out prompts, the best rewarded first, equal ones once. The rewards "
        "here are the same for every stage. An advantage compares a completion with the others of its "
        "prompt; a bar shows the languages of the words in its reasoning.</p>"
        f'<form id="filters">{"".join(selects)}'
        '<label>text <input type="search" name="text"></label>'
        '<span><label>reward from <input type="number" name="low" step="any"></label> '
        '<label>to <input type="number" name="high" step="any"></label></span>'
        '<button type="reset">Reset</button></form>'
        '<p id="count" role="status"></p><div id="groups"></div>'
        '<button type="button" id="more" hidden>Show more</button>'
        "<noscript><p>Browsing the samples needs JavaScript.</p></noscript>"
    )


def _select(name, values):
    options = "".join(
        f'<option value="{"" if value == "any" else html.escape(value)}">{html.escape(value)}</option>'
        for value in values
    )
    return f'<label>{name} <select name="{name}">{options}</select></label>'
