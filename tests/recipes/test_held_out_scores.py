"""The scores that each recipe's runs have measured, from files as the runs leave them: what sweeps report."""

import json

import pytest

from configs import (
    distill_small,
    effort_small,
    generate_small,
    grpo_small,
    judge_small,
    pretrain_small,
    r1_small,
    reward_model_small,
    sft_small,
)
from deepseek_jax.evaluation.accuracy import share_interval
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.experiment import find_recipe
from deepseek_jax.recipes.job import Job
from deepseek_jax.settings import build
from launch.config_file import load_config
from tests.recipes.small import make_run

LOW, HIGH = [0.5, 0.25, 0.75], [2.5, 2.25, 2.75]


def both(sampled, greedy):
    """What evaluate_both leaves."""
    rest = {"unscored": 0, "samples": [{"prompt": "1 + 1?", "completion": "2", "reward": 1.0}]}
    return {way: rest | {"scores": s} for way, s in (("sampled", sampled), ("greedy", greedy))}


ANSWERS = both({"accuracy": LOW, "reward": HIGH}, {"accuracy": HIGH})
R1 = {"k": 4, "scores": {"pass@1": LOW, "length": HIGH}, "values": {"pass@1": [0, 1, 1]}}
PAID = {"accuracy": LOW, "chosen_longer": None, "calibration_error": 0.1, "pairs": 3}
# Config, {file: what it holds}, {measurement: its scores}
LEFT = {
    "sft": (
        sft_small,
        {"after.json": {"loss": {"loss": HIGH, "tokens": 9}, "answers": ANSWERS}},
        {"after": [("held_out_loss", HIGH), ("accuracy", LOW), ("reward", HIGH)]},
    ),
    "grpo": (
        grpo_small,
        {"before.json": ANSWERS, "after.json": ANSWERS},
        dict.fromkeys(
            ("before", "after"), [("accuracy", LOW), ("reward", HIGH), ("greedy_accuracy", HIGH)]
        ),
    ),
    "grpo with efforts": (
        effort_small,
        {"after.json": {"50": ANSWERS, "75": ANSWERS}},
        {"after": [("accuracy_effort_50", LOW), ("reward_effort_50", HIGH)]},
    ),
    "pretrain": (
        pretrain_small,
        {"stage_1_before.json": HIGH, "stage_1_after.json": LOW},
        {"stage_1_before": [("held_out_loss", HIGH)], "stage_1_after": [("held_out_loss", LOW)]},
    ),
    "reward_model": (reward_model_small, {"after.json": PAID}, {"after": [("accuracy", LOW)]}),
    "judge": (judge_small, {"after.json": PAID}, {"after": [("accuracy", LOW)]}),
    "r1": (
        r1_small,
        {"measured/base/scores.json": R1, "measured/scenarios/scores.json": R1},
        dict.fromkeys(("measured/base", "measured/scenarios"), [("pass@1", LOW), ("length", HIGH)]),
    ),
    "distill": (
        distill_small,
        {"measured/students/qwen/scores.json": {"sum": [0, 1, 1], "countdown": [0, 0.5, 0]}},
        {
            "measured/students/qwen": [
                ("all", share_interval([0, 1, 1, 0, 0.5, 0])),
                ("countdown", share_interval([0, 0.5, 0])),
            ]
        },
    ),
    "generate": (
        generate_small,
        {"dataset/fates.json": {"source": {"kept": 3, "empty": 1}, "numbers": {"kept": 2}}},
        {"dataset": [("kept_share", [5 / 6, None, None])]},
    ),
}


def job_of(config, folder):
    recipe = find_recipe(config.recipe)
    return recipe.JOB(build(recipe.SETTINGS, config, "config"), None, make_run(folder))


@pytest.mark.parametrize("name", LEFT)
def test_the_scores_of_a_run_are_those_of_its_files_headline_first(name, tmp_path):
    """Oracle: by hand; for distillation, whose files have each question's share, the interval of these."""
    config, files, wanted = LEFT[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
    found = driver.held_out_scores(job_of(config.get_config(), tmp_path))
    assert list(found) == list(wanted)
    for measurement, scores in wanted.items():
        first = [(name, list(score)) for name, score in found[measurement].items()][: len(scores)]
        assert first == [(name, list(score)) for name, score in scores]


def test_an_evaluation_has_the_scores_of_each_task_all_tasks_first(tmp_path):
    """Oracle: the intervals of each task's shares of right samples."""
    problems = [
        dict(task=task, correct=right, agreed=None, lengths=[3, 5], truncated=[False, False])
        for task in ("sums", "words")
        for right in ([True, False], [True, True])
    ]
    (tmp_path / "results.json").write_text(json.dumps({"made_of": {}, "problems": problems}))
    (tmp_path / "evaluate.py").write_text(
        "from ml_collections import ConfigDict\n\ndef get_config(arg=None):\n"
        "    return ConfigDict(dict(recipe='evaluate', checkpoint='x', data=['arithmetic']))\n"
    )
    job = job_of(load_config(str(tmp_path / "evaluate.py")), tmp_path)
    ((name, scores),) = driver.held_out_scores(job).items()
    assert name == "results" and next(iter(scores)) == "all pass@1"
    assert scores["all pass@1"] == share_interval([0.5, 1, 0.5, 1])
    assert scores["sums pass@1"] == share_interval([0.5, 1])


def test_a_recipe_without_words_of_its_own_has_the_intervals_of_what_it_measured():
    """Oracle: by hand: what is no list of three is no score."""
    result = {"right": LOW, "asked": 3, "shares": [0, 1], "by_kind": {"sum": LOW}}
    assert Job(None, None).scores_of(result) == {"right": LOW}
