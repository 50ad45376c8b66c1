"""Params of which the indexers learn alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from configs import models
from deepseek_jax.data.batches import TOTALS
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import abstract_init, build_model, random_params
from deepseek_jax.models.adapters import join, split, whole
from deepseek_jax.models.trained_part import indexers_of, with_indexers
from deepseek_jax.parallel import make_mesh

SPARSE = build_model(models.deepseek_v3_2_tiny() | dict(indexer_loss="dense"))


def host_params(config):
    """Every parameter with noise around its usual mean: made on the host, since an init compiles long."""
    rng = np.random.default_rng(0)

    def noise(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.1, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(noise, nn.unbox(abstract_init(config)))


def test_the_part_and_the_rest_are_the_whole():
    """Oracle: the tree itself; the trained leaves are those with "indexer" in their path."""
    params = host_params(SPARSE)
    part = indexers_of(params)
    trained, frozen = split(part)
    assert trained is part.trained and frozen.trained is None
    back = join(trained, frozen)
    for ours in (whole(part), whole(back)):
        jax.tree.map(np.testing.assert_array_equal, ours, params)
    named = {"/".join(path) for path in flatten_dict(params) if "indexer" in path}
    assert {"/".join(path) for path in flatten_dict(trained)} == named
    assert len(named) == 2 * 5


def test_the_gradient_of_the_part_is_that_of_the_whole():
    """Oracle: the indexers' share of the gradient in all parameters. One dense layer."""
    config = dataclasses.replace(SPARSE, num_hidden_layers=1)
    params = host_params(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, SPARSE.vocab_size)
    ones = jnp.ones_like(tokens)
    batch = dict(tokens=tokens, targets=tokens, segment_ids=ones, loss_mask=ones > 0)
    batch["positions"] = jnp.broadcast_to(jnp.arange(24), tokens.shape)
    batch |= dict.fromkeys(TOTALS, jnp.float32(tokens.size))

    def loss(params):
        return next_token_loss(config, params, batch)[0]

    trained, frozen = split(indexers_of(params))
    ours = jax.jit(jax.grad(lambda trained: loss(join(trained, frozen))))(trained)
    theirs = indexers_of(jax.jit(jax.grad(loss))(params)).trained
    # Other fusions, other roundings
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), ours, theirs)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(ours))


def test_a_dense_model_gains_indexers_in_their_shards():
    """Oracle: random_params of the sparse model: its tree, shapes, dtypes, shardings and deviations; what is
    no indexer's is the tree of a dense model.
    """
    mesh = make_mesh(fsdp=2, expert=2, context=2)
    with jax.set_mesh(mesh):
        theirs = random_params(SPARSE, mesh, 0)
        dense = indexers_of(theirs).frozen
        ours = with_indexers(SPARSE, dense, mesh, 1)
    tree = nn.unbox(abstract_init(build_model(models.deepseek_v3_tiny())))
    assert jax.tree.map(np.shape, dense) == jax.tree.map(np.shape, tree)

    def same(ours, theirs):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
        np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.2, atol=1e-3)

    jax.tree.map(same, ours, theirs)
    rest = indexers_of(ours).frozen
    jax.tree.map(np.testing.assert_array_equal, rest, dense)
