"""Each module against transformers' module of that name, and mistakes of other ports, planted one by one.

A mistake that these comparisons did not see would be one that this decoder could have.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.models.v4 import attention, compressor, indexer, moe
from deepseek_jax.models.v4.config import CSA, HCA, WINDOW
from deepseek_jax.models.v4.streams import StreamEnd, StreamMixing
from deepseek_jax.ops import streams, window_attention
from deepseek_jax.ops.rope import rope_frequencies, yarn_mscale
from deepseek_jax.ops.selection import index_scores
from tests.models.v4 import tiny
from tests.quick import others_slow

CONFIG = tiny.config()
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 48))
ONES = np.ones(TOKENS.shape, np.int32)
POSITIONS = np.broadcast_to(np.arange(48), TOKENS.shape)
# Both sides sum the same float32 products in other orders: measured 2e-6 of the largest number
CLOSE = 1e-5
# Far from rounding, and below what the smallest of the mistakes changes
CAUGHT = 1e-4
MSCALE = yarn_mscale(tiny.YARN["factor"], 1.0)


class Recording(NamedTuple):
    """transformers' tensors, and {name of a module: (its input, its result)} of one forward pass."""

    tensors: dict[str, np.ndarray]
    calls: dict[str, tuple[Any, Any]]


@pytest.fixture(scope="module")
def recording():
    model = tiny.hf_model()
    calls = {}

    def keep(name, _, arguments, result):
        calls[name] = arguments[0] if arguments else None, result

    for name, part in model.named_modules():
        part.register_forward_hook(functools.partial(keep, name))
    with torch.no_grad():
        model(torch.tensor(TOKENS))
    return Recording(tiny.tensors(model), calls)


def params_of(recording, layer, **options):
    return tiny.params(recording.tensors, CONFIG, **options)[f"layers_{layer}"]


def difference(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def run_attention(params, layer, x, positions=POSITIONS, segments=ONES):
    kind = CONFIG.layers[layer]
    places = compressor.places(CONFIG, kind.rate, jnp.asarray(positions), jnp.asarray(segments))
    module = attention.WindowAttention(CONFIG, kind)
    return module.apply({"params": params["attention"]}, jnp.asarray(x), places)[0]


def off_attention(recording, kind, **options):
    """How far the attention of a kind of layer is from transformers'."""
    layer = tiny.LAYERS.index(kind)
    x, (theirs, _) = recording.calls[f"model.layers.{layer}.self_attn"]
    return difference(run_attention(params_of(recording, layer, **options), layer, x), theirs)


def off_index_scores(recording):
    """How far the indexer's scores are from transformers', which chooses alike if they are scaled wrongly."""
    layer = tiny.LAYERS.index(CSA)
    name = f"model.layers.{layer}.self_attn"
    x, latent = recording.calls[name][0], recording.calls[f"{name}.q_a_norm"][1]
    theirs = recording.calls[f"{name}.compressor.indexer.scorer"][1]
    places = compressor.places(CONFIG, 4, jnp.asarray(POSITIONS), jnp.asarray(ONES))
    params = params_of(recording, layer)["attention"]["indexer"]
    index, _ = indexer.LightningIndexer(CONFIG, 4).apply(
        {"params": params}, jnp.asarray(x), jnp.asarray(latent), places
    )
    return difference(index_scores(*index), theirs)


def off_packed(recording):
    """How far CSA of a packed row is from CSA of its documents alone, of 21 and 27 tokens."""
    layer = tiny.LAYERS.index(CSA)
    x, params = (
        recording.calls[f"model.layers.{layer}.self_attn"][0][:1],
        params_of(recording, layer),
    )
    parts = [slice(0, 21), slice(21, 48)]
    positions = np.concatenate([np.arange(21), np.arange(27)])[None]
    segments = np.repeat([1, 2], [21, 27])[None]
    alone = [
        run_attention(params, layer, x[:, part], positions[:, part], segments[:, part])
        for part in parts
    ]
    return difference(
        run_attention(params, layer, x, positions, segments), np.concatenate(alone, axis=1)
    )


def off_experts(recording, layer):
    """How far the experts of a layer are from transformers'."""
    x, theirs = recording.calls[f"model.layers.{layer}.mlp"]
    module = moe.MoE(CONFIG, CONFIG.layers[layer].has_table)
    params = params_of(recording, layer)["ffn"]
    return difference(module.apply({"params": params}, jnp.asarray(x), TOKENS, ONES)[0], theirs)


def off_streams(recording):
    """How far a sublayer's input, and the streams after it, are from transformers'."""
    x, (write, carry, theirs) = recording.calls["model.layers.1.attn_hc"]
    output = recording.calls["model.layers.1.self_attn"][1][0]
    # What transformers' decoder layer does with the results
    written = write[..., None] * output[:, :, None] + carry.transpose(-1, -2) @ x
    params = params_of(recording, 1)["attention_mixing"]
    x, output = jnp.asarray(x), jnp.asarray(output)
    mixing = StreamMixing(CONFIG).apply({"params": params}, x)
    ours = streams.read(x, mixing.read)
    return max(difference(ours, theirs), difference(streams.write(x, output, mixing), written))


def off_end(recording):
    """How far the last sum of the streams is from transformers'."""
    x, theirs = recording.calls["model.hc_head"]
    params = tiny.params(recording.tensors, CONFIG)["stream_end"]
    return difference(StreamEnd(CONFIG).apply({"params": params}, jnp.asarray(x)), theirs)


PARTS = {
    "window": functools.partial(off_attention, kind=WINDOW),
    "CSA": functools.partial(off_attention, kind=CSA),
    "HCA": functools.partial(off_attention, kind=HCA),
    "index scores": off_index_scores,
    "packed CSA": off_packed,
    "experts by table": functools.partial(off_experts, layer=0),
    "experts by router": functools.partial(off_experts, layer=1),
    "streams": off_streams,
    "end of streams": off_end,
}


@pytest.mark.parametrize("part", PARTS)
def test_each_module_computes_what_transformers_computes(recording, part):
    """Oracle: the results of transformers' modules, hooked in a forward pass, on the inputs that they saw;
    of packed rows each document alone.
    """
    assert PARTS[part](recording) < CLOSE


def replaced(module, name, wrap):
    """A mistake: wrap(right function) stands in place of module.name."""
    return lambda monkeypatch: monkeypatch.setattr(module, name, wrap(getattr(module, name)))


def windows_with(change):
    """A mistake in find_windows. change: (windows, size) -> fields that differ."""

    def wrap(right):
        def wrong(positions, segments, size):
            windows = right(positions, segments, size)
            return windows._replace(**change(windows, size))

        return wrong

    return replaced(compressor, "find_windows", wrap)


def frequencies_with(change):
    """A mistake in the rotary frequencies. change: (config, rate) -> (config, rate)."""
    return replaced(
        compressor, "rotary_frequencies", lambda right: lambda *given: right(*change(*given))
    )


def both(*mistakes):
    return lambda monkeypatch: [mistake(monkeypatch) for mistake in mistakes]


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def no_turning_back(right):
    """apply_rope_last, but not with the opposite angles, in its third call."""
    calls = []

    def wrong(x, cos, sin):
        calls.append(1)
        return right(x, cos, sin) if len(calls) % 3 else x

    return wrong


def router_in_bfloat16(right):
    def wrong(spec, x, w, *dtype):
        out = right(spec, x, w, *dtype)
        return rounded(out) if spec == "btd,de->bte" else out

    return wrong


def scaled_twice(right):
    def wrong(logits, bias, *, routed_scaling_factor, **options):
        return right(logits, bias, routed_scaling_factor=routed_scaling_factor**2, **options)

    return wrong


def transposed(c):
    return jnp.swapaxes(c, -1, -2)


# (part that sees it, mistake), by the row of the table of what other ports had
MISTAKES = {
    "output written without its 2": (
        "streams",
        replaced(
            streams,
            "mixing",
            lambda right: lambda *a, **k: (m := right(*a, **k))._replace(write=m.write / 2),
        ),
    ),
    "Sinkhorn's rows and columns swapped": (
        "streams",
        replaced(
            streams, "sinkhorn", lambda right: lambda c, *a: transposed(right(transposed(c), *a))
        ),
    ),
    "streams mixed by carry's second index": (
        "streams",
        replaced(
            streams,
            "write",
            lambda right: lambda x, y, m: right(x, y, m._replace(carry=transposed(m.carry))),
        ),
    ),
    "no overlap": (
        "CSA",
        replaced(
            compressor,
            "pool",
            lambda right: (
                lambda *a: right(*(part[:, :, -1:] for part in a[:2]), a[2][:, -1:], a[3])
            ),
        ),
    ),
    "no norm of each head's query": (
        "window",
        replaced(attention, "rms_norm", lambda right: lambda x, scale, eps: x),
    ),
    "mscale in the softmax": (
        "CSA",
        replaced(
            attention,
            "attend_window_rows",
            lambda right: (
                lambda *a, window, scale: right(*a, window=window, scale=scale * MSCALE**2)
            ),
        ),
    ),
    "mscale in cosines and sines": (
        "CSA",
        replaced(
            compressor, "rope_tables", lambda right: lambda at, angles: right(at, angles, MSCALE)
        ),
    ),
    "entry rotated at i": (
        "HCA",
        windows_with(lambda w, size: dict(positions=w.positions // size)),
    ),
    "entry not rotated": ("HCA", windows_with(lambda w, size: dict(positions=0 * w.positions))),
    "output not turned back": ("window", replaced(attention, "apply_rope_last", no_turning_back)),
    "indexer in FP8": (
        "CSA",
        replaced(
            indexer,
            "select_entries",
            lambda right: (
                lambda q, k, *a, **options: right(
                    *(part.astype(jnp.float8_e4m3fn).astype(jnp.float32) for part in (q, k)),
                    *a,
                    **options,
                )
            ),
        ),
    ),
    "no YaRN": (
        "HCA",
        replaced(
            compressor,
            "yarn_frequencies",
            lambda right: lambda dim, theta, **_: rope_frequencies(dim, theta),
        ),
    ),
    "router in bfloat16": ("experts by router", replaced(moe, "dot", router_in_bfloat16)),
    "scores of the softmax in bfloat16": (
        "window",
        replaced(window_attention, "_scores", lambda right: lambda *a: rounded(right(*a))),
    ),
    "YaRN without a compressor": (
        "window",
        frequencies_with(lambda config, rate: (config, rate or 4)),
    ),
    "one base, YaRN everywhere, entries not rotated": (
        "CSA",
        both(
            frequencies_with(
                lambda config, rate: (
                    dataclasses.replace(config, compress_rope_theta=config.rope_theta),
                    rate or 4,
                )
            ),
            windows_with(lambda w, size: dict(positions=0 * w.positions)),
        ),
    ),
    "bias added twice": (
        "experts by router",
        replaced(
            moe, "route", lambda right: lambda x, bias, **options: right(x, 2 * bias, **options)
        ),
    ),
    "scaled twice": ("experts by router", replaced(moe, "route", scaled_twice)),
    "shared expert without clamp": (
        "experts by table",
        replaced(moe, "swiglu", lambda right: lambda gate, up, limit: right(gate, up)),
    ),
    "series 0 read across a border": (
        "packed CSA",
        windows_with(lambda w, size: dict(follows=w.tokens[..., 0] >= size)),
    ),
    "one iteration of Sinkhorn's too few": (
        "streams",
        replaced(streams, "sinkhorn", lambda right: lambda c, n, eps: right(c, n - 1, eps)),
    ),
    "no sink": (
        "window",
        replaced(
            attention, "Keys", lambda right: lambda kv, of, sink, *a: right(kv, of, sink - 99, *a)
        ),
    ),
    "index scores not scaled by their heads": (
        "index scores",
        replaced(
            indexer,
            "Index",
            lambda right: lambda q, k, w: right(q, k, w * CONFIG.index_n_heads**0.5),
        ),
    ),
    "entry seen one token early": (
        "HCA",
        replaced(
            window_attention, "seen_entries", lambda right: lambda of, at, w: right(of, at + 1, w)
        ),
    ),
}


# One of each part; the comparisons themselves run every time
PLANTED = {part: mistake for mistake, (part, _) in MISTAKES.items()}


@pytest.mark.parametrize("mistake", others_slow(MISTAKES, *PLANTED.values()))
def test_a_planted_mistake_is_caught(recording, monkeypatch, mistake):
    """Oracle: the comparison above, which this code passes without the mistake."""
    part, plant = MISTAKES[mistake]
    plant(monkeypatch)
    assert PARTS[part](recording) > CAUGHT


def test_pairs_side_by_side_are_caught(recording):
    """Oracle: as above: a checkpoint's order of rotary pairs read as ours, which has them apart."""
    assert off_attention(recording, WINDOW, order=lambda array, axis=-1: array) > CAUGHT
