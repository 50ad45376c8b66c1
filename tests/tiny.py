"""Tiny models for tests, with every parameter random: no scale is one, no bias zero."""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepseek_jax import models
from deepseek_jax.checkpoint import save_orbax
from deepseek_jax.data.carried import carried_files
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.arithmetic.world import SUMS
from tests.caches import CACHES

VOCAB = 50
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    intermediate_size=32,
    num_attention_heads=4,
    num_hidden_layers=2,
    max_position_embeddings=128,
)
MLA_MOE = dict(
    model_type="deepseek_v3",
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
    **SIZES,
)
CONFIGS = {
    "gqa": ModelConfig(
        model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True, **SIZES
    ),
    "mla_moe": ModelConfig(**MLA_MOE),
}


MTP = ModelConfig(**MLA_MOE | dict(num_nextn_predict_layers=2))
# Two index heads: ReLU leaves many scores at exactly 0, so that ties decide what is selected
SPARSE = ModelConfig(
    **MLA_MOE
    | dict(
        model_type="deepseek_v32",
        index_n_heads=2,
        index_head_dim=8,
        index_topk=5,
        num_nextn_predict_layers=1,
    )
)


@functools.cache
def tiny_model(kind):
    """(ModelConfig, float32 params) of a key of CONFIGS, "mtp" or "sparse"; logits of a few units."""
    config = (CONFIGS | {"mtp": MTP, "sparse": SPARSE})[kind]

    @jax.jit
    def make(rng):
        return nn.unbox(random_leaves(init_params(config, rng), rng))

    return config, kept(repr(config), lambda: make(jax.random.key(0)))


def kept(name, make):
    """make(), a dict of dicts of arrays, from a file where it has been made before: of the same name, and by
    the same code of models and of the file that make is in. To trace an init takes longer than most of what
    is tested with it.
    """
    code = [__file__, make.__code__.co_filename, *Path(models.__file__).parent.rglob("*.py")]
    code = sorted({Path(file).resolve() for file in code})
    key = hashlib.sha256("".join([name, jax.__version__, *(f.read_text() for f in code)]).encode())
    path = CACHES / "tiny" / f"{key.hexdigest()[:16]}.npz"
    # tests.mutants notes which lines a test reaches
    if path.exists() and "REACHED" not in os.environ:
        flat = {name: jnp.asarray(array) for name, array in np.load(path).items()}
        return unflatten_dict(flat, sep="/")
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may read or write it
    own = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(own, **jax.device_get(flatten_dict(made, sep="/")))
    own.replace(path)
    return made


def save_tiny_model(folder, **sizes):
    """Write a "gqa" model of the small world of sums as a recipe does: -> (ModelConfig, params)."""
    tokenizer = arithmetic_tokenizer()
    ids = dict(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    config = dataclasses.replace(CONFIGS["gqa"], **ids, **sizes)
    make = jax.jit(lambda rng: nn.unbox(random_leaves(init_params(config, rng), rng)))
    params = kept(repr(config), lambda: make(jax.random.key(0)))
    save_orbax(folder, config, params, carried_files(tokenizer, SUMS.template))
    return config, params


def random_leaves(params, rng):
    """The same tree with normal noise of size 0.2 on every leaf, boxed or not."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(rng, len(leaves))
    return tree.unflatten(
        [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    )
