"""Speculative decoding against plain decoding, enumerated distributions and teacher-forced forwards."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from deepseek_jax.models import forward, head_weight, hidden_states, init_params, predict_further
from deepseek_jax.rollout import decode, generate
from deepseek_jax.rollout.sampling import Sampling
from tests.quick import others_slow
from tests.rollout.test_engine import EOS, LENGTH, PROMPTS, assert_same, teacher_forced
from tests.rollout.test_sampling import filtered
from tests.tiny import MTP, VOCAB, kept, tiny_model

CONFIG = dataclasses.replace(MTP, num_nextn_predict_layers=1)
DRAFTS = {"random": 1.0, "good": 0.3, "equal": 0.0}
SETTINGS = dict(max_completion_length=LENGTH, eos_ids=EOS, seed=5, slots=3)
SAMPLED = SETTINGS | dict(n=2, temperature=0.8)
GREEDY = dict(max_completion_length=40, temperature=0.0, eos_ids=(5,), slots=4)


@functools.cache
def model(draft="good", vocab_size=VOCAB, seed=0):
    """(config, params). "random": the draft knows nothing. "equal": it is what the model says.

    Without what attention and MLPs write, a next token depends on the last one alone, and so it does in a
    module that takes the embedding as it is and has the model's final norm. "good" lies between.
    """
    config = dataclasses.replace(CONFIG, vocab_size=vocab_size)
    return config, kept(f"{config} {draft} {seed}", lambda: make_params(config, draft, seed))


def make_params(config, draft, seed):
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [
        x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)
    ]
    params = tree.unflatten(leaves)
    if draft == "random":
        return params

    def shrink(path, leaf):
        return leaf * DRAFTS[draft] if path[-1].key in ("out", "down") else leaf

    params = jax.tree_util.tree_map_with_path(shrink, params)
    ones, eye = jnp.ones(config.hidden_size), jnp.eye(config.hidden_size)
    params["mtp_0"] |= dict(
        input=jnp.concatenate([eye, 0.5 * DRAFTS[draft] * eye]),
        embedding_norm={"scale": ones},
        hidden_norm={"scale": ones},
        head_norm=params["final_norm"],
    )
    return params


def speculate(*arguments, **settings):
    return generate(*arguments, speculative=True, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("draft", DRAFTS)
def test_greedy_completions_are_those_of_plain_decoding(draft):
    """Oracle: generate without drafts: ragged prompts, slots refilled, end tokens at all places."""
    settings = SETTINGS | dict(temperature=0.0)
    drafted = speculate(*model(draft), PROMPTS * 2, **settings)
    plain = generate(*model(draft), PROMPTS * 2, **settings)
    assert_same(drafted, plain)
    assert not plain.drafted.any() and np.isnan(plain.acceptance_rate)
    assert len(set(plain.completion_mask.sum(1))) > 1 or draft == "equal"


@pytest.mark.slow
def test_the_first_of_two_modules_drafts():
    """Oracle: generate without drafts, on a model that has two."""
    settings = SETTINGS | dict(temperature=0.0)
    assert MTP.num_nextn_predict_layers == 2
    drafted = speculate(*tiny_model("mtp"), PROMPTS, **settings)
    assert_same(drafted, generate(*tiny_model("mtp"), PROMPTS, **settings))


def enumerated(config, params, prompt, length, sampling, eos_ids):
    """{completion: its probability}, by models.forward of every prefix and filters in numpy."""
    whole = list(itertools.product(range(config.vocab_size), repeat=length))
    rows = np.array([[*prompt, *completion] for completion in whole])
    logits = np.asarray(forward(config, params, rows))[:, len(prompt) - 1 : -1]
    probs = filtered(logits.reshape(-1, config.vocab_size), sampling).reshape(logits.shape)
    probs = np.take_along_axis(probs, np.array(whole)[..., None], axis=-1)[..., 0]
    completions = {}
    for completion, row in zip(whole, probs, strict=True):
        ends = [i + 1 for i, token in enumerate(completion) if token in eos_ids]
        size = ends[0] if ends else length
        completions[completion[:size]] = row[:size].prod()
    return completions


FILTERED, WITH_END = (Sampling(0.8, 0.9, 4), ()), (Sampling(1.3), (2,))
# Completions, and the most tokens of one
FEW, MANY = (4000, 3), (20000, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "draft, how, sizes",
    [
        ("random", WITH_END, FEW),
        *itertools.product(("random", "good"), (FILTERED, WITH_END), [MANY]),
    ],
)
def test_completions_come_as_often_as_the_model_says(draft, how, sizes):
    """Oracle: the chi-square test of completions of 5 tokens against all probabilities.

    A right sampler falls below p = 1e-4 once in 10000 seeds, and this seed is fixed.
    """
    config, params = model(draft, 5)
    (sampling, eos_ids), (n, length), prompt = how, sizes, [3, 1, 4]
    exact = enumerated(config, params, prompt, length, sampling, eos_ids)
    settings = sampling._asdict() | dict(max_completion_length=length, eos_ids=eos_ids)
    # An argument of the log, not of generate
    del settings["keeps_candidates"]
    rollout = speculate(config, params, [prompt], n=n, slots=n, seed=11, **settings)
    counts = dict.fromkeys(exact, 0)
    for ids, mask in zip(rollout.completion_ids.tolist(), rollout.completion_mask, strict=True):
        counts[tuple(ids[: mask.sum()])] += 1  # a KeyError were a completion that cannot be
    probs, seen = np.array(list(exact.values())), np.array(list(counts.values()))
    assert abs(probs.sum() - 1) < 1e-5 and not seen[probs == 0].any()
    likely = probs * n > 5  # the rest together, as the test wants at least five in each
    seen = np.append(seen[likely], seen[~likely].sum())
    expected = np.append(probs[likely], probs[~likely].sum()) * n
    kept = expected > 0
    expected = expected[kept] * n / expected.sum()
    assert kept.sum() > 20 and scipy.stats.chisquare(seen[kept], expected).pvalue > 1e-4
    assert 0.2 < rollout.acceptance_rate < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["random", "good", "equal"])
def test_sampler_logprobs_are_those_of_a_teacher_forced_forward(draft):
    """Oracle: models.forward over [prompt, completion], to 1e-5 in float32; ragged, slots refilled."""
    rollout = speculate(*model(draft), PROMPTS, **SAMPLED)
    mask = rollout.completion_mask
    assert len(set(mask.sum(1))) > 3 and len(mask) > SAMPLED["slots"]
    assert 0 < rollout.accepted.sum()
    exact = teacher_forced(*model(draft), PROMPTS, rollout, SAMPLED["temperature"])
    np.testing.assert_allclose(rollout.sampler_logprobs[mask], exact[mask], atol=1e-5, rtol=1e-5)
    assert not rollout.sampler_logprobs[~mask].any()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_equals_the_model_is_always_kept(temperature):
    """Oracle: by hand: two tokens a step after the prompt's own, 1 + 2 * 10 of them."""
    settings = dict(max_completion_length=21, temperature=temperature, n=8)
    rollout = speculate(*model("equal"), PROMPTS, **settings)
    assert rollout.acceptance_rate == 1 and rollout.tokens_per_step == 2
    np.testing.assert_array_equal(rollout.drafted, 10)
    assert rollout.completion_mask.all()
    even = speculate(*model("equal"), PROMPTS, **settings | dict(max_completion_length=20))
    np.testing.assert_array_equal(even.drafted, 10)  # the last has room for the draft alone
    assert even.acceptance_rate == 1 and even.tokens_per_step == 1.9


@pytest.mark.parametrize("draft", others_slow(["random", "good"], "good"))
def test_drafts_are_those_of_a_teacher_forced_module(draft):
    """Oracle: models.predict_further over whole rows, walked through by a Python loop.

    It counts, row by row, how often the module's likeliest token is what greedy decoding without drafts took.
    """
    prompts = [[token] * length for length in (1, 2, 9, 16, 17) for token in (4, 6)]
    rollout = speculate(*model(draft, 8, seed=4), prompts, **GREEDY)
    plain = generate(*model(draft, 8, seed=4), prompts, **GREEDY)
    assert_same(rollout, plain)
    rows = [
        [*prompt, *ids[mask].tolist()]
        for prompt, ids, mask in zip(
            prompts, plain.completion_ids, plain.completion_mask, strict=True
        )
    ]
    drafts = teacher_forced_drafts(*model(draft, 8, seed=4), rows)
    for row, (prompt, tokens) in enumerate(zip(prompts, rows, strict=True)):
        last, drafted, accepted = len(prompt), 0, 0
        while last + 1 < len(tokens):
            drafted += 1
            kept = drafts[row, last - 1] == tokens[last + 1]  # of the pair (hidden, next token)
            accepted += kept
            last += 1 + kept
        assert (drafted, accepted) == (rollout.drafted[row], rollout.accepted[row])
    assert 0.1 < rollout.acceptance_rate < 0.9


def teacher_forced_drafts(config, params, rows):
    """int32[b t]: the module's likeliest next token, from each token and the one after it."""
    longest = max(map(len, rows))
    tokens = np.array([row + [0] * (longest - len(row)) for row in rows])
    next_tokens = np.roll(tokens, -1, axis=1)  # right of the last pair nothing is asked
    segment_ids = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(longest), tokens.shape)

    @jax.jit
    def drafts(params):
        hidden, _ = hidden_states(config, params, tokens, segment_ids=segment_ids)
        further, _ = predict_further(
            config, params, 0, hidden, next_tokens, segment_ids=segment_ids, positions=positions
        )
        return jnp.argmax(further @ head_weight(config, params).T, axis=-1)

    return np.asarray(drafts(params))


@pytest.mark.slow
def test_what_is_sampled_does_not_depend_on_the_number_of_slots():
    """Oracle: the same requests over three slots, drafts counted alike."""
    few = speculate(*model(), PROMPTS, **SAMPLED)
    other = speculate(*model(), PROMPTS, **SAMPLED | dict(slots=1))
    assert_same(other, few)
    np.testing.assert_array_equal(other.drafted, few.drafted)
    np.testing.assert_array_equal(other.accepted, few.accepted)


@pytest.mark.slow
def test_a_completion_ends_with_its_first_end_token():
    """Oracle: the rollout without end tokens, cut by hand after the first, which may be an accepted draft."""
    settings = SAMPLED | dict(n=8)
    whole = speculate(*model(), PROMPTS[:2], **settings | dict(eos_ids=()))
    cut = speculate(*model(), PROMPTS[:2], **settings)
    is_end = np.isin(whole.completion_ids, EOS)
    mask = np.cumsum(is_end, axis=1) - is_end == 0
    np.testing.assert_array_equal(cut.completion_mask, mask)
    np.testing.assert_array_equal(cut.completion_ids, np.where(mask, whole.completion_ids, 0))
    np.testing.assert_array_equal(cut.truncated, ~is_end.any(1))
    assert 0 < cut.truncated.sum() < len(mask)


def test_other_prompts_and_seeds_compile_nothing():
    """Oracle: the number of compiled versions that jit holds of each part."""
    # Of the sizes of the test before
    few = model("good", 8, seed=4)
    speculate(*few, [[1] * length for length in (1, 2, 9, 16, 17) * 2], **GREEDY)
    programs = (
        decode.decoding_weights,
        decode.empty_slots,
        decode.prefill,
        decode.seat,
        decode.decode,
    )
    before = [program._cache_size() for program in programs]
    others = [[2] * length for length in (16, 20, 5, 1, 11)]
    speculate(*few, others * 2, **GREEDY | dict(seed=9))
    assert [program._cache_size() for program in programs] == before


@pytest.mark.slow
def test_bfloat16_decodes_what_it_would_score():
    """Oracle: models.forward in bfloat16: mean gap below 0.05 nats, of the rounding of two ways."""
    config, params = model()
    config = dataclasses.replace(config, dtype="bfloat16")
    rollout = speculate(config, params, PROMPTS, **SAMPLED)
    exact = teacher_forced(config, params, PROMPTS, rollout, SAMPLED["temperature"])
    gap = np.abs(rollout.sampler_logprobs - exact)[rollout.completion_mask]
    assert 0 < gap.mean() < 0.05 and rollout.accepted.any()


@pytest.mark.parametrize("kind", ["gqa", "mla_moe"])
def test_a_model_without_a_module_is_refused(kind):
    """Oracle: the words a reader needs."""
    config, params = tiny_model(kind)
    with pytest.raises(ValueError, match="model.num_nextn_predict_layers=0 has none"):
        speculate(config, params, [[1]], max_completion_length=2)


def test_a_module_over_grouped_query_attention_is_refused():
    """Oracle: the words a reader needs."""
    config = dataclasses.replace(CONFIG, model_type="qwen2")
    with pytest.raises(ValueError, match="model.model_type='qwen2'.*takes deepseek_v3"):
        speculate(config, {}, [[1]], max_completion_length=2)
