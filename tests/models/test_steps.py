"""A layer that decodes, against the same layer on whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.models.cache import CacheWrite, PositionWrite, empty_cache
from deepseek_jax.models.decoder import DecoderLayer
from deepseek_jax.models.layers import position_tables
from deepseek_jax.models.moe import MoE
from deepseek_jax.models.mtp import MultiTokenPrediction
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.decoding import decoding_axes
from tests.tiny import tiny_model

B, T, S = 2, 7, 9
CLOSE = dict(atol=2e-5, rtol=2e-5)  # float32 sums in another order


def layer_of(kind):
    """(config, DecoderLayer, its params): the last layer of a tiny model."""
    config, params = tiny_model(kind)
    stack = params["moe_layers" if config.num_moe_layers else "dense_layers"]
    layer = DecoderLayer(config, bool(config.num_moe_layers))
    return config, layer, jax.tree.map(lambda leaf: leaf[-1], stack)


def rows_of(config):
    return np.random.default_rng(0).normal(size=(B, T, config.hidden_size)).astype(np.float32)


def calls(module, params):
    """module.apply of these params: call(method, *arguments)."""
    return lambda method, *arguments: module.apply({"params": params}, *arguments, method=method)


def seen_by(slots, positions):
    """PositionWrite of tokens: the second row's slots begin one later; each token sees those before it."""
    index = np.stack([positions, positions + 1])
    mask = (slots[None, None] <= index[..., None]) & (slots >= np.array([0, 1])[:, None])[:, None]
    return PositionWrite(jnp.asarray(index), jnp.asarray(mask))


@pytest.mark.parametrize("kind", ["gqa", "mla_moe", "sparse"])
def test_tokens_that_extend_a_row_are_those_of_the_whole_row(kind):
    """Oracle: the layer on all seven tokens at once: three, then three more, then one by itself, into slots
    that differ between the rows. An entry past the end of the cache is dropped.
    """
    config, layer, params = layer_of(kind)
    slots = np.arange(S)
    writes = [seen_by(slots, np.arange(begin, begin + 3)) for begin in (0, 3)]
    last = seen_by(slots, np.array([T - 1]))
    # One slot for all rows, as in a rollout: each row's own slots are those that it sees
    before = last.mask[:, 0] & (slots != last.index)
    single = CacheWrite(jnp.int32(T + 1), before | (slots == T + 1))
    past = PositionWrite(jnp.full((B, 1), S), last.mask)

    @jax.jit
    def run(params, x):
        call = calls(layer, params)
        rope = position_tables(config, jnp.broadcast_to(jnp.arange(T), (B, T)))
        whole = call(None, x, rope, jnp.ones((B, T), jnp.int32))
        cache, found, experts = empty_cache(config, B, S, jnp.float32), [], []
        for write, part in zip(writes, (slice(3), slice(3, 6)), strict=True):
            tables = [table[:, part] for table in rope]
            y, cache, own = call("extend", x[:, part], tables, cache, write)
            found.append(y)
            experts.append(own)
        tables = [table[:, -1:] for table in rope]
        y, after, own, _ = call("decode", x[:, -1], tables, cache, single)
        same = call("extend", x[:, :1], tables, cache, past)[1] if kind == "gqa" else cache
        found, experts = [*found, y[:, None]], [*experts, None if own is None else own[:, None]]
        experts = None if own is None else jnp.concatenate(experts, 1)
        return whole, jnp.concatenate(found, 1), experts, cache, after, same

    (wanted, report, remembered), found, experts, *caches = run(params, rows_of(config))
    cache, after, same = jax.tree.map(np.asarray, caches)
    np.testing.assert_allclose(found, wanted, **CLOSE)
    if experts is not None:
        np.testing.assert_array_equal(experts, report.experts)
    jax.tree.map(np.testing.assert_array_equal, same, cache)
    for name, entries in remembered.items():
        own = cache[name].reshape(B, -1, *cache[name].shape[1:])
        entries = np.asarray(entries).reshape(B, -1, *entries.shape[1:])
        np.testing.assert_allclose(own[0, :, : T - 1], entries[0, :, : T - 1], **CLOSE)
        np.testing.assert_allclose(own[1, :, 1:T], entries[1, :, : T - 1], **CLOSE)
        assert not own[0, :, T - 1 :].any() and not own[1, :, :1].any()
        assert after[name][:, T + 1].any()


def test_a_prediction_module_extends_its_rows_as_it_runs_them():
    """Oracle: the module on whole rows, and the entries of its cache that it remembers."""
    config, params = tiny_model("mtp")
    module = MultiTokenPrediction(config, DecoderLayer(config, is_moe=True))
    write = seen_by(np.arange(S), np.arange(T))

    @jax.jit
    def run(params, hidden):
        call, ones = calls(module, params), jnp.ones((B, T), jnp.int32)
        rope = position_tables(config, jnp.broadcast_to(jnp.arange(T), (B, T)))
        given = hidden[:, ::-1], hidden, rope
        cache = empty_cache(config, B, S, jnp.float32)
        whole = call(None, *given, ones)[0], call("prefill", *given, ones)
        return whole, call("extend", *given, cache, write)

    (wanted, remembered), (y, cache) = run(params["mtp_0"], rows_of(config))
    np.testing.assert_allclose(y, wanted, **CLOSE)
    np.testing.assert_allclose(cache["latents"][0, :T], remembered["latents"][0], **CLOSE)


def test_a_token_step_on_a_mesh_is_the_layer_on_one_device():
    """Oracle: the layer without a mesh: eight tokens on eight devices, each with one expert, and a shared
    MLP that tensor splits.
    """
    config, params = tiny_model("mla_moe")
    own = jax.tree.map(lambda leaf: leaf[0], params["moe_layers"]["ffn"])
    x = rows_of(config).reshape(-1, config.hidden_size)[:8]
    wanted, _, experts, _ = jax.jit(lambda own, x: calls(MoE(config), own)(None, x))(own, x)
    with jax.set_mesh(make_mesh(data=1, expert=4, tensor=2)), decoding_axes(4, 8):
        y, routing, chosen, rounds = jax.jit(lambda own, x: calls(MoE(config), own)(None, x))(
            own, x
        )
    np.testing.assert_allclose(y, wanted, **CLOSE)
    np.testing.assert_array_equal(chosen, experts)
    assert chosen.shape == (8, 1, 2) and routing is None and rounds.tolist() == [1] * 8
