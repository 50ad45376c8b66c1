"""Renders configs/results/*.json as Markdown.

A file is one experiment or benchmark: its command, its rows, the table's columns (name -> the format of its
numbers; "{}" stands for the row's own "form"), and caveats. With "sweep", a file of configs/sweeps, the rows
are of all runs of that sweep together, see finished_run.read; "logged" has more of their columns, name ->
[phase, metric, share]: the mean over that last share of the metric's lines. "changing" has columns of a
single run, name -> [phase, metric]: the metric in its first line and in its last one. With "on its side" the
table's rows are its columns. A row's "policies", column -> name, are written before its cells. With "readme"
it has a line in README.md: its place there, a title, what it shows, and a score's cells, [row, column] of
before and after or one that has both, with its unit; its page is configs/results/NAME.md. A row has the
results of one run: seed, version, minutes, cells by name, and "intervals", a sentence for above the table
where its intervals are not those that a run has today. A cell is a text, a number, [mean, low, high] with a
95% interval, {"before": ..., "after": ...}, {"low": ..., "high": ...} over several runs or {"by_run": [...]}.
"""

import math
import textwrap

from deepseek_jax.training.metric_names import GROUPS

# A fact is below the table if all rows share it, else it is a column
OF_A_RUN = {
    "machine": "{}",
    "seed": "seed {}",
    "minutes": "{} minutes",
    "version": "version {}",
}
WIDTH = 110


def cell_text(cell, form=""):
    """The text of a cell. form: Python's format of its numbers."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, list):
        mean, low, high = (format(number, form) for number in cell)
        return f"{mean} ({low} to {high})"
    if isinstance(cell, dict):
        parts = cell.get("by_run", list(cell.values()))
        joint = " " if "by_run" in cell else " → " if "after" in cell else " to "
        return joint.join(cell_text(part, form) for part in parts)
    return format(cell, form) if form else str(cell)


def table(result):
    """The table of a file's rows, without columns that no row fills; "on its side", rows become columns."""
    rows = result["rows"]
    columns = result["columns"] | dict.fromkeys(_differing(result), "")
    columns = {name: form for name, form in columns.items() if any(name in row for row in rows)}
    lines = [list(columns), *([_cell(row, *column) for column in columns.items()] for row in rows)]
    head, *body = zip(*lines, strict=True) if result.get("on its side") else lines
    return "\n".join([_line(head), "|" + "---|" * len(head), *map(_line, body)])


def _cell(row, name, form):
    """A row's cell in a column, after the policy that it is of, if the row names it."""
    form = form.replace("{}", row.get("form", ""))
    text = cell_text(_possible(row.get(name), name, form), form)
    return f"{row['policies'][name]} {text}" if name in row.get("policies", ()) else text


def _possible(cell, name, form):
    """A cell whose interval is cut to what can be: a t interval over seeds may leave a share's range."""
    if isinstance(cell, dict):
        return {part: _possible(value, name, form) for part, value in cell.items()}
    if not isinstance(cell, list) or form.startswith("+"):
        return cell
    least = 0 if form.endswith("%") or "length" in name else -math.inf
    most = 1 if form.endswith("%") else math.inf
    return [min(max(number, least), most) for number in cell]


def block(result):
    """A file's block in a guide: the command, the table, and notes on how to read it."""
    columns = result["columns"].keys() | set(_differing(result))
    shared = {"machine": result["machine"]} | result["rows"][0]
    facts = [
        text.format(cell_text(shared[name]))
        for name, text in OF_A_RUN.items()
        if name in shared and name not in columns
    ]
    # Of a row, so that they go with it when a new run replaces it
    above = dict.fromkeys(row["intervals"] for row in result["rows"] if "intervals" in row)
    below = [f"{'; '.join(facts)}.", *result["caveats"]]
    command = f"```sh\n{result['command']}\n```"
    return "\n\n".join([command, *map(_wrapped, above), table(result), *map(_wrapped, below)])


def summary(results):
    """README.md's table: what the experiments with a "readme" show, their minutes and a score."""
    heads = ("experiment", "what it shows", "minutes", "before → after")
    lines = [_line(heads), "|" + "---|" * len(heads)]
    chosen = [(name, result) for name, result in results.items() if "readme" in result]
    for name, result in sorted(chosen, key=lambda pair: pair[1]["readme"]["place"]):
        line = result["readme"]
        title = f"[{line['title']}](configs/results/{name}.md)"
        minutes = cell_text(result["rows"][line["cells"][0][0]].get("minutes"))
        lines.append(_line((title, line["shows"], minutes, before_and_after(result))))
    return "\n".join(lines)


def before_and_after(result):
    """The score that README.md has of an experiment, without its intervals: "37.5% → 98.4%"."""
    line = result["readme"]
    said = [cell_in_words(result, row, column) for row, column in line["cells"]]
    return " → ".join(said) + line.get("unit", "")


def cell_in_words(result, row, column):
    """A cell without its interval, as a sentence has it: "37.5% → 98.4%"."""
    cells = result["rows"][row]
    form = result["columns"].get(column, "").replace("{}", cells.get("form", ""))
    return cell_text(_mean(cells[column]), form)


def metrics():
    """launch/metrics.md's tables: every column of metrics.jsonl, by group."""
    heads = ("column", "unit", "what it is", "when it worries")
    parts = []
    for group, columns in GROUPS.items():
        rows = [(f"`{name}`", *texts) for name, *texts in columns]
        lines = [_line(heads), "|" + "---|" * len(heads), *map(_line, rows)]
        parts += [f"## {group.capitalize()}", "\n".join(lines)]
    return "\n\n".join(["", *parts, ""])


def _wrapped(text):
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _mean(cell):
    if isinstance(cell, dict):
        return {name: _mean(part) for name, part in cell.items()}
    return cell[0] if isinstance(cell, list) else cell


def _differing(result):
    """The names of OF_A_RUN whose values differ between rows."""
    found = {name: {cell_text(row.get(name)) for row in result["rows"]} for name in OF_A_RUN}
    return [name for name, values in found.items() if len(values) > 1]
