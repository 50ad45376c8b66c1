"""The groups of metrics on the boards, and what TensorBoard has beside a run's metrics."""

import json
import re
from pathlib import Path

import pytest

import deepseek_jax
from deepseek_jax.distill.terms import TERMS
from deepseek_jax.training import metric_names
from deepseek_jax.training.boards import OTHER, group_of
from deepseek_jax.training.metric_names import GROUPS, column_of
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.settings import FAMILIES, OF_LOSSES, OF_REWARDS
from tests.training.test_metrics import events


@pytest.mark.parametrize(
    "name, group",
    [
        ("reward", "rewards"),
        ("reward_own/rewards.py:right", "rewards"),
        ("reward_seconds", "speed"),
        ("logged/kl_seconds", "rewards"),
        ("held_out_loss/seconds", "loss"),
        ("completion_length_effort_16", "rollout"),
        ("truncated_share", "rollout"),
        ("truncated_turns", "conversations"),
        ("tool_seconds", "conversations"),
        ("device_3_peak_gib", "memory"),
        ("max_vio/moe_0", "experts"),
        ("learning_rate", "optimizer"),
        ("a_new_one", OTHER),
    ],
)
def test_a_metric_has_the_group_of_what_it_is_about(name, group):
    """Oracle: by hand, of names that patterns might take for others."""
    assert group_of(name) == group


def test_what_may_choose_a_checkpoint_and_the_terms_of_a_distillation_have_groups():
    """Oracle: the lists of their names, a NAME in the place of one of the config's."""
    names = (*OF_LOSSES, *OF_REWARDS, *(f"{family}NAME" for family in FAMILIES), *TERMS)
    assert not [name for name in names if group_of(name) not in ("loss", "rewards", "rollout")]


def test_every_column_can_be_looked_up_by_its_name():
    """Oracle: the table's own rows: no family hides a name or another family, and no name is there twice."""
    columns = [(group, column) for group, columns in GROUPS.items() for column in columns]
    assert len(columns) > 90 and len({column.name for _, column in columns}) == len(columns)
    for group, column in columns:
        name = re.sub("[A-Z]+", "peak", column.name)
        assert column_of(name) == (group, column)
        assert column.unit and column.meaning
    assert column_of("a_new_one") is None


def test_every_column_is_one_that_the_code_logs():
    """Oracle: the text of all other files: a name that nothing logs any more is in none of them. Of a family
    it is the part before the first word in capitals.
    """
    root = Path(deepseek_jax.__file__).parent
    paths = [path for path in root.rglob("*.py") if path != Path(metric_names.__file__)]
    code = "\n".join(path.read_text() for path in paths)
    names = [re.split("[A-Z]", column.name)[0] for group in GROUPS.values() for column in group]
    assert [name for name in names if name.rstrip("/_") not in code] == []


def texts(workdir, phase):
    """(step, tag, text) of a TensorBoard run."""
    return [
        (event.step, value.tag.split("/")[0], value.tensor.string_val[0].decode())
        for event in events(workdir, phase)
        for value in event.summary.value
        if value.tensor.string_val
    ]


def test_tensorboard_has_the_config_of_the_run(tmp_path):
    """Oracle: the config, read back from the text, at the first step of each start."""
    config = {"seed": 3, "model": {"hidden_size": 4}}
    for first in (0, 2):
        writer = MetricsWriter(tmp_path, config=config)
        writer.start("grpo", first)
        writer.close()
    found = texts(tmp_path, "grpo")
    assert [(step, tag) for step, tag, _ in found] == [(0, "config"), (2, "config")]
    for _, _, text in found:
        assert json.loads(text.removeprefix("```").removesuffix("```")) == config


def test_tensorboard_has_the_scores_of_measurements_in_order(tmp_path):
    """Oracle: by hand: each measurement once, as a point of each score and as a table; a run that resumes
    says those of before again, and TensorBoard hides the old ones.
    """
    before = {"accuracy": [0.25, 0.125, 0.5], "completion_length": [7.0, None, None]}
    after = {"accuracy": [1.0, 0.75, 1.0]}
    writer = MetricsWriter(tmp_path)
    writer.write_scores({})
    assert not list(tmp_path.iterdir())
    writer.write_scores({"before": before})
    writer.write_scores({"before": before, "after": after})
    writer.close()
    found = events(tmp_path, "held_out")
    points = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    points = [point for point in points if point[1].count("/") and "text" not in point[1]]
    assert points == [
        (0, "held_out/accuracy", 0.25),
        (0, "held_out/completion_length", 7.0),
        (1, "held_out/accuracy", 1.0),
    ]
    first, second = (text.splitlines() for _, _, text in texts(tmp_path, "held_out"))
    assert first[2:] == ["| accuracy | 0.25 | 0.125 | 0.5 |", "| completion_length | 7 |  |  |"]
    assert second == [
        *("| after | mean | low | high |", "| --- | --- | --- | --- |"),
        "| accuracy | 1 | 0.75 | 1 |",
    ]
    writer.write_scores({"before": before})
    writer.close()
    assert [e.step for e in events(tmp_path, "held_out") if e.session_log.status == 1] == [0, 0]
