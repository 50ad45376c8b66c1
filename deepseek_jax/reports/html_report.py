"""A run as one HTML page, which needs no server, no network and no other file.

Results come first, then curves, completions before and after, samples and the configuration. The
stages and their hashes are at the end, folded. A model's text is data in the page, never markup:
html_report.js inserts it as text, and the page's Content-Security-Policy lets no other script run.
A page has at most PAGE_BYTES.
"""

import html
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from deepseek_jax.reports.html_record import config_part, lineage_part
from deepseek_jax.reports.html_samples import (
    completions_part,
    pairs_data,
    samples_data,
    samples_part,
    shown_samples,
)
from deepseek_jax.reports.html_scores import results_part
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.svg_curves import curve_panel

# The bounds of the parts add up to less than PAGE_BYTES: 4 MiB of samples, PANELS curves of 7 kB
# each, and small tables
PAGE_BYTES, PANELS = 8 << 20, 300
# The curves of these metrics are not folded, like those of rewards and held-out losses
MEASURED = ("accuracy", "completion_length", "turns", "tool_calls", "loss", "kl")
# Metrics of reinforcement with names like rewards
ABOUT_REWARDS = ("reward_group_std", "reward_errors", "reward_seconds")
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
<script type="application/json" id="pairs-data">{pairs}</script>
<script type="application/json" id="samples-data">{samples}</script>
<script>{script}</script>
</body>
</html>
"""


def report_page(page: Page) -> str:
    """Write the page's HTML, without numbers that are not finite."""
    samples = shown_samples(page.samples)
    sections = {
        "Results": results_part(page),
        "Curves": _Curves(page).part(),
        "Completions": completions_part(page.pairs),
        "Samples": samples_part(samples, len(page.samples)),
        "Configuration": config_part(page.config),
        "Lineage": lineage_part(page),
    }
    sections = {name: body for name, body in sections.items() if body}
    return PAGE.format(
        title=html.escape(page.title),
        # The policy names this script by its hash, so a script in a model's text cannot run
        digest=b64encode(sha256(SCRIPT.encode()).digest()).decode(),
        style=STYLE,
        links="".join(f'<a href="#{heading.lower()}">{heading}</a>' for heading in sections),
        parts="\n".join(
            f'<section id="{heading.lower()}"><h2>{heading}</h2>\n{body}\n</section>'
            for heading, body in sections.items()
        ),
        pairs=pairs_data(page.pairs),
        samples=samples_data(samples),
        script=SCRIPT,
    )


class _Curves:
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
        """Write a phase's curves: rewards and measurements first, others in a closed <details>."""
        metric_names = dict.fromkeys(name for record in records for name in record)
        points = {
            n: [(r["step"], r[n]) for r in records if n in r]
            for n in metric_names
            if n not in ("step", "phase")
        }
        points = {n: p for n, p in points.items() if any(value is not None for _, value in p)}
        reward_names = [n for n in points if n == "reward" or n.startswith("reward_")]
        reward_names = [n for n in reward_names if n not in ABOUT_REWARDS]
        held_out_names = [n for n in points if n.startswith("held_out")]
        open_names = [*reward_names, *(n for n in MEASURED if n in points), *held_out_names]
        closed_names = [n for n in points if n not in open_names]
        open_panels, closed_panels = (
            self._panels(names, points) for names in (open_names, closed_names)
        )
        folded_panels = (
            f"<details><summary>{len(closed_names)} more</summary>"
            f'<div class="panels">{closed_panels}</div></details>'
        )
        body = f'<div class="panels">{open_panels}</div>{folded_panels if closed_names else ""}'
        return f"<h3>{html.escape(title)}</h3>{body}"

    def _panels(self, names, points):
        drawn_names = names[: self.left]
        self.left -= len(drawn_names)
        panels = "".join(curve_panel(name, points[name]) for name in drawn_names)
        num_left_out = len(names) - len(drawn_names)
        return panels + (f"<p>{num_left_out} more are in metrics.jsonl</p>" if num_left_out else "")
