"""A judge as a reward. Here ask() answers by a rule; recipes.judge asks a policy."""

import numpy as np
import pytest

from deepseek_jax.rewards import Rewards
from deepseek_jax.rewards.judge import Judge, judge_question, reader_text, verdict

EXAMPLES = [{"question": "Say it", "answer": "four"}] * 4


def answers(reply):
    """ask() of a judge that prefers the one of two answers that `reply` returns: 1, 2 or anything else."""

    def ask(questions):
        pairs = [[line[4:] for line in question.split("\n")[1:]] for question in questions]
        return [f"<think>2</think><answer>{reply(*pair)}</answer>" for pair in pairs]

    return ask


@pytest.mark.parametrize(
    "reply, wanted",
    [
        ("<think>2 is bad</think><answer>1</answer>", 1),
        ("<answer> 2 </answer>", 2),
        # Two verdicts are none; the last one counted once
        ("<answer>1</answer><answer>2</answer>", None),
        ("<think><answer>1</answer></think>2", None),
        ("<answer>12</answer>", None),
        ("1", None),
        ("", None),
    ],
)
def test_a_verdict_is_what_the_tags_behind_the_thought_hold(reply, wanted):
    """Oracle: by hand."""
    assert verdict(reply) == wanted


def test_a_completion_is_compared_with_the_reference_in_both_orders():
    """Oracle: by hand: a judge that prefers the longer text, one that always says the first, and one that
    cannot decide. Tags and thoughts are not compared.
    """
    completions = ["<think>a long thought</think><answer>seven</answer>", "two", "four", "fourteen"]
    longer = Judge(answers(lambda a, b: 1 if len(a) > len(b) else 2))
    assert longer.score(EXAMPLES, completions) == [1.0, 0.0, 0.5, 1.0]
    first = Judge(answers(lambda a, b: 1))
    assert first.score(EXAMPLES, completions) == [0.5, 0.5, 0.5, 0.5]
    silent = Judge(answers(lambda a, b: "none")).score(EXAMPLES, completions)
    assert [isinstance(r, ValueError) for r in silent] == [True, True, False, True]


def test_a_single_verdict_counts_where_the_other_order_has_none():
    """Oracle: by hand: this judge is silent when the completion stands first."""
    judge = Judge(answers(lambda a, b: "?" if a == "two" else 2))
    assert judge.score(EXAMPLES[:1], ["two"]) == [1.0]


def test_a_judge_is_weighed_beside_rules():
    """Oracle: by hand; a question that could not be asked is not scored."""

    def ask(questions):
        return [ValueError("no") if "?" in q else "<answer>1</answer>" for q in questions]

    rewards = Rewards({"judged": 2.0}, models={"judged": Judge(ask)})
    scores = rewards.score(EXAMPLES[:2], ["two", "?"])
    np.testing.assert_array_equal(scores.total, np.float32([1.0, np.nan]))
    assert scores.errors == 1 and "no verdict" in scores.messages[0]


def test_the_readers_text_keeps_the_spaces_of_its_words():
    """Oracle: by hand; "red " is a word of the bilingual world, and "red" is not."""
    assert reader_text("<think>easy</think>\n\n<answer>the red </answer>") == "the red "
    assert reader_text(" no") == " no"


def test_what_is_asked_shows_both_answers():
    """Oracle: by hand."""
    assert judge_question("Say it", "two", "four") == "Say it\n1 = two\n2 = four"
