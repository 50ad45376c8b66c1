"""The loss of packed conversations, against the model's own logits over each conversation alone."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from deepseek_jax.data import conversations
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.chat import render_conversation
from deepseek_jax.evaluation.conversation_loss import ConversationLoss, ratio_interval
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, forward, init_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.shard import put_share
from tests.data.rows import with_rows
from tests.tiny import MLA_MOE, kept, random_leaves
from tests.turns import turns

pack_conversations = with_rows(conversations.pack_conversations)

BYTES = byte_tokenizer()
CONFIG = ModelConfig(**MLA_MOE | dict(vocab_size=261))
PACKING = dict(template="{question}\n", sequence_length=48, batch_size=8, seed=0, num_epochs=1)
TEXTS = "one two? three four. five six, seven".split()
SOURCE = [
    {"messages": turns(*(TEXTS * 2)[k % 7 : k % 7 + 2 * (1 + k % 2)]), "weight": 1.0 + k % 3}
    for k in range(30)
]


@pytest.fixture(scope="module")
def params():
    @jax.jit
    def make(rng):
        return nn.unbox(random_leaves(init_params(CONFIG, rng), rng))

    return kept(repr(CONFIG), lambda: make(jax.random.key(0)))


@pytest.fixture(scope="module")
def alone(params):
    """For each conversation: its weight, and the float64 log-probabilities of the assistant's tokens."""
    logits_of = jax.jit(forward, static_argnums=0)
    found = []
    for record in SOURCE:
        ids, is_target = render_conversation(BYTES, record["messages"], template="{question}\n")
        tokens = np.array(
            [ids + [0] * (48 - len(ids))], np.int32
        )  # causal: what follows is not seen
        logits = np.asarray(logits_of(CONFIG, params, tokens)[0], np.float64)
        logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = [i for i, target in enumerate(is_target) if target]
        found.append((record["weight"], [logps[i - 1, ids[i]] for i in at]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_the_training_loss_is_that_of_each_conversation_alone(params, alone, packing):
    """Oracle: numpy over each alone, sum(w nll) / sum(w tokens) over the batches; 1e-5 is float32 rounding.

    Nothing leaks between conversations of a row, and no token of a prompt is learned.
    """
    batches = list(pack_conversations(SOURCE, BYTES, packing=packing, **PACKING))
    assert len(batches) == (2 if packing else 4)
    total = sum(batch["normalizer"] for batch in batches)
    loss_of = jax.jit(next_token_loss, static_argnums=0)
    loss = sum(loss_of(CONFIG, params, b | {"normalizer": np.float32(total)})[0] for b in batches)
    sums = [(w * -sum(logps), w * len(logps)) for w, logps in alone]
    wanted, weight = np.sum(sums, axis=0)
    assert total == weight
    np.testing.assert_allclose(loss, wanted / weight, rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_held_out_loss_counts_every_token_alike_with_the_interval_of_a_ratio(
    params, alone, devices
):
    """Oracle: numpy over each conversation alone; the ratio's standard error by its textbook formula
    sqrt(sum((L - R n)^2) / (N - 1) / N) / mean(n), and Student's t of 29 degrees, 2.04523.
    """
    batches = list(pack_conversations(SOURCE, BYTES, **PACKING))
    mesh = make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        loss_of = ConversationLoss(CONFIG, batches, mesh)
        result = loss_of(params)
        # Every process sums all rows
        logprobs = loss_of._logprobs(params, put_share(mesh, batches[0]))
    assert logprobs.is_fully_replicated
    losses = np.array([-sum(logps) for _, logps in alone])
    counts = np.array([len(logps) for _, logps in alone])
    mean = losses.sum() / counts.sum()
    error = np.sqrt(((losses - mean * counts) ** 2).sum() / 29 / 30) / counts.mean()
    wanted = [mean, mean - 2.04523 * error, mean + 2.04523 * error]
    np.testing.assert_allclose(result["loss"], wanted, rtol=1e-5)
    assert (result["tokens"], result["conversations"]) == (counts.sum(), 30)


def test_the_interval_holds_the_loss_of_all_in_95_of_100_samples():
    """Oracle: the definition: 1000 samples of 40 conversations out of many, the longer ones harder. By the
    binomial distribution the share differs from 0.95 by more than 0.03 once in 10,000.
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, (1000, 40))
    losses = counts * (1 + counts / 20) + rng.normal(size=counts.shape) * counts
    true = (np.arange(1, 30) * (1 + np.arange(1, 30) / 20)).sum() / np.arange(1, 30).sum()
    inside = 0
    for loss, count in zip(losses, counts, strict=True):
        mean, low, high = ratio_interval(loss, count)
        np.testing.assert_allclose(mean, loss.sum() / count.sum(), rtol=1e-12)
        inside += low <= true <= high
    assert abs(inside / 1000 - 0.95) < 0.03
