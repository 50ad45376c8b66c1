"""DeepSeek-V4's layers in a loop over groups of kinds, in place of one program for each layer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import models
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import build_model
from deepseek_jax.models.v4.config import CSA, HCA, WINDOW, LayerKind, repeating
from tests.losses.test_next_token import make_batch
from tests.models.v4 import tiny
from tests.models.v4.test_training import random_params
from tests.quick import others_slow

# Before the loop a layer with a table; the loop has two groups of two kinds
LAYERS = (HCA, CSA, HCA, CSA, HCA)
CONFIG = tiny.config(
    num_hidden_layers=len(LAYERS), layer_types=LAYERS, index_topk=2, indexer_loss="sparse"
)


def kinds(text):
    """Layers by letter: w, c and h, a capital with a table."""
    by_letter = {"w": (WINDOW, 0), "c": (CSA, 4), "h": (HCA, 128)}
    return tuple(LayerKind(*by_letter[x.lower()], has_table=x.isupper()) for x in text)


@pytest.mark.parametrize(
    ("layers", "first", "period"),
    [
        ("wch", 3, 1),
        ("wchch", 1, 2),
        ("Wccc", 1, 1),
        ("wwww", 0, 1),
        ("WCchchc", 3, 2),
        ("wchwch", 0, 3),
        ("c", 1, 1),
    ],
)
def test_the_layers_that_repeat(layers, first, period):
    """Oracle: by hand."""
    assert repeating(kinds(layers)) == (first, period)


def test_flash_repeats_twenty_times():
    """Oracle: by hand: two windows and a CSA layer have tables, then HCA and CSA in turn."""
    layers = build_model(models.deepseek_v4_flash()).layers
    assert repeating(layers) == (3, 2) and len(layers) == 3 + 20 * 2


@pytest.mark.parametrize("remat", others_slow(["none", "full"], "full"))
def test_a_loop_computes_what_unrolled_layers_do(remat):
    """Oracle: the same model without the loop, which recomputes nothing: loss, metrics of each layer,
    gradients, float32.
    """
    params, batch = random_params(CONFIG), make_batch()

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, params):
        loss_fn = functools.partial(next_token_loss, config)
        return jax.value_and_grad(loss_fn, has_aux=True)(params, batch)

    looped = dataclasses.replace(CONFIG, remat=remat, scan_layers=True)
    assert repeating(CONFIG.layers) == (1, 2)
    ours, theirs = run(looped, params), run(CONFIG, params)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)

    def close(own, other):
        largest = max(float(np.abs(other).max()), 1e-3)
        np.testing.assert_allclose(own, other, rtol=0, atol=3e-5 * largest)

    jax.tree.map(close, ours, theirs)


def test_a_loop_has_one_group_of_layers():
    """Oracle: by hand: the products of a CSA and an HCA layer, which the loop has once in place of twice."""
    params, batch = random_params(CONFIG), make_batch()

    def products(config):
        lowered = jax.jit(lambda params: next_token_loss(config, params, batch)[0]).lower(params)
        return lowered.as_text().count("dot_general")

    looped = dataclasses.replace(CONFIG, scan_layers=True)
    groups = dict(num_hidden_layers=3, layer_types=LAYERS[:3])
    shorter = dataclasses.replace(CONFIG, **groups)
    assert products(looped) == products(shorter) < products(CONFIG)
