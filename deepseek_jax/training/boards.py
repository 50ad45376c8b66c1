"""Sections of metrics on the boards (TensorBoard and W&B), and tables in Markdown for them.

A board makes one section of each group of metrics. metrics.jsonl has the names of the metrics
without their groups.
"""

import html
from collections.abc import Sequence

from deepseek_jax.training.metric_names import column_of

# The group of a metric that metric_names lacks
OTHER = "other"


def group_of(name: str):
    """Return the group of a metric: a key of metric_names.GROUPS, or OTHER."""
    column = column_of(name)
    return OTHER if column is None else column[0]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence]):
    """Format rows as a table in Markdown.

    A text is escaped, so that the table shows it as it is. A float gets four significant digits,
    and None gives an empty cell.
    """
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else html.escape(str(value))
    return text.replace("|", "&#124;").replace("\n", "<br>")
