"""Rollouts of a tiny DeepSeek-V4, against whole forward passes and on meshes of eight devices."""

import re

import jax
import numpy as np
import pytest

from deepseek_jax.models.v4.config import CSA, HCA, WINDOW
from deepseek_jax.models.v4.decoder import forward, init_params
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.shard import logical_names, shardings
from deepseek_jax.rollout import decode, generate, v4
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.engine import rollout_mesh
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.rollout.stream import stream
from tests.models.v4 import tiny

LAYERS = (WINDOW, CSA, HCA)
CONFIG = tiny.config(num_hidden_layers=3, layer_types=LAYERS)
# An entry of 32 tokens is longer than a prompt's bucket of 16: some prompts and texts have none
LONG_WINDOWS = tiny.config(
    num_hidden_layers=1, layer_types=(HCA,), compress_rates=((HCA, 32),), num_hash_layers=0
)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, length).tolist() for length in (1, 3, 4, 8, 15, 21, 37)]
LENGTH, ROW = 19, 64


@pytest.fixture(scope="module")
def params():
    return tiny.params(tiny.tensors(tiny.hf_model(LAYERS)), CONFIG)


@pytest.fixture(scope="module")
def one_layer(params):
    layer = jax.tree.map(np.asarray, params[f"layers_{LAYERS.index(HCA)}"])
    bias = RNG.standard_normal((32, 1, CONFIG.head_dim), np.float32)
    layer["attention"]["compressor"]["position_bias"] = bias
    return {k: v for k, v in params.items() if not k.startswith("layers_")} | dict(layers_0=layer)


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
    assert len({*lengths}) > 2 and max(lengths) == LENGTH
    np.testing.assert_array_equal(result.completion_mask.sum(1), lengths)
    for row, (exact, length) in enumerate(zip(rows, lengths, strict=True)):
        np.testing.assert_array_equal(result.completion_ids[row, :length], exact[:length])
    check_logprobs(result, PROMPTS, of)


@pytest.mark.slow
def test_texts_without_an_entry_are_sampled(one_layer):
    """Oracle: the forward pass, for prompts in a bucket without any entry of 32 tokens; with 4 more tokens no
    cache has one, with 20 more it begins.
    """
    of = logprobs_of(LONG_WINDOWS, one_layer)
    for length in (4, 20):
        options = dict(max_completion_length=length, slots=2, seed=1)
        result = generate(LONG_WINDOWS, one_layer, PROMPTS[1:4], **options)
        assert result.completion_mask.all()
        check_logprobs(result, PROMPTS[1:4], of)


def test_a_stream_is_the_rollouts_completion(one_layer):
    """Oracle: generate, with the same seed."""
    options = dict(max_completion_length=LENGTH, seed=3)
    result = generate(LONG_WINDOWS, one_layer, PROMPTS[3:4], **options)
    tokens = stream(LONG_WINDOWS, one_layer, PROMPTS[3], Sampling(), **options)
    np.testing.assert_array_equal(list(tokens), result.completion_ids[0])


AXES = {"data, fsdp": dict(data=2, fsdp=4), "mixed": dict(expert=2, fsdp=2, tensor=2)}


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
def test_slots_on_eight_devices_sample_as_on_one(params, axes):
    """Oracle: the same rollout on one device, drawn at random, in eight slots that are refilled; and the
    forward pass for its log-probabilities. Eight devices add in another order. Of CSA and HCA alone.
    """
    config = tiny.config(num_hidden_layers=2, layer_types=LAYERS[1:], num_hash_layers=0)
    layers = {f"layers_{i}": params[f"layers_{i + 1}"] for i in range(2)}
    params = {k: v for k, v in params.items() if not k.startswith("layers_")} | layers
    boxed = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    mesh = make_mesh(**AXES[axes])
    placed = jax.device_put(params, shardings(mesh, logical_names(boxed), params))
    options = dict(max_completion_length=LENGTH, n=3, slots=8, seed=0)
    one = generate(config, params, PROMPTS, **options)
    with jax.set_mesh(mesh):
        eight = generate(config, placed, PROMPTS, **options)
    np.testing.assert_array_equal(eight.completion_ids, one.completion_ids)
    np.testing.assert_allclose(eight.sampler_logprobs, one.sampler_logprobs, atol=2e-5, rtol=1e-5)
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    check_logprobs(eight, repeated, logprobs_of(config, params))


def test_what_a_rollout_of_v4_cannot_do_is_refused_by_name(params):
    """Oracle: by hand."""
    log = RolloutLog()
    log.keeps_routing = True
    with pytest.raises(ValueError, match="keep_routing"):
        generate(CONFIG, params, PROMPTS, max_completion_length=2, log=log)
    with pytest.raises(ValueError, match="speculative=True.*DeepSeek-V4.*set speculative to False"):
        generate(CONFIG, params, PROMPTS, max_completion_length=2, speculative=True)
    with pytest.raises(ValueError, match="tools and environment"):
        v4.check(converses=True, keeps_routing=False)


@pytest.mark.slow
def test_each_device_has_the_caches_of_its_own_slots(params):
    """Oracle: the compiled loop: of eight slots each device has one slot's caches, in the inputs, the outputs
    and everything between; of the weights whose product has four columns a device it gathers none.
    """
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        mesh = rollout_mesh(CONFIG)
    decoding = Decoding(CONFIG)
    with jax.set_mesh(mesh):
        slots = decode.empty_slots(decoding, 8, 16, 40, 40)
        weights = decode.decoding_weights(decoding, params)
        arguments = weights, decode.rotations(CONFIG, 56), slots, 8
        program = decode.decode.lower(decoding, Sampling(), (), *arguments).compile().as_text()
    for leaf in jax.tree.leaves(slots.caches):
        rows, *sizes = leaf.shape
        sizes = ",".join(map(str, sizes))
        assert rows == 8 and leaf.sharding.shard_shape(leaf.shape)[0] == 1
        assert f"f32[1,{sizes}]" in program and f"f32[8,{sizes}]" not in program
    gathered = re.findall(r"= (\w+\[[\d,]+\])\S* all-gather", program)
    assert gathered and not {"f32[20,4,16]", "f32[20,16,12]", "f32[32,16]"} & set(gathered)
