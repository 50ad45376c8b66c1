"""Operations counted in programs, and those that a model needs."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from configs import models
from deepseek_jax.costs.flops import (
    active_weights,
    attended_keys,
    forward_flops,
    indexer_flops,
    useful_flops,
    warm_up_flops,
)
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import (
    ModelConfig,
    abstract_init,
    count_params,
    init_params,
    reported_states,
)
from deepseek_jax.parallel import make_mesh
from tests.costs.products import matmul_flops
from tests.models.test_param_counts import named
from tests.tiny import tiny_model

X, W = jnp.ones((3, 5)), jnp.ones((5, 7))
XW = 2 * 3 * 5 * 7


def counted(f, *args):
    return matmul_flops(jax.make_jaxpr(f)(*args))


def loss(x, w):
    return jnp.tanh(x @ w).sum()


def chain(x, ws, wrap=lambda f: f):
    """x through tanh(x @ w) for w in ws [4 5 5], by a scan."""
    return jax.lax.scan(wrap(lambda x, w: (jnp.tanh(x @ w), None)), x, ws)[0].sum()


CHAIN = 4 * 2 * 3 * 5 * 5
WS = jnp.ones((4, 5, 5))


@pytest.mark.parametrize(
    ("program", "arguments", "by_hand"),
    [
        (lambda x, w: x @ w + 1, (X, W), XW),
        (lambda x, w: jnp.einsum("bmk,bkn->bnm", x, w), (jnp.ones((6, 3, 5)), jnp.ones((6, 5, 7))), 6 * XW),
        (jax.grad(loss, argnums=(0, 1)), (X, W), 3 * XW),
        (jax.grad(loss, argnums=1), (X, W), 2 * XW),
        (chain, (X, WS), CHAIN),
        (jax.grad(chain, argnums=(0, 1)), (X, WS), 3 * CHAIN),
        (jax.jit(lambda x, w: jax.jit(lambda x: x @ w)(x)), (X, W), XW),
        (lambda x, w: jax.jit(lambda x: (x @ w, x @ w @ w.T))(x)[0], (X, W), XW),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w.T @ w), (X, W), 3 * XW),
    ],
)  # fmt: skip
def test_products_are_counted_as_often_as_they_run(program, arguments, by_hand):
    """Oracle: by hand: 2 m k n a product, batched, differentiated, scanned, nested, dropped, chosen."""
    assert counted(program, *arguments) == by_hand


def test_what_remat_computes_again_counts_again():
    """Oracle: by hand: forward, the same again in the backward pass, and two gradients."""
    grad = jax.grad(functools.partial(chain, wrap=jax.checkpoint), argnums=(0, 1))
    assert counted(grad, X, WS) == 4 * CHAIN


@pytest.mark.parametrize(("axis", "share"), [("data", 1), ("tensor", 4)])
def test_a_shard_map_counts_for_every_device_that_runs_it(axis, share):
    """Oracle: by hand: eight devices, two rows each of one product; or, with rows that the map does not
    split, the same four times over.
    """
    mesh = make_mesh(data=2 if share > 1 else 8, tensor=share)
    spec = PartitionSpec("data")
    product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert counted(product, jnp.ones((16, 5)), W) == share * 2 * 16 * 5 * 7


def test_a_ragged_product_counts_each_row_once():
    """Oracle: by hand: 12 rows through one [5 7] matrix each, whatever the number of experts; both gradients
    cost the same.
    """
    rows, kernel, sizes = jnp.ones((12, 5)), jnp.ones((4, 5, 7)), jnp.array([3, 0, 4, 5])
    assert counted(jax.lax.ragged_dot, rows, kernel, sizes) == 2 * 12 * 5 * 7

    def total(rows, kernel):
        return (jax.lax.ragged_dot(rows, kernel, sizes) ** 2).sum()

    assert counted(jax.grad(total, argnums=(0, 1)), rows, kernel) == 3 * 2 * 12 * 5 * 7


def test_a_product_that_runs_as_often_as_the_data_say_is_refused():
    """Oracle: a while loop whose end is an argument has no count."""

    def repeat(x, w, n):
        return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ w), (0, x))

    with pytest.raises(ValueError, match="products of a while"):
        counted(repeat, X, jnp.ones((5, 5)), 3)


def test_a_kernel_counts_what_it_says_itself_and_is_refused_where_it_says_nothing():
    """Oracle: by hand: a grid of three, whose length the jaxpr of the body does not tell."""

    def kernel(x_ref, w_ref, out_ref):
        out_ref[...] = x_ref[...] @ w_ref[...]

    def product(x, w, **options):
        shape = jax.ShapeDtypeStruct((3, 7), jnp.float32)
        return pl.pallas_call(kernel, out_shape=shape, grid=(3,), **options)(x, w)

    estimate = pl.CostEstimate(flops=3 * XW, transcendentals=0, bytes_accessed=0)
    assert counted(functools.partial(product, cost_estimate=estimate), X, W) == 3 * XW
    with pytest.raises(ValueError, match="give a kernel a cost_estimate"):
        counted(product, X, W)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_models_gradient_is_counted_as_xla_counts_it(remat):
    """Oracle: XLA's cost analysis of the unrolled program before it optimizes. It counts what is no product
    too: at these sizes not a hundredth of all.
    """
    config = dataclasses.replace(
        named("smollm2_135m"), num_hidden_layers=2, vocab_size=512, dtype="float32", remat=remat
    )
    params = nn.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), ids)
    batch |= dict(loss_mask=jax.ShapeDtypeStruct((2, 64), bool), normalizer=1.0, num_tokens=1.0)
    gradient = jax.value_and_grad(lambda p, b: next_token_loss(config, p, b), has_aux=True)
    traced = jax.jit(gradient).trace(params, batch)
    by_xla = traced.lower().cost_analysis()["flops"]
    assert 0.99 * by_xla < matmul_flops(traced.jaxpr) <= by_xla


def test_the_published_model_needs_the_published_operations():
    """Oracle: arXiv:2412.19437, section 4.2: 37B of 671B parameters active; by hand, layer by layer: 219.7
    GFLOP for the weights of a token and 3 x 10.2 for half of 4096 keys in 61 layers of 128 heads.
    """
    d, v, t = 7168, 129280, 4096
    attention = d * 1536 + 1536 * 128 * 192 + d * 576 + 512 * 128 * 256 + 128 * 128 * d
    expert, router = 3 * d * 2048, 256 * d
    layer = attention + 9 * expert + router
    weights = v * d + 3 * (attention + 3 * d * 18432) + 58 * layer
    config = named("deepseek_v3")
    assert active_weights(config) == weights and 36.5e9 < weights < 37e9
    scores = 6 * 61 * 128 * (192 + 128) * t / 2
    assert useful_flops(config, t, trains_mtp=False) == 6 * weights + scores
    further = 6 * (layer + 2 * d * d + v * d) + scores / 61
    assert useful_flops(config, t, trains_mtp=True) == 6 * weights + scores + further


def test_sparse_attention_needs_its_selection_and_all_index_scores():
    """Oracle: V3's operations, and by hand: at 32K tokens a query scores 16K keys on average with 64 heads of
    128 and attends to 2048 (1 - 2048 / 64K) of them; the indexer needs no backward pass unless it learns.
    """
    t, dense, sparse = 32768, named("deepseek_v3"), named("deepseek_v3_2")
    index = 1536 * 8192 + 7168 * (128 + 64)
    assert active_weights(sparse) == active_weights(dense) + 61 * index
    attended = 2048 * (1 - 2048 / 65536)
    width = 61 * 128 * (192 + 128)
    base = 6 * (active_weights(dense) + width * attended)
    scores = 61 * (index + 8192 * t / 2)
    assert useful_flops(sparse, t, trains_mtp=False) == pytest.approx(base + 2 * scores)
    learns = dataclasses.replace(sparse, indexer_loss="sparse")
    assert useful_flops(learns, t, trains_mtp=False) == pytest.approx(base + 6 * scores)
    # The model's own forward pass over all keys, and both passes of the indexer
    warm_up = dataclasses.replace(sparse, indexer_loss="dense")
    forward = 2 * (active_weights(dense) + width * t / 2)
    assert warm_up_flops(warm_up, t, trains_mtp=False) == pytest.approx(forward + 6 * scores)
    # A decoding step at 128K: the scores of all keys, attention over the selection
    keys = 131072
    step = forward_flops(sparse, keys)
    assert step == 2 * (active_weights(sparse) + width * 2048 + 61 * 8192 * keys)
    assert 3.3 < forward_flops(dense, keys) / step < 3.4


@pytest.mark.parametrize("form", ["none", "sparse"])
def test_the_scores_of_a_sparse_model_are_counted_as_its_program_computes_them(form):
    """Oracle: the forward program's products, which mask what is not selected: all of a row of 64 in place of
    the half that a query sees; the indexer's loss makes both kinds of scores once more.
    """
    dense = dict(n_routed_experts=None, first_k_dense_replace=0)
    config = ModelConfig(**models.deepseek_v3_2_tiny() | dense, indexer_loss=form)
    params = nn.unbox(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    tokens = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def run(params, tokens):
        hidden, report, _ = reported_states(config, params, tokens)
        return hidden, report.indexer

    products = matmul_flops(jax.jit(run).trace(params, tokens).jaxpr)
    head = 2 * config.vocab_size * config.hidden_size
    by_hand = forward_flops(config, 64, attended=64) - head
    if form == "sparse":
        by_hand += 2 * config.num_hidden_layers * (8 * 48 + 16 * 32) * 64
    # The weighted sum of an indexer's heads is no product
    assert products == 2 * 64 * by_hand


def test_a_dense_models_active_weights_are_all_but_its_norms():
    """Oracle: the count of parameters, less scales and biases by hand; the tied head is the embedding."""
    config = named("smollm2_135m")
    assert active_weights(config) == count_params(config) - (2 * 30 + 1) * 576
    config = named("qwen2_5_math_1_5b")
    biases = 28 * (12 + 2 * 2) * 128
    assert active_weights(config) == count_params(config) - biases - (2 * 28 + 1) * 1536


def test_a_frozen_weight_needs_two_products_of_three():
    """Oracle: by hand: 4 for each weight that a token meets; attention has no weights and needs all three."""
    config, _ = tiny_model("gqa")
    every, frozen = (useful_flops(config, 64, trains_mtp=False, frozen=f) for f in (False, True))
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * 2 * config.head_dim * 32
    assert every - attention == pytest.approx(1.5 * (frozen - attention))


@pytest.mark.slow
def test_deepseek_v4_flash_needs_the_published_operations():
    """Oracle: 13B of 284B parameters active (arXiv:2606.19348), and by hand, kind by kind of layer."""
    d, v, f = 4096, 129280, 2048
    attention = d * 1024 + 1024 * 64 * 512 + d * 512 + 8 * (8 * 512 * 1024) + 8 * 1024 * d
    layer = attention + 7 * 3 * d * f + 256 * d + 2 * 4 * d * 24
    index = 1024 * 64 * 128 + d * 64 + 2 * d * 256
    csa, hca = 2 * d * 1024 + index, 2 * d * 512
    weights = 43 * layer + 21 * csa + 20 * hca + v * d + 4 * d * 4
    config = named("deepseek_v4_flash")
    assert active_weights(config) == weights and 13.2e9 < weights < 13.3e9
    # Its module: no compressor, two square matrices of which one meets four streams
    assert active_weights(config, 1) == weights + layer + 5 * d * d + v * d + 4 * d * 4


def few_layers_of_flash():
    """Two layers of windows, one of CSA and one of HCA."""
    config = named("deepseek_v4_flash")
    ratios = config.compress_ratios
    return dataclasses.replace(
        config, num_hidden_layers=4, compress_ratios=(*ratios[:4], *ratios[43:])
    )


@pytest.mark.parametrize("length", [256, 4096])
def test_deepseek_v4_attends_to_windows_and_entries(length):
    """Oracle: a loop over the queries of a row, which counts what each layer lets it see."""
    config = few_layers_of_flash()
    seen = 0
    for at in range(length):
        for kind in config.layers:
            entries = (at + 1) // kind.rate if kind.rate else 0
            entries = min(entries, 512) if kind.rate == 4 else entries
            seen += min(at + 1, 128) + entries
    # The formulas count half a token less at each end
    assert attended_keys(config, length) == pytest.approx(seen / length / 4, rel=0.02)
    # One query of decoding
    last = [min(length, 128)] * 4
    by_kind = {0: 0, 4: min(length / 4, 512), 128: length / 128}
    last = [n + by_kind[kind.rate] for n, kind in zip(last, config.layers, strict=True)]
    step = 2 * (active_weights(config) + 64 * 2 * 512 * sum(last) + 64 * 128 * length / 4)
    assert forward_flops(config, length) == pytest.approx(step)


def test_deepseek_v4s_indexers_need_no_backward_pass_unless_they_learn():
    """Oracle: by hand, as for V3.2; the weights of all indexers are those of the tree."""
    config = few_layers_of_flash()
    flat = flatten_dict(nn.unbox(abstract_init(config)))
    index = sum(
        leaf.size
        for path, leaf in flat.items()
        if "indexer" in path and path[-1] not in ("scale", "position_bias")
    )
    assert indexer_flops(config, 0) == 2 * index
    learns = dataclasses.replace(config, indexer_loss="sparse")
    ours, more = (useful_flops(c, 4096, trains_mtp=False) for c in (config, learns))
    assert more - ours == pytest.approx(2 * indexer_flops(config, 2048))
