"""Held-out scores against the same rollout scored by hand."""

import itertools
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from rich.console import Console

from configs import models
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.evaluation import held_out
from deepseek_jax.evaluation.accuracy import length_interval, mean_interval, wilson_interval
from deepseek_jax.evaluation.held_out import evaluate, evaluate_both, scores_of_both
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.reports import print_table
from deepseek_jax.rewards import Rewards, Rule, Scores, scoring
from deepseek_jax.rewards.quantity import last_quantity
from deepseek_jax.rollout import Rollout, generate
from deepseek_jax.rollout.answers import Answers, completion_texts
from deepseek_jax.rollout.completions import MeasuredLog
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import AnswerOptions
from deepseek_jax.worlds.arithmetic.tasks import arithmetic_task
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.rollout.conversing import asked, talking
from tests.tiny import tiny_model

TOKENIZER = arithmetic_tokenizer()
CONFIG = ModelConfig(**models.deepseek_v3_tiny(vocab_size=TOKENIZER.vocab_size))
OPTIONS = AnswerOptions(max_completion_length=12, slots=8)
SAMPLING = dict(
    max_completion_length=12, temperature=1.0, eos_ids=(TOKENIZER.eos_id,), seed=0, slots=8
)


def even_length(completion, example):
    """A reward that random completions earn about half of the time."""
    return 1.0 - len(completion) % 2


def raises(completion, example):
    if len(completion) % 2:
        raise ZeroDivisionError("odd")
    return 1.0


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(lambda rng: init_params(CONFIG, rng))(jax.random.key(0)))


def evaluated(params, examples, weights, accuracy):
    policy = Policy(CONFIG, params, TOKENIZER, "{question}\n")
    prompts = [TOKENIZER.encode(example["question"] + "\n") for example in examples]
    with Rewards(weights) as rewards:
        asked = policy.with_prompts(examples)
        return prompts, evaluate(policy, asked, rewards, OPTIONS, accuracy=accuracy)


def test_scores_are_those_of_the_rollout_scored_by_hand(params, monkeypatch):
    """Oracle: generate with the same settings, each text scored here, and accuracy's intervals."""
    monkeypatch.setitem(scoring.RULES, "even_length", Rule(even_length))
    examples = arithmetic_task(0, 10).held_out
    weights = {"even_length": 2.0, "correct": 1.0}
    prompts, result = evaluated(params, examples, weights, "even_length")

    rollout = generate(CONFIG, params, prompts, **SAMPLING)
    texts = completion_texts(TOKENIZER, prompts, rollout)
    even = [even_length(text, None) for text in texts]
    right = [
        text.strip() == example["answer"] for text, example in zip(texts, examples, strict=True)
    ]
    assert not any(right)  # a random model: so that `correct` is known without its rule
    scores = result["scores"]
    assert 0 < sum(even) < 10
    assert scores["accuracy"] == (np.mean(even), *wilson_interval(int(sum(even)), 10))
    assert scores["correct"] == (0, *wilson_interval(0, 10))
    np.testing.assert_allclose(scores["reward"], mean_interval(2 * np.array(even)))
    np.testing.assert_allclose(
        scores["completion_length"], length_interval(rollout.completion_mask.sum(1))
    )
    assert scores["truncated"][0] == rollout.truncated.mean()
    assert "even_length" not in scores
    assert result["samples"] == [
        {
            "prompt": examples[i]["question"],
            "completion": texts[i],
            "reward": 2 * even[i],
            "parts": {"even_length": even[i], "correct": 0.0},
            "right": bool(even[i]),
            # Random text with a digit may end in no number that stands for itself
            "unread": last_quantity(texts[i]) is None and any(map(str.isdigit, texts[i])),
            "length": rollout.completion_mask[i].sum(),
            "truncated": bool(rollout.truncated[i]),
            "columns": {
                "answer": examples[i]["answer"],
                "operands": str(examples[i]["operands"]),
            },
        }
        for i in range(10)
    ]


def test_samples_of_conversations_have_their_messages():
    """Oracle: Policy.answer's conversations."""
    with talking(*tiny_model("gqa")) as policy:
        options = AnswerOptions(max_completion_length=40, slots=4)
        examples = asked(policy)
        conversations = policy.answer(examples, options, seed=3).conversations
        result = evaluate(policy, examples, None, options, accuracy=None, seed=3)
    found = [sample["messages"] for sample in result["samples"]]
    assert found == [conversation.messages for conversation in conversations]
    assert any(message["role"] == "user" for message in found[0])


def test_answers_that_cannot_be_scored_count_as_wrong_and_are_counted(params, monkeypatch, capsys):
    """Oracle: by hand: the texts of odd length are not scored, and all others earn 1."""
    monkeypatch.setitem(scoring.RULES, "raises", Rule(raises))
    examples = arithmetic_task(0, 10).held_out
    prompts, result = evaluated(params, examples, {"raises": 1.0}, "raises")
    texts = completion_texts(TOKENIZER, prompts, generate(CONFIG, params, prompts, **SAMPLING))
    odd = [len(text) % 2 == 1 for text in texts]
    assert 0 < sum(odd) < 10
    assert result["unscored"] == sum(odd)
    right = 10 - sum(odd)
    assert result["scores"]["accuracy"] == (right / 10, *wilson_interval(right, 10))
    assert [s["reward"] for s in result["samples"]] == [None if o else 1.0 for o in odd]
    assert [s["right"] for s in result["samples"]] == [not o for o in odd]
    said = capsys.readouterr().out
    assert f"{sum(odd)} of 10 held-out answers could not be scored" in said
    assert "ZeroDivisionError" in said


def test_a_reward_of_a_single_number_is_left_out_of_the_table(params, monkeypatch):
    """Oracle: by hand: one of eight answers is scored: the accuracy is an eighth, with Wilson's interval, and
    one number of a reward has none.
    """
    calls = itertools.count()

    def once(completion, example):
        return 1.0 if next(calls) == 0 else None

    monkeypatch.setitem(scoring.RULES, "once", Rule(once))
    _, result = evaluated(params, arithmetic_task(0, 8).held_out, {"once": 1.0}, "once")
    assert result["unscored"] == 7 and "reward" not in result["scores"]
    assert result["scores"]["accuracy"] == (1 / 8, *wilson_interval(1, 8))
    console = Console(record=True, width=100)
    print_table(console, {"greedy": result}, {"greedy": result})
    assert "greedy: 7 answers before and 7 after training had no score" in console.export_text()


def test_answers_none_of_which_can_be_scored_are_an_error_and_no_zero(params, monkeypatch):
    """Oracle: the message holds the reward's own exception."""
    monkeypatch.setitem(scoring.RULES, "raises", Rule(lambda completion, example: 1 / 0))
    with pytest.raises(RuntimeError, match="none of 10 .*ZeroDivisionError"):
        evaluated(params, arithmetic_task(0, 10).held_out, {"raises": 1.0}, "raises")


def test_completion_texts_leave_out_the_end_token_and_what_lies_behind_it():
    """Oracle: by hand, the second row empty."""
    twelve = TOKENIZER.encode("1 + 2")
    ids = np.array([[*twelve, TOKENIZER.eos_id, 0], [0, 5, 5, 5, 5]], np.int32)
    mask = np.arange(5) < np.array([[4], [0]])
    rollout = Rollout(ids, mask, np.zeros((2, 5), np.float32), np.zeros(2, bool))
    assert list(completion_texts(TOKENIZER, [[5], [6]], rollout)) == ["1 + 2", ""]
    assert list(completion_texts(TOKENIZER, [[5]], rollout)) == ["1 + 2", ""]  # two of one prompt


@pytest.mark.parametrize("opened", ["<think>", "<think>\n", "<think>\n\n"])
def test_a_completion_that_was_cut_off_within_the_thought_its_prompt_opened_earns_nothing(opened):
    """Oracle: by hand: the same words as an answer, or in a thought that does not end."""
    tokenizer = byte_tokenizer()
    prompts = [tokenizer.encode("2 + 3?" + opened), tokenizer.encode("<think></think>2 + 3?")]
    written = ["it is 5", "it is</think><answer>5</answer>"]
    ids = [tokenizer.encode(text) for text in written] * 2  # both of each prompt
    mask = np.arange(40) < np.array([[len(row)] for row in ids])
    padded = np.array([row + [0] * (40 - len(row)) for row in ids], np.int32)
    rollout = Rollout(padded, mask, np.zeros(mask.shape, np.float32), np.zeros(4, bool))
    texts = completion_texts(tokenizer, prompts, rollout)
    assert list(texts) == [opened + text for text in written] + written
    with Rewards({"exact_answer": 1.0, "think_answer_format": 1.0}) as rewards:
        found = rewards.score([{"question": "2 + 3?", "answer": "5"}] * 4, texts)
    assert found.rewards_by_name["exact_answer"].tolist() == [0, 1, 1, 1]
    assert found.rewards_by_name["think_answer_format"].tolist() == [0, 1, 0, 0]


class Answering:
    """A policy whose answers to question i have i + 1 tokens, of which the last is cut off."""

    def __init__(self, conversations=None):
        self.conversations, self.asked = conversations, []

    def answer(self, examples, options, **more):
        self.asked.append((options, more))
        n = len(examples)
        mask = np.arange(n) < 1 + np.arange(n)[:, None]
        shape = np.zeros(mask.shape, np.float32)
        rollout = Rollout(mask.astype(np.int32), mask, shape, np.arange(n) == n - 1)
        return Answers([f"text {i}" for i in range(n)], rollout, 1, [], self.conversations)


class Scored:
    """Rewards that give these Scores."""

    def __init__(self, total, unread=None, errors=0, **parts):
        parts = {name: np.float32(part) for name, part in parts.items()}
        self.scores = Scores(np.float32(total), parts, errors, ["why"] * errors, {}, {}, unread)
        self.scores.columns = {"row": list(range(len(total)))}

    def score_together(self, examples, texts, ids):
        return self.scores


def questions(n):
    return [{"question": f"q{i}", "answer": i, "prompt_ids": [i]} for i in range(n)]


def test_answers_are_scored_and_the_first_of_them_kept(capsys):
    """Oracle: by hand: 18 answers, of which 16 are kept; the last has no score, and one could not be read."""
    right = np.float32([1, 0] * 9)
    right[-1] = np.nan
    unread = np.arange(18) == 1
    rewards = Scored(2 * right + 1, unread, errors=1, right=right, form=1 + np.arange(18))
    policy = Answering()
    found = evaluate(policy, questions(18), rewards, OPTIONS, accuracy="right", seed=5)
    ((options, more),) = policy.asked
    assert options is OPTIONS and more["seed"] == 5 and isinstance(more["log"], MeasuredLog)
    scores = found["scores"]
    assert scores["accuracy"] == (0.5, *wilson_interval(9, 18))
    scored = 2 * right[:-1] + 1
    np.testing.assert_allclose(scores["reward"], mean_interval(scored), rtol=1e-6)
    np.testing.assert_allclose(scores["form"], mean_interval(1 + np.arange(17)), rtol=1e-6)
    assert scores["completion_length"] == length_interval(1 + np.arange(18))
    assert scores["truncated"] == (1 / 18, *wilson_interval(1, 18))
    assert list(scores) == ["accuracy", "reward", "form", "completion_length", "truncated"]
    assert found["unscored"] == 1 and len(found["samples"]) == 16
    assert found["samples"][1] == dict(
        prompt="q1",
        completion="text 1",
        reward=1.0,
        parts=dict(right=0.0, form=2.0),
        right=False,
        unread=True,
        columns=dict(answer=1, row=1),
        length=2,
        truncated=False,
    )
    assert found["samples"][2]["right"] is True and found["samples"][2]["unread"] is False
    said = capsys.readouterr().out
    assert "1 of 18 held-out answers could not be scored and count as wrong: why" in said
    assert "1 of 18 held-out answers state something that no rule reads" in said


def test_answers_are_measured_without_rewards_and_without_an_accuracy(capsys):
    """Oracle: by hand: nothing says what is right; two numbers have an interval, and one has none."""
    conversations = [SimpleNamespace(messages=[i]) for i in range(3)]
    plain = evaluate(Answering(conversations), questions(3), None, OPTIONS, accuracy=None)
    assert list(plain["scores"]) == ["completion_length", "truncated"] and plain["unscored"] == 0
    assert [sample["messages"] for sample in plain["samples"]] == [[0], [1], [2]]
    nothing = dict(reward=None, parts={}, right=None, columns=dict(answer=2))
    assert plain["samples"][2].items() >= nothing.items()
    rewards = Scored([3, np.nan, 4], form=[3, np.nan, 4], other=[2, 5, 7])
    found = evaluate(Answering(), questions(3), rewards, OPTIONS, accuracy=None)
    assert "accuracy" not in found["scores"]
    assert found["scores"]["reward"] == mean_interval([3, 4])
    assert found["scores"]["other"] == mean_interval([2, 7])
    sample = found["samples"][1]
    assert sample["right"] is None and sample["reward"] is None and sample["unread"] is False
    assert "messages" not in sample and not capsys.readouterr().out


def test_answers_are_sampled_and_greedy(monkeypatch):
    """Oracle: by hand: greedy ones are as long, from as many slots, and drafted; all else is the default."""
    monkeypatch.setattr(held_out, "evaluate", lambda *given, **more: (given, more))
    both_ways = dict(max_completion_length=9, slots=5, speculative=True)
    options = AnswerOptions(temperature=0.7, top_k=3, top_p=0.9, **both_ways)
    both = evaluate_both("policy", ["e"], "rewards", options, accuracy="right", seed=4)
    greedy = AnswerOptions(temperature=0.0, **both_ways)
    how = dict(accuracy="right", seed=4)
    assert both == {
        "sampled": (("policy", ["e"], "rewards", options), how),
        "greedy": (("policy", ["e"], "rewards", greedy), how),
    }
    assert evaluate_both(1, 2, 3, options, accuracy=None)["greedy"][1]["seed"] == 0
    scores = {way: {"scores": {"a": way, "b": 1}} for way in both}
    wanted = dict(a="sampled", b=1, greedy_a="greedy", greedy_b=1)
    assert scores_of_both(scores) == wanted
