"""The cost of serving a model: bytes to store, bytes to read for each token, chips."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from deepseek_jax.checkpoint.hf_names import is_projection, tensors
from deepseek_jax.models.cache import empty_cache
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.ops.fp8 import BLOCK

FORMATS = ("bf16", "fp8")


def served(config: ModelConfig) -> ModelConfig:
    """Return the config without multi-token prediction, which plain decoding does not need."""
    return dataclasses.replace(config, num_nextn_predict_layers=0)


@functools.cache
def tensor_bytes(config: ModelConfig, form: str) -> dict[str, int]:
    """Return the bytes of every tensor of a checkpoint, by Hugging Face's names.

    Args:
        config: The model.
        form: "bf16", two bytes a number; or "fp8", as released for DeepSeek-V3 (arXiv:2412.19437,
            section 3.3.2). In "fp8" projections, also in experts, take one byte a number, and four
            bytes for the scale of each block of 128 x 128, including incomplete blocks; embedding,
            head, router, norms and biases are as in "bf16". The balancing bias of the router is
            float32 in both.

    Raises:
        ValueError: For another form.
    """
    if form not in FORMATS:
        raise ValueError(f"form={form!r} is not one of {', '.join(FORMATS)}")
    return {
        name: _bytes(name, places[0].turn.shape, form) for name, places in tensors(config).items()
    }


def _bytes(name, shape, form):
    size = math.prod(shape)
    if form == "fp8" and is_projection(name):
        # One float32 scale for each block, and one byte for each number
        blocks = (-(-n // block) for n, block in zip(shape, BLOCK, strict=True))
        return size + 4 * math.prod(blocks)
    return (4 if name.endswith("e_score_correction_bias") else 2) * size


def weight_bytes(config: ModelConfig, form: str) -> int:
    """Return the bytes of all weights, see tensor_bytes."""
    return sum(tensor_bytes(config, form).values())


def unquantised_bytes(config: ModelConfig) -> int:
    """Return the bytes of the weights that the form "fp8" does not quantise."""
    bytes_by_tensor = tensor_bytes(config, "fp8")
    return sum(size for name, size in bytes_by_tensor.items() if not is_projection(name))


def cache_bytes(config: ModelConfig) -> int:
    """Return the bytes of the decoding cache for one token, in all layers, in bfloat16."""
    # The decoder's own cache, so that this cannot differ from what it allocates
    return sum(_cache_parts(config).values())


def _cache_parts(config):
    token_cache = jax.eval_shape(lambda: empty_cache(config, 1, 1, jnp.bfloat16))
    return {name: config.num_hidden_layers * 2 * array.size for name, array in token_cache.items()}


def read_cache_bytes(config: ModelConfig, context_length: int) -> int:
    """Return the bytes of the cache that a decoding step reads for one sequence.

    With an indexer, it reads the indexer's keys of all tokens, and the rest only for the tokens
    that the indexer selects.
    """
    bytes_by_array = _cache_parts(config)
    if not config.selects(context_length):
        # Nothing is scored where everything is selected
        return context_length * sum(
            size for name, size in bytes_by_array.items() if name != "k_index"
        )
    index_bytes = bytes_by_array.pop("k_index")
    return context_length * index_bytes + config.indexer.index_topk * sum(bytes_by_array.values())


def distinct_experts(config: ModelConfig, tokens: int) -> float:
    """Return the expected number of distinct routed experts of a layer that `tokens` tokens choose.

    It is e (1 - (1 - a / e)^tokens): each token chooses a of e experts, uniformly and
    independently.
    """
    e, a, _ = config.experts
    return e * (1 - (1 - a / e) ** tokens)


def step_bytes(config: ModelConfig, form: str, batch_size: int, context_length: int) -> float:
    """Return the bytes that a decoding step reads to add a token to each of batch_size sequences.

    A step reads every weight once, but of the routed experts only distinct_experts, and
    read_cache_bytes for each sequence's context_length tokens. An embedding that is not the head
    too is not counted: a step reads one row of it for each token. Activations and writes are not
    counted either, so this is a lower bound.
    """
    total = float(batch_size * read_cache_bytes(config, context_length))
    num_experts = config.n_routed_experts or 0
    num_read = distinct_experts(config, batch_size) if num_experts else 0.0
    for name, size in tensor_bytes(config, form).items():
        # "mlp.experts.3.up_proj": a routed expert; shared ones are "mlp.shared_experts"
        if ".experts." in name:
            total += size * num_read / num_experts
        elif name != "model.embed_tokens.weight" or config.tie_word_embeddings:
            total += size
    return total


def tokens_per_second(
    config: ModelConfig,
    form: str,
    batch_size: int,
    context_length: int,
    bytes_per_second: float,
) -> float:
    """Return the most tokens a second, all sequences together, that a memory bandwidth allows.

    A step reads step_bytes. This is the rate of one chip, whether or not the weights fit in it; as
    long as nothing is read twice, n chips make n times as many tokens.
    """
    return batch_size * bytes_per_second / step_bytes(config, form, batch_size, context_length)


def chips_for(total_bytes: int, chip_bytes: int) -> int:
    """Return the fewest chips with chip_bytes of memory that can store total_bytes."""
    return -(-total_bytes // chip_bytes)
