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
from deepseek_jax.recipes.experiment import results_of
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.training.lineage import RECORD, Inputs
from launch.config_file import load_config

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
        {"after/scores.json": {"loss": {"loss": HIGH, "tokens": 9}, "answers": ANSWERS}},
        {"after": [("held_out_loss", HIGH), ("accuracy", LOW), ("reward", HIGH)]},
    ),
    "grpo": (
        grpo_small,
        {"before/scores.json": ANSWERS, "after/scores.json": ANSWERS},
        dict.fromkeys(
            ("before", "after"), [("accuracy", LOW), ("reward", HIGH), ("greedy_accuracy", HIGH)]
        ),
    ),
    "grpo with efforts": (
        effort_small,
        {"after/scores.json": {"50": ANSWERS, "75": ANSWERS}},
        {"after": [("accuracy_effort_50", LOW), ("reward_effort_50", HIGH)]},
    ),
    "pretrain": (
        pretrain_small,
        {"stage_1_before/scores.json": HIGH, "stage_1_after/scores.json": LOW},
        {"stage_1_before": [("held_out_loss", HIGH)], "stage_1_after": [("held_out_loss", LOW)]},
    ),
    "reward_model": (
        reward_model_small,
        {"reward_model/after.json": PAID},
        {"after": [("accuracy", LOW)]},
    ),
    "judge": (judge_small, {"judge/after.json": PAID}, {"after": [("accuracy", LOW)]}),
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


@pytest.mark.parametrize("name", LEFT)
def test_the_scores_of_a_run_are_those_of_its_files_headline_first(name, tmp_path):
    """Oracle: by hand; for distillation, whose files have each question's share, the interval of these."""
    config, files, wanted = LEFT[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
    found = results_of(config.get_config(), tmp_path).scores()
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
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "scores.json").write_text(
        json.dumps({"made_of": {}, "problems": problems})
    )
    (tmp_path / "evaluate.py").write_text(
        "from ml_collections import ConfigDict\n\ndef get_config(arg=None):\n"
        "    return ConfigDict(dict(recipe='evaluate', checkpoint='x', data=['arithmetic']))\n"
    )
    config = load_config(str(tmp_path / "evaluate.py"))
    ((name, scores),) = results_of(config, tmp_path).scores().items()
    assert name == "results" and next(iter(scores)) == "all pass@1"
    assert scores["all pass@1"] == share_interval([0.5, 1, 0.5, 1])
    assert scores["sums pass@1"] == share_interval([0.5, 1])


def test_a_stage_without_words_of_its_own_has_the_intervals_of_what_it_measured():
    """Oracle: by hand: what is no list of three is no score."""
    result = {"right": LOW, "asked": 3, "shares": [0, 1], "by_kind": {"sum": LOW}}
    assert Stage("measured", None).scores(result) == {"right": LOW}


def write_stage(folder, name, complete=True, **hashed):
    """Write the record of a stage, and scores, which a training has none of: -> its hash."""
    record = Inputs({"settings": 1} | hashed).record(name)
    (folder / name).mkdir(exist_ok=True)
    (folder / name / RECORD).write_text(json.dumps(record | {"complete": complete}))
    if name in ("before", "after"):
        (folder / name / "scores.json").write_text(json.dumps(ANSWERS))
    return record["hash"]


def test_a_run_is_complete_once_all_stages_are(tmp_path):
    """Oracle: by hand."""
    results = results_of(grpo_small.get_config(), tmp_path)
    assert [stage.name for stage in results.stages] == ["pretrain", "before", "grpo", "after"]
    for stage in results.stages:
        assert not results.complete()
        write_stage(tmp_path, stage.name)
    assert results.complete()
    write_stage(tmp_path, "grpo", complete=False)
    assert not results.complete()


def test_what_was_measured_of_an_earlier_version_of_a_stage_is_not_found(tmp_path):
    """Oracle: by hand: a page shows what is of the stages as they are. The files stay, and their scores."""
    results = results_of(grpo_small.get_config(), tmp_path)
    base = write_stage(tmp_path, "pretrain")
    write_stage(tmp_path, "before", parent=base)
    write_stage(tmp_path, "after", parent=write_stage(tmp_path, "grpo", parent=base))
    assert list(results.contents()) == ["before", "after"]
    write_stage(tmp_path, "grpo", parent=base, num_steps=9)
    assert list(results.contents()) == ["before"] and list(results.scores()) == ["before", "after"]
    write_stage(tmp_path, "before", parent=base, complete=False)
    assert results.contents() == {}


def test_where_the_parameters_of_each_stage_are(tmp_path):
    """Oracle: by hand: a checkpoint stays where it is, an adapter has a folder of its own name."""
    config = grpo_small.get_config()
    with config.unlocked():
        del config.base
        config.init_from = "org/name"
    results = results_of(config, tmp_path)
    assert results.path_of("init_from") == "org/name"
    assert results.path_of("grpo") == tmp_path / "grpo" / "params"
    (tmp_path / "grpo" / "adapter").mkdir(parents=True)
    (tmp_path / "grpo" / "adapter" / "adapter_config.json").write_text("{}")
    assert results.path_of("grpo") == tmp_path / "grpo" / "adapter"
    assert results.titles() == {"init_from": "checkpoint", "grpo": "GRPO"}
