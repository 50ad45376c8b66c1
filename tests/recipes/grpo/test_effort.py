"""GRPO over questions that are asked with reasoning efforts: what a run leaves, and what is refused."""

import json

import pytest

from deepseek_jax.evaluation.held_out import evaluate_both
from deepseek_jax.recipes.distill.settings import ReinforcedSettings
from deepseek_jax.recipes.grpo import run as grpo
from deepseek_jax.recipes.r1.settings import R1Settings
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from tests.benchmarks.finished_run import READERS
from tests.experiments import CONFIGS, load
from tests.recipes.outcome import scores_in
from tests.recipes.pages import data_of, parts_of
from tests.recipes.small import CLOCKS, run_recipe, small_config

EFFORT = dict(
    values=(50, 100), line="{effort}; ", k0=1.0, tau=20.0, max_penalty=0.5, norm_length=12
)
FIELDS = dict(effort=EFFORT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work directory of a run at toy size, and the held-out examples that it measured each time."""
    workdir, asked = tmp_path_factory.mktemp("effort"), []

    def measuring(policy, examples, *arguments, **more):
        asked.append(examples)
        return evaluate_both(policy, examples, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "evaluate_both", measuring)
        run_recipe(grpo, small_config(**FIELDS), workdir)
    return workdir, asked


@pytest.mark.slow
def test_a_run_measures_the_same_questions_at_each_effort_before_and_after(finished):
    """Oracle: the scores of a run without efforts, for each; the examples that were asked."""
    workdir, asked = finished
    assert [{example["effort"] for example in part} for part in asked] == [{50}, {100}] * 2
    assert len({json.dumps([e["question"] for e in part]) for part in asked}) == 1
    for when in ("before", "after"):
        measured = scores_in(workdir, when)
        assert measured.keys() == {"50", "100"}
        for ways in measured.values():
            assert ways.keys() == {"sampled", "greedy"}
            assert {"accuracy", "completion_length"} <= ways["sampled"]["scores"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("efforts", [{}, FIELDS])
def test_the_first_measurement_on_the_way_is_the_one_before(tmp_path, monkeypatch, efforts):
    """Oracle: the greedy accuracy of the stage before, of the same policy and questions: with efforts the
    mean over all of them.
    """
    # Right for about half of the questions, whatever the answers
    by_question = Rule(lambda text, e: float((len(text) + sum(e["operands"])) % 2))
    for name in ("correct", "correct_reasoning"):
        monkeypatch.setitem(scoring.RULES, name, by_question)
    run_recipe(grpo, small_config(eval_every=2, **efforts), tmp_path)
    before = scores_in(tmp_path, "before")
    of_efforts = before.values() if efforts else [before]
    wanted = [ways["greedy"]["scores"]["accuracy"][0] for ways in of_efforts]
    first, second = read_metrics(tmp_path / "metrics.jsonl", "grpo")
    assert first["held_out_accuracy"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-6)
    assert 0 < first["held_out_accuracy"] < 1 and "held_out_accuracy" not in second


@pytest.mark.slow
def test_a_run_leaves_a_page_of_its_efforts(finished):
    """Oracle: the files of the run: each effort's accuracy first, and its first question side by side."""
    workdir, _ = finished
    results = parts_of(workdir)["results"]
    assert 0 <= results.index("accuracy effort 50") < results.index("accuracy effort 100")
    assert results.index("accuracy effort 100") < results.index("reward effort 50")
    pairs = data_of(workdir, "pairs")
    assert [pair["facts"]["task"] for pair in pairs[:3]] == ["effort 50", "effort 100", "effort 50"]
    text = scores_in(workdir, "after")["100"]["sampled"]["samples"][0]["completion"]
    assert pairs[1]["sides"][1]["text"] == text


@pytest.mark.slow
def test_a_run_logs_lengths_by_effort_and_draws_them(finished):
    """Oracle: the names of the config's efforts; the penalty is below 0; a PNG's first bytes."""
    workdir, _ = finished
    lines = read_metrics(workdir / "metrics.jsonl", "grpo")
    assert all(-0.5 <= line["reward_length_penalty"] < 0 for line in lines)
    logged = {name for line in lines for name in line if "_effort_" in name}
    assert logged <= {
        f"{n}_effort_{b}" for n in ("accuracy", "completion_length") for b in (50, 100)
    }
    assert logged
    for name in ("efforts.png", "curves.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_finished_runs_numbers_are_a_row_for_each_effort(finished):
    """Oracle: the files of the run."""
    workdir, _ = finished
    before, after = (scores_in(workdir, when) for when in ("before", "after"))
    rows = READERS["grpo"](workdir, {"effort": EFFORT})
    assert [row["effort"] for row in rows] == ["50", "100"]
    for row in rows:
        pair = (m[row["effort"]]["greedy"]["scores"]["accuracy"] for m in (before, after))
        assert list(row["accuracy, greedy"].values()) == list(pair)


@pytest.mark.slow
def test_a_stopped_run_asks_on_with_the_same_efforts(finished, tmp_path):
    """Oracle: the metrics and measurements of the run that nothing stopped, digit for digit."""
    asked = []

    def stopping():
        asked.append(None)
        # Of five steps of pre-training and two of reinforcement, behind the first of the latter
        return len(asked) == 6

    config = small_config(**FIELDS)
    with pytest.raises(SystemExit):
        run_recipe(grpo, config, tmp_path, stopping)
    run_recipe(grpo, config, tmp_path)
    whole = finished[0]
    assert scores_in(tmp_path, "after") == scores_in(whole, "after")
    ours, theirs = (
        [
            {name: value for name, value in line.items() if not name.endswith(CLOCKS)}
            for line in read_metrics(folder / "metrics.jsonl", "grpo")
        ]
        for folder in (tmp_path, whole)
    )
    assert ours == theirs and len(ours) == 2


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            dict(effort=EFFORT | dict(max_penalty=2.0)),
            "config.effort.max_penalty=2.0 must be below 2.0, the most that rewards can pay",
        ),
        (
            dict(
                effort=EFFORT | dict(max_penalty=1.5),
                general=dict(num_steps=1, per_step=1, rewards=dict(exact_answer=1.0), path="x"),
            ),
            "config.effort.max_penalty=1.5 must be below 1.0, the most that general.rewards can pay",
        ),
        (
            dict(
                effort=EFFORT,
                rewards=dict(length_penalty=1.0),
                reward_models=dict(length_penalty=dict(path="x")),
            ),
            "config.rewards.length_penalty=1.0 has the name of effort's own part",
        ),
    ],
)
def test_efforts_that_rewards_do_not_go_with_are_refused(fields, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        build(grpo.GrpoSettings, small_config(**fields), "config")
    assert str(error.value).startswith(words)


def test_what_a_reward_model_pays_bounds_no_penalty():
    """Oracle: by hand: the penalty of the case above is allowed where a model pays."""
    fields = dict(reward_models=dict(liked=dict(path="x")), rewards=dict(liked=1.0))
    settings = small_config(effort=EFFORT | dict(max_penalty=9.0), **fields)
    assert build(grpo.GrpoSettings, settings, "config").effort.max_penalty == 9.0


def test_a_line_that_the_world_cannot_spell_is_refused_before_anything_is_written(tmp_path):
    """Oracle: the words a reader needs, and an empty work directory."""
    config = small_config(effort=EFFORT | dict(line="Effort: {effort}\n"))
    with pytest.raises(ValueError, match="^config.effort.line='Effort: 50.n' has words that this"):
        run_recipe(grpo, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_recipes_that_ask_without_an_effort_refuse_some():
    """Oracle: the words a reader needs."""
    r1 = load(CONFIGS / "r1_small.py")
    r1.unlock()
    r1.zero.effort = EFFORT
    with pytest.raises(ValueError, match="^config.zero.effort.values=.50, 100.: this recipe asks"):
        build(R1Settings, r1, "config")
    assert issubclass(ReinforcedSettings, ReinforceSettings)
    student = small_config(**FIELDS)
    for name in ("recipe", "model", "base", "data", "xla_flags"):
        del student[name]
    student.update(dict(start="s", log_every=1))
    with pytest.raises(ValueError, match="^config.effort.values=.50, 100.: this recipe asks"):
        build(ReinforcedSettings, student, "config")
