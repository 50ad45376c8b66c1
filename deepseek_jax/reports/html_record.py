"""The record of a run on its page: what was run, the configuration, the stages with their hashes.

Tests: tests/reports/test_html_report.py.
"""

import html
import json
from collections.abc import Mapping

from deepseek_jax.errors import shortened
from deepseek_jax.reports.html_table import html_table
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.svg_lineage import as_class, lineage_graph

# Limits of what the page shows: characters of a config value, and values of a block
VALUE, VALUES = 300, 200


def facts_part(page: Page):
    """Write the grey line under the title, and the command with a button that copies it."""
    facts = " ".join(
        f'<span><span class="fact">{html.escape(name)}</span> {html.escape(str(value))}</span>'
        for name, value in page.facts.items()
    )
    body = f'<p class="facts">{facts}</p>' if facts else ""
    if page.command is not None:
        body += (
            f'<p><code>{html.escape(page.command)}</code> <button type="button">copy</button></p>'
        )
    return f'<div id="facts">{body}</div>' if body else ""


def config_part(config: Mapping):
    """Write the config in blocks: one table of dotted fields for each top-level block.

    Fields without a block come first, together.
    """
    top_fields = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    blocks = {"": top_fields} | {
        name: block for name, block in config.items() if isinstance(block, Mapping)
    }
    body = "".join(_block(name, dict(_leaves(block))) for name, block in blocks.items() if block)
    return f'<div class="blocks">{body}</div>' if body else ""


def _block(name, leaves):
    rows = "".join(
        f"<tr><th>{html.escape(field)}</th><td><code>{_value(value)}</code></td></tr>"
        for field, value in list(leaves.items())[:VALUES]
    )
    omission = f"<p>and {len(leaves) - VALUES} more</p>" if len(leaves) > VALUES else ""
    title = f"<caption>{html.escape(name)}</caption>" if name else ""
    return f"<div><table>{title}<tbody>{rows}</tbody></table>{omission}</div>"


def _value(value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return html.escape(shortened(text, VALUE))


def _leaves(block, path=""):
    """Yield (dotted name, value) of every field that has no fields of its own."""
    for name, value in block.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def lineage_part(page: Page):
    """Write the stages and their hashes, folded."""
    body = (_stages(page.stages) if page.stages else "") + _digests(page.digests)
    if not body:
        return ""
    num_complete = sum(stage["state"] == "complete" for stage in page.stages)
    summary = f"{num_complete} of {len(page.stages)} stages are complete; " if page.stages else ""
    return f"<details><summary>{summary}show the hashes</summary>{body}</details>"


def _stages(stages):
    titles = {stage["name"]: stage["title"] for stage in stages}
    rows = [
        [
            f"{html.escape(stage['title'])} <small>{html.escape(stage['name'])}</small>",
            f'<span class="state {as_class(stage["state"])}">{html.escape(stage["state"])}</span>',
            f"<code>{html.escape(str(stage['hash'] or ''))}</code>",
            ", ".join(html.escape(titles[p]) for _, p in stage["inputs"].values() if p is not None),
            " ".join(
                f'<span class="input">{html.escape(name)} <code>{html.escape(str(digest))}</code></span>'
                for name, (digest, _) in stage["inputs"].items()
            ),
        ]
        for stage in stages
    ]
    heads = "stage", "state", "hash", "made from", "hashes of its inputs"
    return (
        f'<div class="wide">{lineage_graph(stages)}</div>'
        "<p>A stage's hash is computed from the hashes of its inputs. It is an input of the stages that "
        f"are made from it.</p>{html_table(heads, rows)}"
    )


def _digests(digests):
    rows = [
        [html.escape(name), f"<code>{html.escape(str(digest))}</code>"]
        for name, digest in _leaves(digests)
    ]
    return html_table(("of", "hash or commit"), rows) if rows else ""
