"""The page of a run: the results of its measurements, and what every run records.

Tests: tests/recipes/grpo/test_run.py.
"""

from pathlib import Path

from deepseek_jax.files import read_object
from deepseek_jax.recipes.kinds.pretrain import Pretrain
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.run_record import read_run_record
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
    record = read_run_record(results.folder)
    digests = {name: config.pop(name) for name in BESIDE if name in config}
    return Page(
        f"{title} in {results.folder.name}",
        scores=scores,
        compared=[(titles[0] if len(titles) > 1 else None, titles[-1])] if titles else [],
        config=config,
        facts=_facts(record) | {"state": results.state()},
        command=record["starts"][-1].get("command") if record.get("starts") else None,
        stages=results.lineage(),
        digests={"config": content_hash(config)} | digests if config else {},
    )


def write_page(results: Results, page: Page) -> None:
    """Write report.html from what a run has written so far; only process 0 calls this."""
    write_report(Path(results.folder), page, _headings(results))


def _facts(record):
    """Read from run.json what the line under the title says: Page.facts.

    A fact that changed from one start to the next has all its values, in order.
    """
    models, starts = record.get("models", {}), record.get("starts", [])
    facts = {}
    if models:
        names = {name: f"{name}: " if len(models) > 1 else "" for name in models}
        texts = (names[name] + model_text(**model) for name, model in models.items())
        facts["model"] = "; ".join(texts)
    for name in ("experiment", "commit", "release", "python", "jax", "devices", "date"):
        values = dict.fromkeys(start[name] for start in starts if start.get(name))
        if values:
            facts[name] = ", then ".join(values)
    if starts:
        minutes = sum(start["seconds"] for start in starts) / 60
        facts["time"] = f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
    return facts


def model_text(architecture: str, parameters: int, checkpoint: str | None = None) -> str:
    """Describe the result of run_record.model_facts in words."""
    source = "" if checkpoint is None else f", from {checkpoint}"
    return f"{architecture} with {parameters:,} parameters{source}"


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
