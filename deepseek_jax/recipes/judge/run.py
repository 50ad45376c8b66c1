"""Fine-tune a judge: a generative reward model (arXiv:2412.19437, section 5.2.1).

A judge compares two answers, grades them and says which one is better.

base -> verdicts on held-out pairs -> fine-tune on judgements -> verdicts again -> report

Tests: tests/recipes/test_judge.py, tests/recipes/test_results.py.
"""

from deepseek_jax import reports
from deepseek_jax.recipes.kinds.judge import JudgedPairs, TrainJudge
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.reward_model.report import report_trained
from deepseek_jax.recipes.reward_model.settings import JudgeSettings
from deepseek_jax.recipes.short import first_stage
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.worlds.bilingual.world import BILINGUAL

SETTINGS = JudgeSettings


def stages(s: JudgeSettings) -> list[Stage]:
    """List the stages: a base or a checkpoint, and the judge that begins from it."""
    start_stage = first_stage(s, s.data.template)
    judge_stage = TrainJudge(
        "judge",
        s,
        ("before", "after"),
        pairs=JudgedPairs(BILINGUAL),
        seed=s.seed,
        start=start_stage.name,
        path="",
        label="",
        title="judge",
    )
    return [start_stage, judge_stage]


def page(results: Results) -> reports.Page:
    """Build the page, with verdicts on held-out pairs."""
    answers = {
        when: {"": {"greedy": {"samples": reports.held_out_samples(measurement), "unscored": 0}}}
        for when, measurement in results.contents().items()
    }
    return reports.with_answers(run_page(results, "Judge"), answers)


def report(results: Results):
    """Draw the curve and print the scores; only process 0 does so."""
    report_trained(results, results.stages[-1], "verdicts on held-out pairs", ("loss",))
