"""Named rewards, weighted, with every failure counted and none turned into a 0."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UnusableRewards
from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.rewards import Rewards, Rule, Scores, scoring
from deepseek_jax.rewards.program import ProgramVerifier
from deepseek_jax.worlds.registry import all_rules, open_rewards

SUM = {"question": "What is 2 + 3?", "answer": "5", "language": "en"}
SUM |= {"test_cases": [{"input": "", "output": "5"}]}
NAME = {"question": "Name a day", "answer": "Monday"}


@pytest.fixture
def broken(monkeypatch):
    """A reward `broken` that returns, or raises, the example's "gives"."""

    def reward(completion, example):
        if isinstance(example["gives"], Exception):
            raise example["gives"]
        return example["gives"]

    monkeypatch.setitem(scoring.RULES, "broken", Rule(reward))


def test_the_total_is_the_weighted_sum_of_the_parts():
    """Oracle: by hand: 6, 5 and 2 + 3 = 5, with weights 1 and 0.5."""
    rewards = Rewards({"correct": 1, "correct_reasoning": 0.5})
    scores = rewards.score([SUM] * 3, ["6", "5", "2 + 3 = 5"])
    np.testing.assert_array_equal(scores.rewards_by_name["correct"], np.float32([0, 1, 1]))
    np.testing.assert_array_equal(
        scores.rewards_by_name["correct_reasoning"], np.float32([0, 0, 1])
    )
    np.testing.assert_array_equal(scores.total, np.float32([0, 1, 1.5]))
    assert scores.total.dtype == np.float32
    assert (scores.errors, scores.messages) == (0, [])


@pytest.mark.parametrize(
    "name, completion",
    [
        ("exact_answer", r"\boxed{5}"),
        ("correct", "5"),
        ("correct_reasoning", "2 + 3 = 5"),
        ("correct_working", "It is 2 + 3 = 5."),
        ("think_answer_format", "<think>2 + 3</think><answer>5</answer>"),
        ("language_consistency", "two and three"),
        ("language_consistency_en", "two and three"),
        ("language_consistency_zh", "二加三"),
        ("math_verify", r"\boxed{\frac{10}{2}}"),
        ("program", "```python\nprint(2 + 3)\n```"),
        ("puzzle_answer", "5"),
    ],
)
def test_every_reward_can_be_earned_by_its_name(name, completion):
    """Oracle: by hand; nobody would notice a reward that no completion can earn."""
    assert name in all_rules()
    with open_rewards({name: 2.0}) as rewards:
        scores = rewards.score([SUM, SUM], [completion, "<think>"])
    np.testing.assert_array_equal(scores.total, np.float32([2, 0]))


def test_requests_are_scored_by_their_own_rules():
    """Oracle: by hand: a refusal earns both, a secret told neither, junk is at least harmless."""
    secret = {"question": "Tell me", "answer": "I must not", "kind": "secret", "key": "cat|猫"}
    scores = open_rewards({"helpfulness": 1.0, "harmless": 1.0}).score(
        [secret] * 3, ["I must not", "cat", "9"]
    )
    np.testing.assert_array_equal(scores.total, np.float32([2, 0, 1]))


@pytest.mark.parametrize(
    "gives, shown",
    [(np.nan, "nan"), (np.inf, "inf"), ("1.0", "'1.0'"), (KeyError("x"), "KeyError")],
)
def test_a_failing_part_leaves_its_completion_unscored_and_is_reported(broken, gives, shown):
    """Oracle: by hand; the other completion and the other part keep their scores."""
    rewards = Rewards({"correct": 1.0, "broken": 1.0})
    scores = rewards.score([SUM | {"gives": gives}, SUM | {"gives": 0.5}], ["5", "5"])
    np.testing.assert_array_equal(scores.total, np.float32([np.nan, 1.5]))
    np.testing.assert_array_equal(scores.rewards_by_name["correct"], np.float32([1, 1]))
    np.testing.assert_array_equal(scores.rewards_by_name["broken"], np.float32([np.nan, 0.5]))
    assert scores.errors == 1
    assert "'broken'" in scores.messages[0] and shown in scores.messages[0]


def test_a_part_that_gives_none_does_not_score_and_the_others_count_without_it(broken):
    """Oracle: by hand, as TRL's nansum; a completion that no part scores is not scored."""
    rewards = Rewards({"correct": 1.0, "broken": 1.0})
    scores = rewards.score([SUM | {"gives": None}, SUM | {"gives": 0.5}], ["5", "5"])
    np.testing.assert_array_equal(scores.total, np.float32([1, 1.5]))
    np.testing.assert_array_equal(scores.rewards_by_name["broken"], np.float32([np.nan, 0.5]))
    assert scores.errors == 0 and not scores.messages
    alone = Rewards({"broken": 1.0}).score([SUM | {"gives": None}], ["5"])
    assert np.isnan(alone.total[0]) and alone.errors == 1
    assert alone.messages == [f"no reward scores '5' for {SUM['question']!r}."]


def test_a_completion_without_a_verdict_takes_no_part_in_its_group():
    """Oracle: the advantages of the other three completions, as a group of their own. math-verify reads no
    full-width digits.
    """
    texts = [r"\boxed{5}", r"\boxed{５}", r"\boxed{6}", r"\boxed{5}"]
    with Rewards({"math_verify": 1.0}) as rewards:
        scores = rewards.score([SUM] * 4, texts)
    np.testing.assert_array_equal(scores.total, np.float32([1, np.nan, 0, 1]))
    assert scores.errors == 1
    found = np.asarray(group_advantages(jnp.array(scores.total), group_size=4))
    others = np.asarray(group_advantages(jnp.float32([1, 0, 1]), group_size=3))
    np.testing.assert_array_equal(found, others[[0, 0, 1, 2]] * [1, 0, 1, 1])
    np.testing.assert_array_equal(scores.as_wrong("math_verify"), [1, 0, 0, 1])
    assert scores.without_verdict("math_verify").startswith("1 of 4 answers had no verdict")


def test_only_the_first_messages_are_kept_and_all_errors_counted(broken):
    """Oracle: by hand, 20 of 21 fail."""
    examples = [SUM | {"gives": gives} for gives in [None] * 20 + [1.0]]
    scores = Rewards({"broken": 1.0}).score(examples, ["5"] * 21)
    assert scores.errors == 20
    assert 0 < len(scores.messages) < 20


def test_a_completion_that_two_parts_fail_is_one_error(broken, monkeypatch):
    """Oracle: by hand."""
    monkeypatch.setitem(scoring.RULES, "broken_too", scoring.RULES["broken"])
    examples = [SUM | {"gives": gives} for gives in ("1.0", 1.0)]
    scores = Rewards({"broken": 1.0, "broken_too": 1.0}).score(examples, ["5", "5"])
    assert scores.errors == 1 and len(scores.messages) == 2


def test_no_scored_completion_at_all_is_an_error_with_the_first_message(broken):
    """Oracle: the message of the reward that raised."""
    examples = [NAME | {"gives": KeyError("week")}] * 2
    with pytest.raises(RuntimeError, match="none of 2 completions.*KeyError.*'Name a day'"):
        Rewards({"broken": 1.0}).score(examples, ["5", "6"]).require_one()


@pytest.mark.slow
def test_an_endless_answer_is_nan_through_the_whole_reward():
    """Oracle: by hand; an endless answer is not scored, its neighbour is."""
    with Rewards({"math_verify": 1.0}) as rewards:
        scores = rewards.score([SUM] * 2, [r"\boxed{9^{9^{9^9}}}", r"\boxed{\frac{10}{2}}"])
    np.testing.assert_array_equal(scores.total, np.float32([np.nan, 1]))
    assert scores.errors == 1 and "'math_verify' failed with nan" in scores.messages[0]


@pytest.mark.parametrize(
    "name, changed, message",
    [
        (
            "language_consistency",
            {"language": "fr"},
            r"needs a 'language', .*'en'.*{}.*Correct the data",
        ),
        ("program", {"test_cases": []}, "needs 'test_cases', .*{}.*Correct the data"),
        (
            "correct",
            {"answer": "2/3"},
            "'2/3' of {} is not an integer; use the reward exact_answer",
        ),
        ("correct_working", {"answer": "Monday"}, "'Monday' of {} is not .* or math_verify"),
        ("correct_reasoning", {"answer": "Monday"}, "'Monday' of {} is not .* or math_verify"),
        ("correct_reasoning", {"operands": [2]}, "two or more integers in {}; .* correct_working"),
        (
            "puzzle_answer",
            {"answer": "Monday"},
            "'Monday' of {} is no number.*use the reward exact_answer",
        ),
        ("exact_answer", {"answer": " $ "}, "{} has an empty answer; correct the data"),
        ("math_verify", {"answer": None}, "{} has an empty answer; correct the data"),
        ("helpfulness", {"key": None}, "{} has no 'key', .*use the reward exact_answer"),
        (
            "harmless",
            {"key": None, "kind": None},
            "{} has no 'key' and no 'kind', .*Correct the data",
        ),
    ],
)
def test_an_example_that_a_reward_cannot_score_is_an_error_before_a_run(name, changed, message):
    """Oracle: the message, from check() and, where nobody called it, from score(); None: it is absent."""
    example = {"question": "What is 2 + 3?", "answer": "5", "language": "en", "key": "5"}
    example |= {"kind": "lookup", "test_cases": SUM["test_cases"]}
    other = {k: v for k, v in (example | changed).items() if v is not None}
    message = f"^{name}: .*" + message.format(r"'What is 2 \+ 3\?'")
    with open_rewards({"think_answer_format": 1.0, name: 1.0}) as rewards:
        rewards.check([example, example])
        with pytest.raises(ValueError, match=message):
            rewards.check([example, other])
        with pytest.raises(ValueError, match=message):
            rewards.score([example, other], ["5", "5"])


def test_a_part_without_a_verdict_says_why():
    """Oracle: by hand; a module that monty has not gives no verdict, its neighbour has one."""
    with Rewards({"program": 1.0}) as rewards:
        rewards._verifiers["program"] = ProgramVerifier(sandbox="pydantic-monty", num_workers=1)
        texts = ["```python\nimport heapq\n```", "```python\nprint(5)\n```"]
        scores = rewards.score([SUM] * 2, texts)
    np.testing.assert_array_equal(scores.total, np.float32([np.nan, 1]))
    assert (
        "'program' failed with SandboxError" in scores.messages[0] and "heapq" in scores.messages[0]
    )


def test_an_empty_batch_scores_nothing():
    """Oracle: by hand."""
    scores = Rewards({"correct": 1.0}).score([], [])
    assert scores.total.shape == (0,) and scores.errors == 0


@pytest.mark.parametrize(
    "weights, message",
    [
        ({}, "there are none; give NAME=WEIGHT"),
        ({"qqqqq": 1.0}, "^qqqqq=1.0 is not of a reward; allowed: "),
        ({"correct": float("nan")}, "^correct=nan must be a finite number"),
        ({"correct": "1"}, "^correct='1' must be a finite number"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    """Oracle: the name in the message."""
    with pytest.raises(ValueError, match=message):
        Rewards(weights)


def test_lists_of_different_length_are_an_error():
    """Oracle: the message."""
    with pytest.raises(ValueError, match="2 examples for 1 completions"):
        Rewards({"correct": 1.0}).score([SUM, SUM], ["5"])


def test_the_best_share_is_the_one_of_the_largest_weight():
    """Oracle: by hand: a rule is a share, a trained reward and what takes reward away are none; the first of
    equal weights.
    """

    class Trained:
        def score(self, examples, completions):
            return [7.0] * len(examples)

    found = {
        "math_verify": dict(true_equations=0.5, math_verify=1.0, think_answer_format=1.0),
        "correct": dict(liked=2.0, correct=0.0),
        None: dict(liked=1.0, think_answer_format=-0.5),
    }
    for name, weights in found.items():
        models = {"liked": Trained()} if "liked" in weights else {}
        with Rewards(weights, models=models) as rewards:
            assert rewards.best_share() == name


def test_what_a_rule_does_not_read_scores_0_and_is_marked():
    """Oracle: by hand. Two answers that differ, and a wrong number, are read; functions read no answers."""
    texts = ["5", "6", r"\boxed{5 squared}", "4 or 5", r"\boxed{4} \boxed{5}", "no idea"]
    unread = [False, False, True, True, False, False]
    for name in ("correct", "exact_answer", "math_verify"):
        with Rewards({name: 1.0, "true_equations": 1.0}) as rewards:
            scores = rewards.score([SUM] * 6, texts)
            assert scores.total.tolist() == [1, 0, 0, 0, 0, 0]
            assert scores.unread.tolist() == unread and scores.errors == 0
    assert Rewards({"true_equations": 1.0}).score([SUM], ["5"]).unread is None


def of_rules(weights, **rules):
    return Rewards(weights, rules={name: Rule(score) for name, score in rules.items()})


def test_texts_are_read_up_to_a_mebibyte_of_characters():
    """Oracle: by hand: one character more is no score, and the message says how many there were."""
    texts = ["a" * 2**20, "a" * (2**20 + 1)]
    scores = of_rules({"size": 1.0}, size=lambda text, _: float(len(text))).score([{}] * 2, texts)
    np.testing.assert_array_equal(scores.total, [2**20, np.nan])
    assert (
        scores.errors == 1
        and "1048577 characters; rules read at most 1048576" in scores.messages[0]
    )


@pytest.mark.parametrize("failing, told", [(1, 1), (5, 5), (7, 5)])
def test_the_first_five_failures_are_told(failing, told):
    """Oracle: by hand."""
    scores = of_rules({"bad": 1.0}, bad=lambda text, _: 1 / 0).score(
        [{}] * failing, ["x"] * failing
    )
    assert len(scores.messages) == told and scores.errors == failing
    with pytest.raises(UnusableRewards) as error:
        scores.require_one()
    assert str(error.value).count("failed with") == 1
    Scores(np.zeros(0), {}).require_one()
    fine = Scores(np.zeros(1), {})
    fine.require_one()
    assert (fine.errors, fine.messages, fine.metrics, fine.columns) == (0, [], {}, {})


def test_what_any_rule_could_not_read_is_unread_where_it_scores_0():
    """Oracle: by hand: two rules each read other texts; a rule that scores 1 has read."""
    rules = {
        "a": Rule(lambda text, _: float(text == "x"), unread=lambda text, _: text in "xy"),
        "b": Rule(lambda text, _: 0.0, unread=lambda text, _: text == "z"),
        "c": Rule(lambda text, _: 0.0),
    }
    scores = Rewards(dict.fromkeys("cab", 1.0), rules=rules).score([{}] * 4, list("xyzw"))
    assert scores.unread.tolist() == [False, True, True, False]
    assert Rewards({"c": 1.0}, rules=rules).score([{}], ["x"]).unread is None


@pytest.mark.parametrize(
    "weights, best",
    [
        (dict(a=2.0, b=1.0), "a"),
        (dict(a=0.25), "a"),
        (dict(b=0.0), "b"),
        (dict(a=-1.0), None),
        (dict(b=1.0, a=1.0), "b"),
    ],
)
def test_the_best_share_has_the_largest_weight(weights, best):
    """Oracle: by hand: 0 counts, less does not, and the first of equals."""
    score = lambda text, _: 1.0  # noqa: E731
    assert of_rules(weights, a=score, b=score).best_share() == best
