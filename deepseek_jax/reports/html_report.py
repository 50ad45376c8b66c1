"""A run as one HTML page, which needs no server, no network and no other file.

What was run stands under the title. Results come first, then what training rewarded, curves,
completions before and after, a table of all completions and the configuration. The stages and
their hashes are at the end, folded. A model's text is data in the page, never markup:
html_report.js inserts it as text, and the page's Content-Security-Policy lets no other script run.
A page has at most PAGE_BYTES.
"""

import html
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

from deepseek_jax.reports.html_curves import Curves
from deepseek_jax.reports.html_record import config_part, facts_part, lineage_part
from deepseek_jax.reports.html_samples import (
    completions_part,
    pairs_data,
    rewarded_part,
    samples_data,
    samples_part,
    shown_samples,
)
from deepseek_jax.reports.html_scores import results_part
from deepseek_jax.reports.page import Page

# The bounds of the parts add up to less than this: 4 MiB of samples, 1 MiB of pairs, PANELS curves
# of 7 kB each, and small tables
PAGE_BYTES = 8 << 20
# Section -> its heading, in the order of the page
TITLES = {
    "results": "Results",
    "rewarded": "What was rewarded",
    "curves": "Curves",
    "completions": "Side by side",
    "samples": "All completions",
    "configuration": "Configuration",
    "lineage": "Lineage",
}
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
{facts}
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
        "results": results_part(page),
        "rewarded": rewarded_part(samples),
        "curves": Curves(page).part(),
        "completions": completions_part(page.pairs, page.pairs_note),
        "samples": samples_part(samples, len(page.samples), page.samples_note),
        "configuration": config_part(page.config),
        "lineage": lineage_part(page),
    }
    sections = {name: body for name, body in sections.items() if body}
    return PAGE.format(
        title=html.escape(page.title),
        # The policy names this script by its hash, so a script in a model's text cannot run
        digest=b64encode(sha256(SCRIPT.encode()).digest()).decode(),
        style=STYLE,
        links="".join(f'<a href="#{name}">{TITLES[name]}</a>' for name in sections),
        facts=facts_part(page),
        parts="\n".join(
            f'<section id="{name}"><h2>{TITLES[name]}</h2>\n{body}\n</section>'
            for name, body in sections.items()
        ),
        pairs=pairs_data(page.pairs),
        samples=samples_data(samples),
        script=SCRIPT,
    )
