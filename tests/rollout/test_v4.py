"""Rollouts of a tiny DeepSeek-V4, against whole forward passes and on meshes of eight devices."""

import jax
import numpy as np
import pytest

from deepseek_jax.models.v4.config import CSA, HCA
from deepseek_jax.models.v4.decoder import forward, init_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.shard import logical_names, shardings
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.stream import stream
from tests.models.v4 import tiny

CONFIG = tiny.config(num_nextn_predict_layers=1)
# An entry of 32 tokens is longer than a prompt's bucket of 16: some prompts and texts have none
SHORT = tiny.config(compress_rates=((CSA, 4), (HCA, 32)))
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, length).tolist() for length in (1, 3, 4, 8, 15, 21, 37)]
LENGTH, ROW = 19, 64


@pytest.fixture(scope="module")
def params():
    return tiny.params(tiny.tensors(tiny.hf_model()), CONFIG)


def logprobs_of(config, params):
    """A compiled function: a row -> log-probabilities of what follows each of its tokens."""

    @jax.jit
    def run(tokens, segments):
        return jax.nn.log_softmax(forward(config, params, tokens, segment_ids=segments)[0])

    def of(row):
        tokens, segments = (np.zeros((1, ROW), np.int32) for _ in range(2))
        tokens[0, : len(row)], segments[0, : len(row)] = row, 1
        return np.asarray(run(tokens, segments))

    return of


def check_logprobs(result, prompts, of):
    """Compare the log-probability of each sampled token with the whole row's forward pass."""
    for row, prompt in enumerate(prompts):
        mask = result.completion_mask[row]
        ids = result.completion_ids[row][mask]
        exact = of([*prompt, *ids])[np.arange(len(ids)) + len(prompt) - 1, ids]
        # Both add in float32, in another order
        np.testing.assert_allclose(result.sampler_logprobs[row][mask], exact, atol=2e-5, rtol=1e-5)


def test_greedy_sampling_is_the_argmax_of_repeated_forward_passes(params):
    """Oracle: models.v4.decoder.forward, the whole row anew for each token. Seven prompts share three
    slots, which are refilled while others decode; some completions end early.
    """
    of = logprobs_of(CONFIG, params)
    rows = []
    for prompt in PROMPTS:
        row = [*prompt]
        for _ in range(LENGTH):
            row.append(int(of(row)[len(row) - 1].argmax()))
        rows.append(row[len(prompt) :])
    eos = rows[2][6]
    result = generate(
        CONFIG,
        params,
        PROMPTS,
        max_completion_length=LENGTH,
        temperature=0.0,
        eos_ids=(eos,),
        slots=3,
    )
    lengths = [row.index(eos) + 1 if eos in row else LENGTH for row in rows]
    assert 1 < min(lengths) < max(lengths) == LENGTH
    np.testing.assert_array_equal(result.completion_mask.sum(1), lengths)
    for row, (exact, length) in enumerate(zip(rows, lengths, strict=True)):
        np.testing.assert_array_equal(result.completion_ids[row, :length], exact[:length])
    check_logprobs(result, PROMPTS, of)


def test_texts_without_an_entry_are_sampled(params):
    """Oracle: the forward pass, for prompts in a bucket without any entry of 32 tokens; with 4 more tokens no
    cache has one, with 20 more it begins.
    """
    bias = RNG.standard_normal((32, 1, SHORT.head_dim), np.float32)
    params = jax.tree.map(lambda leaf: leaf, params)
    params["layers_2"]["attention"]["compressor"]["position_bias"] = bias
    of = logprobs_of(SHORT, params)
    for length in (4, 20):
        options = dict(max_completion_length=length, slots=2, seed=1)
        result = generate(SHORT, params, PROMPTS[1:4], **options)
        assert result.completion_mask.all()
        check_logprobs(result, PROMPTS[1:4], of)


def test_a_stream_is_the_rollouts_completion(params):
    """Oracle: generate, with the same seed."""
    options = dict(max_completion_length=LENGTH, seed=3)
    result = generate(CONFIG, params, PROMPTS[3:4], **options)
    tokens = stream(CONFIG, params, PROMPTS[3], Sampling(), **options)
    np.testing.assert_array_equal(list(tokens), result.completion_ids[0])


@pytest.mark.parametrize("axes", [dict(data=2, fsdp=4), dict(expert=2, fsdp=2, tensor=2)])
def test_slots_on_eight_devices_sample_as_on_one(params, axes):
    """Oracle: the same rollout on one device, drawn at random, in eight slots that are refilled; and the
    forward pass for its log-probabilities. Eight devices add in another order.
    """
    boxed = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    mesh = make_mesh(**axes)
    names = logical_names(boxed)
    names = {name: names[name] for name in params}
    placed = jax.device_put(params, shardings(mesh, names, params))
    options = dict(max_completion_length=LENGTH, n=3, slots=8, seed=0)
    one = generate(CONFIG, params, PROMPTS, **options)
    with jax.set_mesh(mesh):
        eight = generate(CONFIG, placed, PROMPTS, **options)
    np.testing.assert_array_equal(eight.completion_ids, one.completion_ids)
    np.testing.assert_allclose(eight.sampler_logprobs, one.sampler_logprobs, atol=2e-5, rtol=1e-5)
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    check_logprobs(eight, repeated, logprobs_of(CONFIG, params))


def test_what_a_rollout_of_v4_cannot_do_is_refused_by_name(params):
    """Oracle: by hand."""
    log = RolloutLog()
    log.keeps_routing = True
    with pytest.raises(ValueError, match="keep_routing"):
        generate(CONFIG, params, PROMPTS, max_completion_length=2, log=log)
    with pytest.raises(ValueError, match="speculative=True.*DeepSeek-V4.*set speculative to False"):
        generate(CONFIG, params, PROMPTS, max_completion_length=2, speculative=True)
