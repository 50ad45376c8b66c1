"""The page of a run: the results of its measurements, and what every run records.

Tests: tests/recipes/grpo/test_run.py.
"""

from pathlib import Path

from deepseek_jax.files import read_object
from deepseek_jax.recipes.kinds.pretrain import Pretrain
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.workdir import BESIDE, MARKER
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.run_page import write_report
from deepseek_jax.training.lineage import content_hash


def run_page(results: Results, title: str) -> Page:
    """Return a Page with the parts that every run has.

    Args:
        results: The results of the run so far.
        title: What the page calls a run of this recipe.
    """
    scores = {
        results.row(name): results.measurements()[name][0].scores(content)
        for name, content in results.contents().items()
    }
    titles, marker = list(scores), results.folder / MARKER
    config = read_object(marker) if marker.exists() else {}
    digests = {name: config.pop(name) for name in BESIDE if name in config}
    return Page(
        f"{title} in {results.folder.name}",
        scores=scores,
        compared=[(titles[0] if len(titles) > 1 else None, titles[-1])] if titles else [],
        config=config,
        stages=results.lineage(),
        digests={"config": content_hash(config)} | digests if config else {},
    )


def write_page(results: Results, page: Page) -> None:
    """Write report.html from what a run has written so far; only process 0 calls this."""
    write_report(Path(results.folder), page, _headings(results))


def _headings(results):
    """Return {phase: its title} of the stages that train, without the pre-training of a base."""
    states = {stage["name"]: stage["state"] for stage in results.lineage()}
    headings = {}
    for stage in results.stages:
        is_base = isinstance(stage, Pretrain) and not stage.start
        if stage.measures or is_base:
            continue
        title = stage.title or stage.name
        state = "outdated" if states[stage.name] == "outdated" else title
        remarks = [name for name in (stage.name, state) if name != title]
        headings[stage.name] = f"{title} ({', '.join(remarks)})" if remarks else title
    return headings
