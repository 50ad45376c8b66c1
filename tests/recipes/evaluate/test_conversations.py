"""The recipe with an environment, on a tiny random model: whole conversations are judged and counted."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from deepseek_jax.recipes import driver
from deepseek_jax.recipes.evaluate import run as evaluate
from deepseek_jax.recipes.workdir import claim_workdir
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.rollout.policy import load_policy
from deepseek_jax.rollout.settings import AnswerOptions, ConversationLimits
from deepseek_jax.rollout.turns import CHUNKS
from deepseek_jax.settings import build
from deepseek_jax.training.completions import spoken_lines
from deepseek_jax.worlds.arithmetic.tasks import arithmetic_task
from tests.recipes.outcome import assert_names, scores_in
from tests.recipes.pages import data_of
from tests.recipes.small import one_device, run_recipe
from tests.rollout.conversing import REPLIES, opened
from tests.tiny import save_tiny_model

LIMITS = dict(turns=3, turn_length=12, call_steps=2)
EXAMPLES = arithmetic_task(0, 6).held_out


def even_length(completion, example):
    """A rule that random conversations meet about half of the time."""
    return 1.0 - len(completion) % 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "params"
    save_tiny_model(folder)
    return folder


def run(checkpoint, workdir, **fields):
    """The problems of the results, of a work directory that is claimed as launch does it."""
    config = ConfigDict(dict(recipe="evaluate", checkpoint=str(checkpoint), data=["arithmetic"]))
    config.update(dict(samples=3, max_completion_length=48, num_problems=6, save_every=4, slots=4))
    config.update(dict(temperature=1.0, top_p=1.0, accuracy="even_length", environment=REPLIES))
    config.update(dict(conversation=LIMITS) | fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scoring.RULES, "even_length", Rule(even_length))
        with claim_workdir(workdir, config):
            run_recipe(evaluate, config, workdir)
    return scores_in(workdir, "results")["problems"]


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run(checkpoint, workdir)


def test_results_are_those_of_one_rollout_of_conversations(finished, checkpoint):
    """Oracle: Policy.answer of all problems at once; the rule by hand, on texts with what the model read; the
    counts by hand, from the messages.
    """
    policy = load_policy(checkpoint)
    options = AnswerOptions(max_completion_length=48, slots=4)
    fields = dict(tools=(), environment=REPLIES, conversation=ConversationLimits(**LIMITS))
    with opened(policy, **fields) as policy:
        answers = policy.answer(policy.with_prompts(EXAMPLES), options, n=3, seed=0)
    problems = finished[1]
    lists = [name for name, value in problems[0].items() if isinstance(value, list)]
    found = {name: [value for problem in problems for value in problem[name]] for name in lists}
    assert found["completions"] == list(answers.texts)
    assert found["correct"] == [len(text) % 2 == 0 for text in answers.texts]
    assert found["lengths"] == answers.rollout.completion_mask.sum(1).tolist()
    assert found["messages"] == [c.messages for c in answers.conversations]
    roles = [[m["role"] for m in messages] for messages in found["messages"]]
    assert found["turns"] == [of.count("assistant") for of in roles]
    assert max(found["turns"]) == 3 and min(found["turns"]) == 1
    # Each reply is a message of the user, but None of the fifth
    assert found["tool_calls"] == [of.count("user") for of in roles] == found["get_reward"]
    assert found["tool_errors"] == [0] * 18
    assert found["truncated_turns"] == found["truncated"] == answers.rollout.truncated.tolist()


def test_the_scores_and_the_page_have_the_means(finished):
    """Oracle: means by hand, over the 18 conversations; three of each problem."""
    workdir, problems = finished
    scores = evaluate.task_scores(problems)["arithmetic"]
    for name in ("turns", "tool_calls", "tool_errors", "truncated_turns", "get_reward"):
        mean = np.mean([problem[name] for problem in problems])
        np.testing.assert_allclose(scores[name][0], mean)
    groups = data_of(workdir, "samples")
    lines = [[c["lines"] for c in group["completions"]] for group in groups]
    wanted = [
        [list(map(list, spoken_lines(messages))) for messages in problem["messages"]]
        for problem in problems
    ]
    # The page has wrong answers first
    assert sorted(map(sorted, lines)) == sorted(map(sorted, wanted))


def test_get_reward_may_say_whether_an_answer_is_right(finished, checkpoint, tmp_path):
    """Oracle: by hand: Replies pays one for each call, and a right answer is paid 1. The conversations are
    those that another rule judged.
    """
    problems = run(checkpoint, tmp_path, accuracy="Replies")
    for problem, other in zip(problems, finished[1], strict=True):
        assert problem["messages"] == other["messages"]
        assert problem["correct"] == [calls == 1 for calls in problem["tool_calls"]]
        assert problem["majority"] is None and problem["unscored"] == 0
    assert any(correct for problem in problems for correct in problem["correct"])


def test_code_that_has_changed_is_another_state(checkpoint, tmp_path):
    """Oracle: the message; a copy of the environment's file with a comment."""
    copy, source = tmp_path / "replies.py", Path(REPLIES.partition(":")[0]).read_text()
    copy.write_text(source)
    fields = dict(environment=f"{copy}:Replies", samples=1, num_problems=2)
    run(checkpoint, tmp_path / "w", **fields)
    copy.write_text(source + "# other\n")
    with pytest.raises(ValueError, match="\n  results .complete.: code"):
        run(checkpoint, tmp_path / "w", **fields)


def test_a_plan_has_the_programs_that_read_texts(checkpoint):
    """Oracle: the plan of single turns, and by hand the sizes in which texts are read."""
    fields = dict(checkpoint=str(checkpoint), data=("arithmetic",), max_completion_length=48)
    plans = []
    for more in ({}, dict(environment=REPLIES, conversation=LIMITS)):
        settings = build(evaluate.SETTINGS, dict(recipe="evaluate") | fields | more, "config")
        planned = driver.plan(evaluate, settings, one_device())
        plans.append({program.name for program in planned})
    read = plans[1] - plans[0]
    assert plans[0] < plans[1] and len(read) == len(CHUNKS)
    assert all("read" in name for name in read)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(environment=None), "config: conversation is given, but neither tools nor"),
        (dict(environment="nowhere.py:E"), "config.environment: there is no file nowhere.py"),
        (dict(conversation=dict(turn_length=49)), "config.conversation.turn_length=49 is above"),
        (dict(accuracy="Replays"), "Replays=1.0 is not of a reward; allowed:"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(checkpoint, tmp_path, fields, words):
    """Oracle: the words a reader needs, and an empty work directory."""
    with pytest.raises(ValueError) as error:
        run(checkpoint, tmp_path, **fields)
    assert_names(error, words)
    assert not list(tmp_path.iterdir())
