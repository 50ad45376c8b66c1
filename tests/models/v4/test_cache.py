"""Decoding with caches against whole forward passes, and faults of such caches, planted one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.v4 import attention, compressor, decoder
from deepseek_jax.models.v4.cache import CompressorCache, empty_caches
from deepseek_jax.models.v4.config import CSA, HCA, WINDOW
from tests.models.v4 import tiny
from tests.quick import others_slow

LAYERS = (WINDOW, CSA, HCA)
CONFIG = tiny.config(num_hidden_layers=3, layer_types=LAYERS)
# The layer with all kinds of caches
CSA_LAYER = tiny.config(num_hidden_layers=1, layer_types=(CSA,), num_hash_layers=0)
# Prompts of 1 to 17 tokens: a text begins to decode at every place of two windows of 8, and of four of 4
LENGTHS = np.arange(1, 18)
STEPS = 12
TOKENS = np.random.default_rng(0).integers(0, 96, (len(LENGTHS), 48))
# Every second sequence ends after STEPS, and another text takes its place
OTHERS = np.random.default_rng(1).integers(0, 96, TOKENS.shape)
OTHER_LENGTHS = LENGTHS[::-1] + 3
IS_REFILLED = LENGTHS % 2 == 0
# Both add the same float32 products in other orders: measured 2e-6 of the largest hidden state
CLOSE = 1e-5
CAUGHT = 1e-3


@pytest.fixture(scope="module")
def params():
    return tiny.params(tiny.tensors(tiny.hf_model(LAYERS)), CONFIG)


@pytest.fixture(scope="module")
def csa_params(params):
    layers = {name for name in params if name.startswith("layers_")}
    return {name: part for name, part in params.items() if name not in layers} | dict(
        layers_0=params[f"layers_{LAYERS.index(CSA)}"]
    )


def forward_states(config, params):
    run = jax.jit(lambda tokens: decoder.run_layers(config, params, tokens).hidden)
    return np.asarray(run(TOKENS)), np.asarray(run(OTHERS))


@pytest.fixture(scope="module")
def csa_states(csa_params):
    return forward_states(CSA_LAYER, csa_params)


def seated(caches, prefilled, is_seated, left_out=()):
    """The caches with those of prompts in some sequences.

    Args:
        left_out: Fields of a CompressorCache that keep what they had: a fault.
    """

    def copy(path, cache, new):
        if path[-1].name in left_out:
            return cache
        new = jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), 0, axis=1)
        return jnp.where(is_seated[:, None, None], new, cache)

    return jax.tree.map_with_path(copy, caches, prefilled)


def decoded(config, params, left_out=()):
    """Prefill, decode, refill every second sequence, and decode on, all sequences in each step.

    Returns:
        The hidden states of decoding before and after, [step b d] each, and of the first prefill.
    """

    @jax.jit
    def prefill(tokens, lengths):
        return decoder.prefill(config, params, tokens[:, :20], lengths)

    @jax.jit
    def run_steps(tokens, positions_b, caches):
        def step(caches, i):
            at_b = positions_b + i
            tokens_b = jnp.take_along_axis(tokens, at_b[:, None], axis=1)[:, 0]
            hidden_bd, caches = decoder.decode(config, params, tokens_b, at_b, caches)
            return caches, hidden_bd

        return jax.lax.scan(step, caches, jnp.arange(STEPS))

    first, prefilled = prefill(TOKENS, LENGTHS)
    caches = empty_caches(config, len(LENGTHS), 48, jnp.float32)
    caches = seated(caches, prefilled, np.ones(len(LENGTHS), bool))
    caches, before = run_steps(TOKENS, LENGTHS, caches)
    _, prefilled = prefill(OTHERS, OTHER_LENGTHS)
    caches = seated(caches, prefilled, IS_REFILLED, left_out)
    positions = np.where(IS_REFILLED, OTHER_LENGTHS, LENGTHS + STEPS)
    _, after = run_steps(np.where(IS_REFILLED[:, None], OTHERS, TOKENS), positions, caches)
    return np.asarray(before), np.asarray(after), np.asarray(first)


def off(config, params, states, **fault):
    """How far decoding is from the forward pass, of its largest number: before and after a refill."""
    own, others = states
    before, after, first = decoded(config, params, **fault)
    rows, steps, scale = np.arange(len(LENGTHS)), np.arange(STEPS)[:, None], np.abs(own).max()
    assert np.abs(first - own[rows, LENGTHS - 1]).max() < CLOSE * scale
    exact_after = np.where(
        IS_REFILLED[:, None],
        others[rows, OTHER_LENGTHS + steps],
        own[rows, LENGTHS + STEPS + steps],
    )
    exact = own[rows, LENGTHS + steps]
    return np.abs(before - exact).max() / scale, np.abs(after - exact_after).max() / scale


def test_decoding_is_the_forward_pass_at_every_place_of_a_window(params):
    """Oracle: run_layers on whole rows. Prompts of unequal lengths, and refilled slots while others go on."""
    assert max(off(CONFIG, params, forward_states(CONFIG, params))) < CLOSE


def test_a_text_is_decoded_from_its_first_token_on(params):
    """Oracle: run_layers; no prefill, so that every entry comes from decoding. Logits too."""
    step = jax.jit(functools.partial(decoder.decode, CONFIG))
    caches, hidden = empty_caches(CONFIG, len(TOKENS), 48, jnp.float32), []
    for t in range(48):
        states, caches = step(params, TOKENS[:, t], np.full(len(TOKENS), t), caches)
        hidden.append(states)
    exact, _ = forward_states(CONFIG, params)
    np.testing.assert_allclose(np.stack(hidden, 1), exact, atol=CLOSE * np.abs(exact).max(), rtol=0)
    logits, exact = np.stack(hidden, 1) @ params["head"].T, exact @ params["head"].T
    np.testing.assert_allclose(logits, exact, atol=CLOSE * np.abs(exact).max(), rtol=0)


def test_a_prefill_leaves_what_decoding_would_have_left(params):
    """Oracle: decoding the same 37 tokens one by one: the same arrays up to rounding. An entry of an
    unfinished window is not compared, since none is seen.
    """
    tokens, n = TOKENS[:2, :37], 37
    prefill = jax.jit(functools.partial(decoder.prefill, CONFIG))
    _, caches = prefill(params, tokens, np.full(2, n))
    step = jax.jit(functools.partial(decoder.decode, CONFIG))
    own = empty_caches(CONFIG, 2, n, jnp.float32)
    for t in range(n):
        _, own = step(params, tokens[:, t], np.full(2, t), own)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(caches), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.slow
def test_decoding_goes_on_after_a_long_prefill(params):
    """Oracle: run_layers on rows of 232 tokens; prompts of 199 and 211 tokens."""
    tokens, lengths = np.random.default_rng(2).integers(0, 96, (2, 232)), np.array([199, 211])
    exact = np.asarray(jax.jit(lambda t: decoder.run_layers(CONFIG, params, t).hidden)(tokens))
    prefill = jax.jit(functools.partial(decoder.prefill, CONFIG))
    _, prefilled = prefill(params, tokens[:, :211], lengths)
    caches = seated(empty_caches(CONFIG, 2, 232, jnp.float32), prefilled, jnp.ones(2, bool))
    step = jax.jit(functools.partial(decoder.decode, CONFIG))
    for i in range(21):
        at = lengths + i
        states, caches = step(params, tokens[np.arange(2), at], at, caches)
        np.testing.assert_allclose(
            states, exact[np.arange(2), at], atol=CLOSE * np.abs(exact).max(), rtol=0
        )


@pytest.mark.slow
def test_an_indexer_that_selects_all_entries_is_no_indexer(csa_params):
    """Oracle: indexer_loss="dense", in which queries attend to all entries that they see, bit by bit; a
    top-k of 4 gives another result.
    """
    dense, wide, narrow = (
        decoded(dataclasses.replace(CSA_LAYER, **changes), csa_params)[1]
        for changes in (dict(indexer_loss="dense"), dict(index_topk=12), dict())
    )
    np.testing.assert_array_equal(wide, dense)
    assert np.abs(narrow - dense).max() > 1e-2


def shifted_ring(right):
    return lambda ring, positions, row: right(ring, positions + 1, row)


def first_series_lost(right):
    def wrong(numbers, size):
        windows = right(numbers, size)
        return windows._replace(follows=jnp.zeros_like(windows.follows))

    return wrong


def early(right):
    return lambda segments, at, windows: right(segments, at + 1, windows)


def pending_lost(right):
    def empty(rows: CompressorCache | None):
        return rows and rows._replace(values=0 * rows.values, logits=0 * rows.logits)

    def wrong(*arguments):
        cache = right(*arguments)
        return cache._replace(compressor=empty(cache.compressor), indexer=empty(cache.indexer))

    return wrong


FAULTS = {
    "ring of the window off by one": (attention, "put", shifted_ring),
    "ring of pending rows off by one": (compressor, "put", shifted_ring),
    "series 0 not carried": (compressor, "document_windows", first_series_lost),
    "entry seen one token early": (attention, "seen_entries", early),
    "entry written one token early": (
        compressor,
        "put_entry",
        lambda right: lambda entries, at, entry, rate: right(entries, at + 1, entry, rate),
    ),
    "pending rows of a prompt lost": (decoder, "as_rings", pending_lost),
    "rings of a prompt without its last token": (
        decoder,
        "as_rings",
        lambda right: lambda config, kind, rows, lengths: right(config, kind, rows, lengths - 1),
    ),
}


# A ring, an entry and what a prompt leaves; the comparison itself runs every time
PLANTED = others_slow(FAULTS, "ring of the window off by one", "pending rows of a prompt lost")


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(csa_params, csa_states, monkeypatch, fault):
    """Oracle: the comparison above, which this code passes without the fault."""
    module, name, wrap = FAULTS[fault]
    monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    assert off(CSA_LAYER, csa_params, csa_states)[0] > CAUGHT


@pytest.mark.parametrize(
    "left_out",
    [
        pytest.param(("values", "logits"), marks=pytest.mark.slow),
        ("entries",),
        pytest.param(("kv",), marks=pytest.mark.slow),
    ],
)
def test_a_refill_that_leaves_old_rows_is_caught(csa_params, csa_states, left_out):
    """Oracle: as above: the slot's first text decodes rightly, and the second does not."""
    before, after = off(CSA_LAYER, csa_params, csa_states, left_out=left_out)
    assert before < CLOSE and after > CAUGHT
