"""The first stages of a line, which train nothing, read as a run's Context reads them."""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from deepseek_jax.checkpoint import save_orbax
from deepseek_jax.models import init_params
from deepseek_jax.recipes.kinds.given import GivenPolicy, Random
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.stage import Context
from deepseek_jax.rollout import Policy
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.arithmetic.world import SUMS
from tests.recipes.small import make_run
from tests.tiny import CONFIGS, save_tiny_model

RANDOM = Random("random", None, seed=3)
CONFIG = dataclasses.replace(CONFIGS["mla_moe"], dtype="bfloat16")


def context_of(stage, config, folder):
    policy = Policy(config, None, arithmetic_tokenizer(), SUMS.template)
    by_name = {stage.name: stage}, {stage.name: policy}
    return Context(stage, make_run(folder), folder, *by_name, contextlib.ExitStack(), {}, {})


def assert_equal(params, expected):
    params = flatten_dict(nn.unbox(params), sep="/")
    assert params.keys() == expected.keys()
    for path, array in expected.items():
        assert params[path].dtype == array.dtype, path
        np.testing.assert_array_equal(params[path], array, err_msg=path)


def test_random_params_are_drawn_again_by_the_stages_seed(tmp_path):
    """Oracle: init_params of that seed, called here, and its arrays rounded one by one for sampling."""
    drawn = jax.jit(lambda rng: nn.unbox(init_params(CONFIG, rng)))(jax.random.key(3))
    drawn = flatten_dict(drawn, sep="/")
    rounded = {
        path: array if "router" in path else array.astype(jnp.bfloat16)
        for path, array in drawn.items()
    }
    context = context_of(RANDOM, CONFIG, tmp_path)
    assert_equal(RANDOM.run(context).params, drawn)
    assert_equal(context.load("random").params, drawn)
    assert_equal(context.load("random", trained=False).params, rounded)


def test_random_params_have_to_be_in_a_folder_only_where_they_are_saved(tmp_path):
    """Oracle: an empty folder, and one with saved parameters."""
    config, params = save_tiny_model(tmp_path / "model")
    saved = Random("random", None, is_saved=True)
    assert RANDOM.is_left(tmp_path) and not saved.is_left(tmp_path)
    save_orbax(tmp_path / "params", config, params)
    assert RANDOM.is_left(tmp_path) and saved.is_left(tmp_path)


def test_a_given_checkpoint_is_read_where_it_is(tmp_path):
    """Oracle: the parameters that the checkpoint was written from; the stage's own folder stays empty."""
    config, params = save_tiny_model(tmp_path / "model")
    origin = Origin({}, SUMS.template, str(tmp_path / "model"))
    stage = GivenPolicy("start", None, origin=origin)
    context = context_of(stage, config, tmp_path)
    assert stage.is_left(context.stage_folder) and stage.run(context) is None
    assert context.path_of("start") == str(tmp_path / "model")
    assert_equal(context.load("start").params, flatten_dict(params, sep="/"))
    assert not context.stage_folder.exists()
