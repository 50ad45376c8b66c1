"""Muon: which parameters are matrices, and how far an update moves them."""

import dataclasses
import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs import models
from deepseek_jax.models import abstract_init, build_model, init_params
from deepseek_jax.parallel import make_mesh, shardings
from deepseek_jax.parallel.shard import logical_names
from deepseek_jax.training.muon import COEFFICIENTS, is_matrix
from deepseek_jax.training.optimizer import OptimizerSettings, make_optimizer
from deepseek_jax.training.schedule import make_schedule
from deepseek_jax.training.state import state_maker
from tests.tiny import MTP, random_leaves, tiny_model

SETTINGS = dict(b1=0.9, b2=0.95, weight_decay=0.1, max_grad_norm=1e9, momentum=0.95)
RATE = 0.01


def make():
    return make_optimizer(make_schedule(RATE, num_steps=10), trained_parts=("mtp",), **SETTINGS)


def directions(momentum):
    """V4's ten steps on each matrix of a stack [... n m], in float64."""
    x = momentum / np.linalg.norm(momentum, axis=(-2, -1), keepdims=True)
    for a, b, c in COEFFICIENTS:
        gram = x @ np.swapaxes(x, -2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


# Of a parameter: its axes as inputs and outputs of a stack of matrices, by hand
MATRICES = {
    ("moe_layers", "attention", "q_down"): "l (d) (q)",
    ("moe_layers", "attention", "q_up"): "l (q) (h x)",
    ("moe_layers", "attention", "k_up"): "l (c) (h n)",
    ("moe_layers", "attention", "out"): "l (h u) (d)",
    ("moe_layers", "ffn", "router"): "l (d) (e)",
    ("moe_layers", "ffn", "gate_up"): "l e (d) 2 (f)",
    ("moe_layers", "ffn", "down"): "l e (f) (d)",
    ("moe_layers", "ffn", "shared", "gate_up"): "l (d) 2 (f)",
    ("dense_layers", "ffn", "down"): "l (f) (d)",
    ("mtp_0", "input"): "(z) (d)",
    ("mtp_0", "block", "ffn", "down"): "e (f) (d)",
    ("mtp_0", "block", "attention", "out"): "(h u) (d)",
}


def stacked(array, form):
    """(matrices [... inputs outputs] of a parameter, the inverse)."""
    words = form.replace("(", " ( ").replace(")", " ) ").split()
    order, groups, axis, inside = [], [], 0, False
    for word in words:
        if word in "()":
            inside = word == "("
            groups += [[]] * inside
            continue
        if inside:
            groups[-1] = groups[-1] + [axis]
        else:
            order.append(axis)
        axis += 1
    axes = order + groups[0] + groups[1]
    turned = np.transpose(array, axes)
    lead = turned.shape[: len(order)]
    inputs = np.prod([array.shape[a] for a in groups[0]], dtype=int)
    flat = turned.reshape(*lead, inputs, -1)
    return flat, lambda x: np.transpose(x.reshape(turned.shape), np.argsort(axes))


# DeepSeek-V4's: the heads of a group are projected together, and a sublayer mixes all streams
MATRICES_OF_V4 = {
    ("layers_0", "attention", "q_up"): "(q) (h x)",
    ("layers_0", "attention", "out_down"): "g (h x) (c)",
    ("layers_0", "attention", "out_up"): "(g c) (d)",
    ("layers_0", "ffn", "gate_up"): "e (d) 2 (f)",
    ("layers_1", "attention", "compressor", "kv"): "(d) (z x)",
    ("layers_1", "ffn_mixing", "mix"): "(z d) (m)",
}


# A plain one, one in parts, one without a stack, and one of V4's groups; the others differ in their axes
QUICK = [
    ("moe_layers", "attention", "k_up"),
    ("moe_layers", "ffn", "gate_up"),
    ("mtp_0", "block", "attention", "out"),
    ("layers_0", "attention", "out_down"),
]
PATHS = [
    path if path in QUICK else pytest.param(path, marks=pytest.mark.slow)
    for path in (*MATRICES, *MATRICES_OF_V4)
]


@pytest.mark.parametrize("path", PATHS, ids="/".join)
def test_a_matrix_moves_by_its_orthogonal_direction(path):
    """Oracle: 20 updates in float64 numpy (arXiv:2502.16982, section 2.1): M = 0.95 M + G, ten Newton-Schulz
    steps of 0.95 M + G, times sqrt(max(n, m)) * 0.18, decay and the rate. Which axes belong to a matrix
    stands above. Each update rounds to float32, and small singular values amplify that.
    """
    form = (MATRICES | MATRICES_OF_V4)[path]
    leaf = v4_params() if path in MATRICES_OF_V4 else tiny_model("mtp")[1]
    for key in path:
        leaf = leaf[key]
    tx, own = make(), np.float32(leaf)
    state, wanted = tx.init(nest(path, own)), np.float64(leaf)
    update, rng, momentum = jax.jit(tx.update), np.random.default_rng(0), 0.0
    for _ in range(20):
        grad = np.float32(rng.normal(size=leaf.shape))
        updates, state = update(nest(path, grad), state, nest(path, own))
        (moved,) = jax.tree.leaves(updates)
        momentum = 0.95 * momentum + np.float64(grad)
        matrices, back = stacked(0.95 * momentum + grad, form)
        scale = 0.18 * max(matrices.shape[-2:]) ** 0.5
        direction = -RATE * (back(scale * directions(matrices)) + 0.1 * wanted)
        np.testing.assert_allclose(moved, direction, rtol=2e-4, atol=2e-6)
        own, wanted = own + moved, wanted + direction


@pytest.mark.parametrize("moment_dtype", ["float32", "bfloat16"])
def test_the_momentum_has_the_dtype_that_is_asked_for(moment_dtype):
    """Oracle: by hand: the state has a moment of each matrix, and counters."""
    schedule = make_schedule(RATE, num_steps=10)
    tx = make_optimizer(schedule, moment_dtype=moment_dtype, **SETTINGS)
    state = tx.init(nest(("moe_layers", "ffn", "router"), jnp.zeros((1, 12, 8))))
    dtypes = [leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.shape]
    assert dtypes == [moment_dtype]


def v4_shapes(sizes):
    return nn.unbox(abstract_init(build_model(sizes)))


@functools.cache
def v4_params():
    rng = np.random.default_rng(1)
    shapes = v4_shapes(models.deepseek_v4_tiny())
    return jax.tree.map(lambda x: np.float32(0.02 * rng.normal(size=x.shape)), shapes)


def test_in_deepseek_v4_all_but_vectors_tables_and_vocabulary_are_matrices():
    """Oracle: by hand, the names (arXiv:2606.19348: AdamW for embedding, head, norms, bases and scales)."""
    paths = jax.tree.leaves_with_path(v4_params())
    others = {path[-1].key for path, _ in paths if not is_matrix(path)}
    biases = {"router_bias", "sink_bias", "base_bias", "position_bias"}
    assert others == {"embedding", "head", "scale", "expert_table"} | biases


@pytest.mark.slow
def test_layers_with_parameters_of_their_own_share_one_program():
    """Oracle: each parameter moved alone, to the bit; and two more layers add no product to the program."""
    products = []
    for more in (0, 2):
        sizes = models.deepseek_v4_tiny()
        sizes["layer_types"] = (*sizes["layer_types"], *sizes["layer_types"][-1:] * more)
        sizes["num_hidden_layers"] += more
        shapes, tx, rng = v4_shapes(sizes), make(), np.random.default_rng(0)

        def draw(x, rng=rng):
            return np.float32(rng.normal(size=x.shape))

        params, grads = (jax.tree.map(draw, shapes) for _ in range(2))
        state = jax.jit(tx.init)(params)
        products.append(str(jax.make_jaxpr(tx.update)(grads, state, params)).count("dot_general"))
    assert products[0] == products[1]
    updates, _ = jax.jit(tx.update)(grads, state, params)
    for path, leaf in jax.tree.leaves_with_path(updates):
        keys = [key.key for key in path]
        if is_matrix(path) and keys[0] == "layers_2":
            grad, own = (nest(keys, functools.reduce(dict.get, keys, x)) for x in (grads, params))
            (alone,) = jax.tree.leaves(jax.jit(tx.update)(grad, tx.init(own), own)[0])
            np.testing.assert_array_equal(leaf, alone, err_msg=str(keys))


def test_the_momentum_is_that_of_torch():
    """Oracle: what enters the Newton-Schulz steps of torch.optim.Muon at each of 20 updates, orthogonalised
    in float64: torch's own steps are bfloat16 with other coefficients, and a factor of their input cancels.
    """
    rng, entered, steps = np.random.default_rng(0), [], torch.optim._muon
    weight = torch.zeros(12, 8, requires_grad=True)
    theirs = torch.optim.Muon([weight], momentum=SETTINGS["momentum"])

    def recording(momentum, *options):
        entered.append(momentum.double().numpy())
        return torch.zeros_like(momentum)

    path = "moe_layers", "ffn", "router"
    tx, tree = make(), nest(path, jnp.zeros((1, 12, 8)))
    state, update = tx.init(tree), jax.jit(tx.update)
    with mock.patch.object(steps, "_zeropower_via_newtonschulz", recording):
        for number in range(20):
            # Later gradients are smaller: the share of the newest one decides the direction
            grad = np.float32(rng.normal(size=(12, 8)) / (1 + number))
            weight.grad = torch.tensor(grad)
            theirs.step()
            updates, state = update(nest(path, grad[None]), state, tree)
            (moved,) = jax.tree.leaves(updates)
            direction = 0.18 * 12**0.5 * directions(entered[-1])
            np.testing.assert_allclose(moved[0], -RATE * direction, rtol=2e-4, atol=2e-6)


def nest(path, leaf):
    for key in reversed(path):
        leaf = {key: leaf}
    return leaf


def test_all_directions_of_a_matrix_learn_at_one_pace():
    """Oracle: numpy's singular values, which the last two steps of V4's ten bring to 1."""
    rng = np.random.default_rng(0)
    grad = rng.normal(size=(24, 16)) @ np.diag(np.logspace(0, -2, 16)) @ rng.normal(size=(16, 16))
    values = np.linalg.svd(directions(grad), compute_uv=False)
    assert abs(values - 1).max() < 1e-2


@pytest.mark.slow
def test_embedding_head_norms_and_biases_are_adams():
    """Oracle: by hand, the names; and the update of AdamW alone, bit for bit."""
    _, params = tiny_model("mtp")
    paths = jax.tree.leaves_with_path(params)
    others = {path[-1].key for path, _ in paths if not is_matrix(path)}
    assert others == {"embedding", "head", "scale", "router_bias"}
    grads = jax.tree.map(jnp.ones_like, params)
    alone = make_optimizer(
        make_schedule(RATE, num_steps=10), trained_parts=("mtp",), **SETTINGS | dict(momentum=None)
    )
    (ours, _), (theirs, _) = (tx.update(grads, tx.init(params), params) for tx in (make(), alone))
    for (path, own), other in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        if not is_matrix(path):
            np.testing.assert_array_equal(own, other)


@pytest.mark.slow
def test_a_sharded_update_is_that_of_one_device():
    """Oracle: one device; the moments lie as their parameters do. float32 sums in another order."""
    boxed = jax.eval_shape(lambda: init_params(MTP, jax.random.key(0)))
    _, params = tiny_model("mtp")
    # Of full rank: the direction of a singular value near 0 would be that of rounding
    grads = random_leaves(params, jax.random.key(1))
    tx = make()
    wanted, _ = tx.update(grads, tx.init(params), params)
    mesh = make_mesh(fsdp=2, expert=2, tensor=2)
    places = shardings(mesh, logical_names(boxed), nn.unbox(boxed))
    own, own_grads = (jax.device_put(tree, places) for tree in (params, grads))
    create, placed = state_maker(own, tx, mesh)
    with jax.set_mesh(mesh):
        state = create(jax.tree.map(jnp.copy, own))
        updates, _ = jax.jit(tx.update)(own_grads, state.opt_state, own)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), updates, wanted
    )
    moments = optax.tree.get_all_with_path(state.opt_state, "trace")
    held = {leaf.sharding.spec for _, tree in moments for leaf in jax.tree.leaves(tree)}
    assert any("expert" in str(spec) for spec in held)


def test_wrong_settings_are_named():
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match="^momentum=0.9 is Muon's; set b1, or kind to 'muon'"):
        OptimizerSettings(learning_rate=0.1, momentum=0.9)
    settings = OptimizerSettings(learning_rate=0.1, kind="muon")
    adapter = {"moe_layers": {"self_attn.q_proj": {"lora_a": jnp.ones((2, 3))}}}
    with pytest.raises(ValueError, match="kind='muon' finds no matrix"):
        settings.make(10).init(adapter)
    assert dataclasses.replace(settings, momentum=0.9).momentum == 0.9
