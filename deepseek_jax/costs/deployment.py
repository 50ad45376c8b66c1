"""What a model takes in service: bytes to hold, bytes to read for each token, chips."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from deepseek_jax.checkpoint.hf_names import is_projection, tensors
from deepseek_jax.models.cache import empty_cache
from deepseek_jax.ops.fp8 import BLOCK

FORMATS = ("bf16", "fp8")


def served(config):
    """The ModelConfig without multi-token prediction, which plain decoding does not need."""
    return dataclasses.replace(config, num_nextn_predict_layers=0)


@functools.cache
def tensor_bytes(config, form):
    """Bytes of every tensor of a checkpoint, by Hugging Face's names.

    form: "bf16", two bytes a number; or "fp8", the released DeepSeek-V3's: projections, those of experts too,
    in one byte and four for the scale of each block of 128 x 128, begun ones included (arXiv:2412.19437,
    section 3.3.2); embedding, head, router, norms and biases as in bf16. The balancing bias of the router is
    float32 in both. Raises ValueError for another form.
    """
    if form not in FORMATS:
        raise ValueError(f"form={form!r} is not one of {', '.join(FORMATS)}")
    return {
        name: _bytes(name, places[0].turn.shape, form) for name, places in tensors(config).items()
    }


def _bytes(name, shape, form):
    size = math.prod(shape)
    if form == "fp8" and is_projection(name):
        blocks = (-(-n // block) for n, block in zip(shape, BLOCK, strict=True))
        return size + 4 * math.prod(blocks)
    return (4 if name.endswith("e_score_correction_bias") else 2) * size


def weight_bytes(config, form):
    """Bytes of all weights: int. form: as in tensor_bytes."""
    return sum(tensor_bytes(config, form).values())


def unquantised_bytes(config):
    """Those of them that "fp8" leaves as they are: int."""
    sizes = tensor_bytes(config, "fp8")
    return sum(size for name, size in sizes.items() if not is_projection(name))


def cache_bytes(config):
    """What decoding remembers of one token, in all layers, in bfloat16: int."""
    one = jax.eval_shape(lambda: empty_cache(config, 1, 1, jnp.bfloat16))
    return config.num_hidden_layers * sum(2 * array.size for array in one.values())


def distinct_experts(config, tokens):
    """How many routed experts of a layer this many tokens are expected to meet together: float.

    e (1 - (1 - a / e)^tokens): each token chooses its a of e experts uniformly and on its own.
    """
    e, a = config.n_routed_experts, config.num_experts_per_tok
    return e * (1 - (1 - a / e) ** tokens)


def step_bytes(config, form, batch_size, context_length):
    """What one decoding step reads from memory to add a token to each of batch_size sequences: float.

    Every weight once, of routed experts those of distinct_experts; of the embedding, unless it is the head as
    well, a row a token, which is not counted; and the cache of context_length tokens a sequence. Activations,
    and what the step writes, are left out: this is a lower bound.
    """
    total = float(batch_size * context_length * cache_bytes(config))
    for name, size in tensor_bytes(config, form).items():
        if ".experts." in name:
            total += size * distinct_experts(config, batch_size) / config.n_routed_experts
        elif name != "model.embed_tokens.weight" or config.tie_word_embeddings:
            total += size
    return total


def tokens_per_second(config, form, batch_size, context_length, bytes_per_second):
    """The most that memory of this bandwidth lets a step of step_bytes make, all sequences together: float.

    As long as nothing is read twice, n chips make n times the tokens of one: this is the rate of one of
    them, whether or not the weights fit in it.
    """
    return batch_size * bytes_per_second / step_bytes(config, form, batch_size, context_length)


def chips_for(total_bytes, chip_bytes):
    """The fewest chips of chip_bytes memory that hold total_bytes: int."""
    return -(-total_bytes // chip_bytes)
