"""Print R1's scores and findings, and build its page.

Slow tests: tests/recipes/r1/test_run.py.
"""

import dataclasses
from pathlib import Path

from deepseek_jax.files import read_json
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.r1.findings import TABLE_WIDTH, report_sweep
from deepseek_jax.recipes.r1.samples import side_by_side, stage_groups
from deepseek_jax.recipes.r1.scores import FORMS
from deepseek_jax.recipes.results import Results
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.preferences import reward_model_table
from deepseek_jax.reports.tables import stages_table

__all__ = ["page", "report", "report_sweep"]


def page(results: Results) -> Page:
    """Build the page, with the samples of all policies, and the findings of a complete run."""
    basic_page, settings, titles = run_page(results, "R1"), results.settings, results.titles()
    samples = {
        results.row(name): measurement["samples"]
        for name, measurement in results.contents().items()
    }
    end_titles = [titles[name] for name in settings.last_stages() if titles[name] in samples]
    # Before the last stage has ended, the latest measurement takes its place
    end_titles, start_titles = end_titles or list(samples)[1:][-1:], list(samples)[:1]
    path = results.folder / "findings.json"
    is_complete = all(stage["state"] == "complete" for stage in basic_page.stages)
    findings = read_json(path) if path.exists() and is_complete else None
    return dataclasses.replace(
        basic_page,
        forms=FORMS,
        names=_score_names(settings),
        compared=[(start, end) for start in start_titles for end in end_titles]
        or basic_page.compared,
        pairs=side_by_side({title: samples[title] for title in start_titles + end_titles}),
        samples=stage_groups(samples),
        findings=findings and (findings["heads"], findings["rows"]),
    )


def report(results: Results):
    """Print the scores and the findings."""
    folder: Path = results.folder
    console = make_console(width=TABLE_WIDTH)
    for name in results.settings.paying():
        console.print(reward_model_table(f"{name}, held out", folder / name))
    scores = {
        results.row(name): measurement["scores"] for name, measurement in results.contents().items()
    }
    # A world may lack scores: the language score, for example, needs questions that name a language
    forms = {n: form for n, form in FORMS.items() if any(n in s for s in scores.values())}
    console.print(stages_table(scores, forms, _score_names(results.settings)))
    # Over this run only; launch/sweep.py tests the findings over several seeds
    report_sweep(folder, [folder], results.settings.last_stages())


def _score_names(settings):
    samples = settings.evaluation.samples
    return {name: name.replace("@k", f"@{samples}") for name in FORMS}
