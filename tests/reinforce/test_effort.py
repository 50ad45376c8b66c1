"""Reasoning efforts: the price of length, and the steps of questions that are asked with one effort each."""

import numpy as np
import pytest

from deepseek_jax.models import random_params
from deepseek_jax.reinforce import effort
from deepseek_jax.reinforce.effort import (
    EffortSettings,
    asked_with,
    check_line,
    check_lines,
    length_penalty,
    with_efforts,
    with_length_penalty,
)
from deepseek_jax.rewards import Rewards, Rule, Scores, scoring
from deepseek_jax.rollout import Policy
from deepseek_jax.settings import build
from deepseek_jax.training.state import TrainState
from tests.recipes.small import one_device
from tests.reinforce.test_grpo import EXAMPLES, POLICY, TOKENIZER, make_source

VALUES = (50, 75, 100)
FIELDS = dict(values=VALUES, line="{effort}; ", k0=2.0, tau=25.0, max_penalty=0.75, norm_length=48)
SETTINGS = build(EffortSettings, FIELDS, "config.effort")
ASKED = Policy(POLICY, None, TOKENIZER, "{question}\n").with_prompts(
    with_efforts(SETTINGS, EXAMPLES[:40])
)


def test_the_penalty_is_the_papers():
    """Oracle: by hand: k is 2, 2/e and 2/e^2 at b_min, b_min + tau and b_min + 2 tau; 12 of 48 tokens are a
    quarter; 0.75 is the most. 1e-7: float32.
    """
    e = 2.718281828459045
    cases = {
        (50, 12): 2 / 4,
        (50, 18): 0.75,
        (50, 48): 0.75,
        (75, 12): 2 / e / 4,
        (75, 48): 2 / e,
        (75, 96): 0.75,
        (100, 12): 2 / e / e / 4,
        (100, 96): 4 / e / e,
    }
    efforts, lengths = zip(*cases, strict=True)
    found = length_penalty(lengths, efforts, SETTINGS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-cost for cost in cases.values()], rtol=1e-7)


def test_the_scale_of_the_price_is_that_of_the_lowest_effort_asked():
    """Oracle: by hand: b_min is 75, so k(75) is k0."""
    settings = build(EffortSettings, FIELDS | {"values": (100, 75)}, "config.effort")
    np.testing.assert_allclose(length_penalty([12], [75], settings), [-0.5], rtol=1e-7)


def test_a_penalty_is_a_part_of_the_reward_and_no_verdict_stays_none():
    """Oracle: by hand, with price 2 / 48 a token at effort 50."""
    total = np.float32([1, 0, np.nan])
    scores = Scores(total, {"correct": total}, errors=1, messages=["m"])
    examples = [{"effort": 50}] * 3
    found = with_length_penalty(SETTINGS, examples, [6, 12, 12], scores)
    np.testing.assert_allclose(found.total, [0.75, -0.5, np.nan], rtol=1e-6)
    np.testing.assert_allclose(
        found.rewards_by_name["length_penalty"], [-0.25, -0.5, -0.5], rtol=1e-6
    )
    assert found.rewards_by_name["correct"] is total and (found.errors, found.messages) == (
        1,
        ["m"],
    )


def test_each_question_is_asked_with_each_effort():
    """Oracle: the prompts by hand; the world's digits spell the effort."""
    assert len(ASKED) == 120
    for index, example in enumerate(ASKED):
        effort, asked = VALUES[index % 3], EXAMPLES[index // 3]
        assert example["effort"] == effort and example["question"] == asked["question"]
        text = f"{effort}; {asked['question']}\n"
        assert example["prompt_ids"] == TOKENIZER.encode(text)
    assert [e["question"] for e in asked_with(75, ASKED)] == [e["question"] for e in EXAMPLES[:40]]


def by_length(completion, example):
    return len(completion) / 100


@pytest.fixture(scope="module")
def state():
    return TrainState(step=None, params=random_params(POLICY, one_device(), 0), opt_state=None)


def test_a_group_shares_its_effort_and_pays_its_price(state, monkeypatch):
    """Oracle: rewards by hand of the texts that were sampled, and the penalty of their tokens; metrics of the
    same numbers. 1e-6: float32.
    """
    monkeypatch.setitem(scoring.RULES, "correct", Rule(by_length))
    source = make_source(questions=ASKED, prompts_per_step=6, effort=FIELDS)
    groups, _ = source._sample(state.params, 0)
    assert len({group["effort"] for group in groups}) > 1
    for group in groups:
        assert TOKENIZER.decode(group["prompt_ids"]).startswith(f"{group['effort']}; What")
        lengths = group["rollout"].lengths
        texts = [TOKENIZER.decode(ids) for ids in group["rollout"].tokens()]
        rewards = [by_length(text, None) for text in texts]
        price = 2 * np.exp(-(group["effort"] - 50) / 25) / 48
        wanted = rewards - np.minimum(0.75, price * lengths)
        np.testing.assert_allclose(group["rewards"], wanted, atol=1e-6)
        np.testing.assert_allclose(group["parts"]["correct"], rewards, atol=1e-6)
    metrics = source.next(state, 1)[1]
    means = {n: v for n, v in metrics.items() if n.startswith("completion_length_effort_")}
    assert min(means.values()) <= metrics["completion_length"] <= max(means.values())
    assert metrics["reward_length_penalty"] < 0
    assert set(means) == {
        n.replace("accuracy", "completion_length")
        for n in metrics
        if n.startswith("accuracy_effort_")
    }


def test_a_source_that_resumes_asks_with_the_same_efforts():
    """Oracle: a source that nothing interrupted; and the shuffle, in which no effort is left out."""
    source, resumed = (make_source(questions=ASKED, effort=FIELDS) for _ in range(2))
    whole = source._take(len(ASKED))
    resumed.set_state({"position": 50, "degenerate": {}})
    assert resumed._take(len(ASKED) - 50) == whole[50:]
    pairs = {(example["question"], example["effort"]) for example in whole}
    assert len(pairs) == len(ASKED)
    assert [example["effort"] for example in whole[:12]] != [e["effort"] for e in ASKED[:12]]


def test_without_efforts_nothing_is_added(state, monkeypatch):
    """Oracle: the rewards' own scores, bit for bit."""
    monkeypatch.setitem(scoring.RULES, "correct", Rule(by_length))
    source = make_source()
    groups, _ = source._sample(state.params, 0)
    rewards = Rewards(source.settings.rewards)
    for group in groups:
        texts = [TOKENIZER.decode(ids) for ids in group["rollout"].tokens()]
        scores = rewards.score([EXAMPLES[0]] * len(texts), texts)
        np.testing.assert_array_equal(group["rewards"], scores.total)
        assert group["parts"].keys() == scores.rewards_by_name.keys() and group["effort"] is None
    assert not [name for name in source.next(state, 1)[1] if "effort" in name or "penalty" in name]


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(values=(50, 0)), "config.effort.values[1]=0 must be within 1..100"),
        (dict(values=(101,)), "config.effort.values[0]=101 must be within 1..100"),
        (dict(values=()), "config.effort.values=() must be one or more different efforts"),
        (dict(values=(50, 50)), "config.effort.values=(50, 50) must be one or more different"),
        (dict(line="{effort} {question}"), "must be a text with {effort} in it, and without"),
        (dict(norm_length=4, max_penalty=0.5), "k0=2.0 makes one token cost 0.5 at effort 50"),
        (dict(line="Think!"), "config.effort.line='Think!' must be a text with {effort} in it"),
        (dict(norm_length=2), "config.effort.k0=2.0 makes one token cost 1 at effort 50"),
    ],
)
def test_efforts_that_cannot_be_asked_are_refused(fields, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError) as error:
        build(EffortSettings, FIELDS | fields, "config.effort")
    assert words in str(error.value)


def test_a_right_answer_earns_more_than_the_most_that_length_costs():
    """Oracle: by hand: 0.75 is below a reward of 1, and not below 0.75, whatever else costs something."""
    SETTINGS.check_against({"right": 1.0, "slow": -9.0}, "rewards")
    with pytest.raises(ValueError, match="^effort.max_penalty=0.75 must be below 0.75, .*rewards"):
        SETTINGS.check_against({"right": 0.25, "form": 0.5, "slow": -9.0}, "rewards")


def test_a_line_of_words_that_a_tokenizer_does_not_know_is_refused():
    """Oracle: the words a reader needs: this world has digits, and no word for effort."""
    check_lines(SETTINGS, TOKENIZER, "{question}\n")
    with pytest.raises(ValueError, match="^line='Effort 75: ' has words that this tokenizer"):
        check_line(TOKENIZER, "Effort 75: ", "{question}\n")
    spelled = build(EffortSettings, FIELDS | {"line": "{effort} words"}, "config.effort")
    with pytest.raises(ValueError, match="^line='50 words' has words"):
        check_lines(spelled, TOKENIZER, "{question}\n")


@pytest.mark.parametrize(
    "leaves_out, words", [(False, None), (True, "leaves a system message out")]
)
def test_a_chat_template_has_to_say_the_line(monkeypatch, leaves_out, words):
    """Oracle: the words a reader needs, of a template that joins its messages, or leaves the first out; one
    that raises is quoted.
    """
    asked = []

    def by_template(tokenizer, messages, *, tokenize):
        asked.append((tokenizer, tokenize))
        return "|".join(message["content"] for message in messages[leaves_out:])

    monkeypatch.setattr(effort, "by_template", by_template)
    if words is None:
        check_line(TOKENIZER, "Effort 75\n", "chat")
    else:
        with pytest.raises(ValueError, match=f"^line='Effort 75.n' has no room .* {words}"):
            check_line(TOKENIZER, "Effort 75\n", "chat")
    assert asked == [(TOKENIZER, False)]

    def refuses(*given, **more):
        raise ValueError("No system here")

    monkeypatch.setattr(effort, "by_template", refuses)
    with pytest.raises(ValueError, match="refuses a system message .No system here"):
        check_line(TOKENIZER, "Effort 75\n", "chat")
