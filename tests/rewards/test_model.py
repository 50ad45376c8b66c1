"""A reward model as a reward. The model is real, with random weights: scores are compared, not judged."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from deepseek_jax.data.chat import render_response
from deepseek_jax.models.reward import predict_rewards, reward_config, reward_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.rewards import Rewards, model
from deepseek_jax.rewards.model import RewardModel
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.quick import others_slow
from tests.tiny import tiny_model

QUESTIONS = [
    "What is 2 + 3?",
    "What is 4 + 4?",
    "What is 1 + 1 + 1?",
    "What is 4 + 1?",
    "What is 5 + 6?",
]
COMPLETIONS = ["2 + 3 = 5", "8", "", "4 + 1 = 5", "5 + 6 = 11"]
EXAMPLES = [{"question": question, "answer": "5"} for question in QUESTIONS]


def ids(question, text):
    tokenizer = arithmetic_tokenizer()
    return [*tokenizer.encode(f"{question}\n{text}"), tokenizer.eos_id]


@functools.cache
def parts(devices=1):
    """(ModelConfig, params, mesh) of a reward model."""
    config, params = tiny_model("mla_moe")
    mesh = make_mesh(devices=jax.devices()[:devices], fsdp=devices)
    model = reward_params(config, params, make_mesh(devices=jax.devices()[:1]), jax.random.key(3))
    return reward_config(config), jax.device_put(model, NamedSharding(mesh, jax.P())), mesh


def reward_model(kind="helpfulness", devices=1, batch_size=4):
    config, params, mesh = parts(devices)

    def render(example, text):
        messages = [{"role": "user", "content": example["question"]}]
        return render_response(arithmetic_tokenizer(), messages, text, template="{question}\n")

    return RewardModel(config, params, render, mesh, kind=kind, batch_size=batch_size)


def alone(question, text):
    """The reward of one response, in a row of its own length."""
    config, params, _ = parts()
    tokens = np.int32([ids(question, text)])
    return float(predict_rewards(config, params, tokens, np.ones_like(tokens))[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("devices, batch_size", others_slow([(1, 4), (2, 4), (1, 8)], (2, 4)))
def test_completions_are_scored_in_batches_as_each_would_be_alone(devices, batch_size):
    """Oracle: each response in a row of its own; five of them are more than a batch, or fewer. Tolerance:
    float32, in another order of sums.
    """
    scorer = reward_model(devices=devices, batch_size=batch_size)
    wanted = [alone(*pair) for pair in zip(QUESTIONS, COMPLETIONS, strict=True)]
    have = scorer.score(EXAMPLES, COMPLETIONS)
    np.testing.assert_allclose(have, wanted, rtol=1e-4, atol=1e-5)
    assert len(set(np.round(wanted, 4))) == 5


@pytest.mark.slow
def test_safety_is_a_probability_of_all_that_was_said_and_helpfulness_is_the_readers():
    """Oracle: the logistic function of the same response alone, by numpy. The tokenizer has no tags, so
    safety, which reads them, cannot score a completion with a thought.
    """
    (safe,) = reward_model("safety").score(EXAMPLES[:1], ["2 + 3 = 5"])
    np.testing.assert_allclose(safe, 1 / (1 + np.exp(-alone(QUESTIONS[0], "2 + 3 = 5"))), rtol=1e-4)
    thought = "<think>2 + 3</think><answer>5</answer>"
    (helpful,) = reward_model().score(EXAMPLES[:1], [thought])
    np.testing.assert_allclose(helpful, alone(QUESTIONS[0], "5"), rtol=1e-4)
    assert isinstance(reward_model("safety").score(EXAMPLES[:1], [thought])[0], ValueError)


def test_a_reward_model_is_weighed_beside_rules():
    """Oracle: by hand from the parts. A completion that cannot be read is not scored, and is counted: words
    that the tokenizer lacks, and more tokens than the model has positions (128).
    """
    rewards = Rewards({"correct": 1.0, "liked": 0.5}, models={"liked": reward_model()})
    completions = ["5", "five", "1" * 200, "2 + 3 = 5", "6"]
    scores = rewards.score(EXAMPLES, completions)
    np.testing.assert_array_equal(np.isnan(scores.total), [False, True, True, False, False])
    good = ~np.isnan(scores.total)
    total = scores.rewards_by_name["correct"] + 0.5 * scores.rewards_by_name["liked"]
    np.testing.assert_allclose(scores.total[good], total[good], rtol=1e-6)
    np.testing.assert_allclose(
        scores.rewards_by_name["liked"][0], alone(QUESTIONS[0], "5"), rtol=1e-4
    )
    assert scores.errors == 2
    assert any("128 positions" in message for message in scores.messages)


@pytest.mark.parametrize(
    "weights, name, wrong",
    [
        ({"correct": 1.0}, "liked", "the reward model 'liked' is not used; give liked=WEIGHT"),
        ({"correct": 1.0}, "correct", "choose another"),
        ({"lked": 1.0}, "liked", "did you mean liked"),
    ],
)
def test_a_model_needs_a_name_and_a_weight_of_its_own(weights, name, wrong):
    """Oracle: by hand."""
    with pytest.raises(ValueError, match=wrong):
        Rewards(weights, models={name: reward_model()})


class Limited:
    max_position_embeddings = 80


@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_rows_of_similar_length_share_a_batch_of_one_shape(monkeypatch, kind):
    """Oracle: by hand, of a model whose reward is the sum of the real tokens: rows sorted by length, two at a
    time, the last batch filled up with its own; 64 positions, or twice as many; 80 fit, and 81 do not.
    """
    batches = []

    def sums(params, batch):
        real = batch["tokens"] * batch["segment_ids"]
        batches.append(np.asarray(batch["segment_ids"]).sum(1).tolist() + [real.shape[1]])
        return params * real.sum(1)

    asked = []
    monkeypatch.setattr(model, "jitted_rewards", lambda *given: asked.append(given) or sums)
    mesh = make_mesh(devices=jax.devices()[:1])

    def render(example, text):
        if text.endswith("?"):
            raise ValueError("unreadable")
        return [1] * int(text)

    made = RewardModel(Limited, 10, render, mesh, kind=kind, batch_size=2)
    thought = "<think>no</think>" if kind == "helpfulness" else ""
    texts = [f"{thought}{n}" for n in ("70", "3", "5?", "81", "80", "7", "2")]
    found = made.score([{}] * len(texts), texts)
    assert found[:2] == [700, 30] and found[4:] == [800, 70, 20]
    assert [str(each) for each in found[2:4]] == [
        "unreadable",
        "81 tokens are beyond the reward model's 80 positions",
    ]
    assert batches == [[2, 3, 64], [7, 70, 128], [80, 80, 128]]
    assert asked == [(Limited, mesh, kind)]


def test_padded_lengths_are_64_times_powers_of_two():
    """Oracle: by hand."""
    lengths = [model.padded_length(n) for n in (0, 64, 65, 128, 129, 1024)]
    assert lengths == [64, 64, 128, 128, 256, 1024]


@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_rewards_are_on_every_device(monkeypatch, kind):
    """Oracle: by hand: the reward itself, or the logistic function of it, where the rows are split."""

    def predict(config, params, tokens, segment_ids):
        return (params * (tokens * segment_ids).sum(1), None)

    monkeypatch.setattr(model, "predict_rewards", predict)
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    batch = put_share(mesh, model.right_padded([[1, 2], [4]], 3))
    found = model.jitted_rewards(None, mesh, kind)(0.5, batch)
    assert found.is_fully_replicated
    wanted = np.array([1.5, 2.0])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-wanted)) if kind == "safety" else wanted)
