"""The loss of conversations, in which the model's tokens alone count, against loops in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import LARGE_GAP, grpo_loss
from deepseek_jax.losses.settings import GrpoOptions
from deepseek_jax.models import forward
from tests.losses.test_completions import LAYOUTS
from tests.losses.test_grpo import LOSS_TYPES
from tests.tiny import VOCAB, tiny_model

PROMPTS = (5, 2)
# Three conversations a prompt: tokens of a turn, of a text that it reads, of the next turn, ...
PIECES = ((3, 4, 2), (1, 1, 1, 2, 3), (4,), (2, 5, 1), (1, 6, 2, 1, 1), (5, 1, 4))
ADVANTAGES = np.float32([1.3, -0.8, -0.5, 0.4, 0.9, -1.2])
ROOM, LENGTH = 6, 12
CLIP_EPS, KL_COEF, NOISE, MOST = 0.1, 0.1, 0.5, 20
TOLERANCE = dict(atol=1e-5, rtol=1e-5)  # float32 against float64


def of_pieces(row):
    """bool[t]: whether each token of a conversation is the model's."""
    turns = itertools.cycle([True, False])
    return np.concatenate([np.full(n, own) for n, own in zip(PIECES[row], turns, strict=False)])


def make_batch(own_rows=False, seed=0):
    """The batch of these conversations. Log-probabilities of other policies are NaN but on the model's
    tokens.
    """
    rng = np.random.default_rng(seed)
    shape = len(PIECES), LENGTH
    owned, observed = np.zeros(shape, bool), np.zeros(shape, bool)
    for row in range(len(PIECES)):
        own = of_pieces(row)
        owned[row, : len(own)], observed[row, : len(own)] = own, ~own
    prompt_mask = np.arange(ROOM) < np.array(PROMPTS)[:, None]
    prompt_ids = np.where(prompt_mask, rng.integers(0, VOCAB, prompt_mask.shape), 0)
    completion_ids = np.where(owned | observed, rng.integers(0, VOCAB, shape), 0)
    prompts = [np.repeat(x, 3, axis=0) if own_rows else x for x in (prompt_ids, prompt_mask)]
    return {
        "prompt_ids": prompts[0].astype(np.int32),
        "prompt_mask": prompts[1],
        "completion_ids": completion_ids.astype(np.int32),
        "completion_mask": owned,
        "observed_mask": observed,
        "advantages": ADVANTAGES,
        "num_tokens": np.float32(owned.sum()),
        "num_completions": np.float32(len(PIECES)),
    }


def with_others(batch, logprobs, seed=1):
    """The batch with log-probabilities near these: of the old policy, the reference and the sampler."""
    rng, mask = np.random.default_rng(seed), batch["completion_mask"]
    near = {
        name: np.float32(np.where(mask, logprobs + rng.normal(0, NOISE, mask.shape), np.nan))
        for name in ("old_logprobs", "ref_logprobs", "sampler_logprobs")
    }
    return batch | near


@functools.partial(jax.jit, static_argnums=0)
def scores(config, params, batch):
    return completion_logprobs(config, params, batch)[:2]


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, row):
    return forward(config, params, row[None])[0]


@pytest.fixture(scope="module")
def model():
    return tiny_model("mla_moe")


@pytest.fixture(scope="module")
def tokens(model):
    """Row by row: [(log-probability, entropy)] of the model's tokens, from one forward pass over the row."""
    batch, found = make_batch(), []
    for row in range(len(PIECES)):
        own, prompt = of_pieces(row), batch["prompt_ids"][row // 3, : PROMPTS[row // 3]]
        ids = np.concatenate([prompt, batch["completion_ids"][row, : len(own)]])
        logits = np.asarray(logits_of(*model, jnp.asarray(ids)), np.float64)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = [len(prompt) + t for t in range(len(own)) if own[t]]
        found.append(
            [(logp[p - 1, ids[p]], -(np.exp(logp[p - 1]) * logp[p - 1]).sum()) for p in places]
        )
    return found


@LAYOUTS
def test_logprobs_and_entropy_of_a_turn_are_those_after_all_that_was_read(model, tokens, own_rows):
    """Oracle: one forward pass over each row, the softmax in float64."""
    batch = make_batch(own_rows)
    for found, index in zip(scores(*model, batch), (0, 1), strict=True):
        for row, mask in enumerate(batch["completion_mask"]):
            wanted = [token[index] for token in tokens[row]]
            np.testing.assert_allclose(np.asarray(found)[row, mask], wanted, **TOLERANCE)


def by_hand(tokens, batch, loss_type):
    """The loss and its metrics: every sum over rows and over the model's tokens, in float64."""
    loss, sums, count = 0.0, dict.fromkeys(("entropy", "ratio_mean", "kl", "gap", "large"), 0.0), 0
    most, low, high = 0.0, 0, 0
    for row, own in enumerate(tokens):
        places = np.flatnonzero(batch["completion_mask"][row])
        old, ref, sampler = (
            np.float64(batch[f"{name}_logprobs"][row, places]) for name in ("old", "ref", "sampler")
        )
        advantage, n, of_row = float(batch["advantages"][row]), len(own), 0.0
        mean = sum(own[t][0] - old[t] for t in range(n)) / n
        for t, (logprob, entropy) in enumerate(own):
            ratio = np.exp(mean if loss_type == "gspo" else logprob - old[t])
            gain = min(ratio * advantage, min(max(ratio, 1 - CLIP_EPS), 1 + CLIP_EPS) * advantage)
            # CISPO clips its weights above alone
            low += ratio < 1 - CLIP_EPS and advantage < 0 and loss_type != "cispo"
            high += ratio > 1 + CLIP_EPS and (advantage > 0 or loss_type == "cispo")
            if loss_type == "cispo":
                gain = min(ratio, 1 + CLIP_EPS) * advantage * logprob
            kl = np.exp(ref[t] - logprob) - (ref[t] - logprob) - 1
            of_row += KL_COEF * kl - gain
            gap = abs(old[t] - sampler[t])
            added = entropy, ratio, kl, gap, float(gap > LARGE_GAP)
            sums = {name: sums[name] + x for name, x in zip(sums, added, strict=True)}
            most, count = max(most, gap), count + 1
        loss += of_row / {"grpo": n, "gspo": n, "dr_grpo": MOST}.get(loss_type, 1)
    loss /= count if loss_type in ("dapo", "cispo") else len(tokens)
    means = {name: x / count for name, x in sums.items()}
    means["sampler_gap_mean"], means["sampler_gap_share"] = means.pop("gap"), means.pop("large")
    clipped = {"clip_fraction_low": low / count, "clip_fraction_high": high / count}
    clipped["clip_fraction"] = (low + high) / count
    return loss, means | clipped | {"sampler_gap_max": most, "learned_tokens": count}


@LAYOUTS
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_loss_and_every_metric_count_the_models_tokens_alone(
    model, tokens, loss_type, own_rows
):
    """Oracle: by_hand, from the log-probabilities of one forward pass over each row. A text that was read
    and counted would bring the NaN of its place.
    """
    batch = make_batch(own_rows)
    logprobs, entropy = scores(*model, batch)
    batch = with_others(batch, logprobs)
    options = GrpoOptions(loss_type=loss_type, clip_eps=CLIP_EPS, kl_coef=KL_COEF)
    loss, metrics = grpo_loss(logprobs, entropy, batch, options, max_completion_length=MOST)
    wanted, means = by_hand(tokens, batch, loss_type)
    np.testing.assert_allclose(loss, wanted, atol=1e-5, rtol=1e-4)
    assert means.keys() <= metrics.keys() and means["learned_tokens"] == 30
    # No mean is that of nothing; those of GSPO's ratios are few
    assert loss_type in ("cispo", "gspo") or min(means.values()) > 0
    for name, value in means.items():
        np.testing.assert_allclose(metrics[name], value, atol=2e-5, rtol=1e-4, err_msg=name)


@LAYOUTS
def test_what_was_read_is_read_by_later_turns_and_is_never_learned(model, own_rows):
    """Oracle: by hand: other ids of one text change the turn after it, and nothing before it, nor other
    conversations; the loss's gradient at log-probabilities of what was read is 0.
    """
    batch = make_batch(own_rows)
    other = {name: np.array(x) for name, x in batch.items()}
    # The first text of the first conversation
    other["completion_ids"][0, 3:7] = (other["completion_ids"][0, 3:7] + 1) % VOCAB
    one, two = (np.asarray(scores(*model, x)[0]) for x in (batch, other))
    mask = batch["completion_mask"]
    assert (one[0, 7:9] != two[0, 7:9]).all()
    np.testing.assert_array_equal(one[0, :3], two[0, :3])
    np.testing.assert_array_equal(one[1:][mask[1:]], two[1:][mask[1:]])
    batch = with_others(batch, one)
    options = GrpoOptions(clip_eps=CLIP_EPS, kl_coef=KL_COEF)

    def loss(logprobs):
        return grpo_loss(logprobs, logprobs, batch, options, max_completion_length=MOST)[0]

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(one)))
    np.testing.assert_array_equal(gradient != 0, mask)
