"""Computes the teacher's likeliest next tokens for texts, as records that distill.cached_targets stores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.distill.top_k import check_top_k, top_k_logprobs
from deepseek_jax.models import ModelConfig, head_weight, hidden_states


def top_k_records(
    config: ModelConfig,
    params,
    texts,
    top_k: int,
    *,
    sequence_length: int,
    batch_size: int,
    vocab_size: int | None,
    temperature: float,
):
    """A function without arguments that yields one record per text, in distill.cached_targets' format.

    config, params: the teacher's. texts: an iterable, read once, of dicts of tokens int32[n] and weights
    float32[n]. A text longer than sequence_length gets an empty record: no student trains on it. batch_size:
    texts that the teacher reads at once. vocab_size: the first tokens of the teacher's head that count, None
    for all. Raises ValueError for a top_k outside 1 to that number of tokens.
    """
    check_top_k(top_k, min(config.vocab_size, vocab_size or config.vocab_size))

    @jax.jit
    def likeliest(params, tokens_bt, length_b):
        segment_ids = (jnp.arange(sequence_length) < length_b[:, None]).astype(jnp.int32)
        hidden_btd, _ = hidden_states(config, params, tokens_bt, segment_ids=segment_ids)
        head = head_weight(config, params)[:vocab_size]
        found = top_k_logprobs(
            hidden_btd.reshape(-1, hidden_btd.shape[-1]), head, top_k, temperature
        )
        return jax.tree.map(lambda x: x.reshape(*tokens_bt.shape, *x.shape[1:]), found)

    def records():
        left = iter(texts)
        while batch := list(itertools.islice(left, batch_size)):
            tokens, lengths = _rows([text["tokens"] for text in batch], batch_size, sequence_length)
            found = jax.device_get(likeliest(params, tokens, lengths))
            # The last batch may have fewer texts than rows; one shape for all needs one compilation
            for row, (text, n) in enumerate(zip(batch, lengths, strict=False)):
                yield {
                    "tokens": text["tokens"][:n],
                    "weights": text["weights"][:n],
                    "top_ids": found.ids[row, :n],
                    "top_logprobs": found.logprobs[row, :n],
                    "dropped": found.dropped[row, :n],
                }

    return records


def _rows(texts, batch_size, sequence_length):
    """One text a row: tokens int32[b t] and lengths int32[b]. A text that is too long has length 0."""
    tokens = np.zeros((batch_size, sequence_length), np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for row, ids in enumerate(texts):
        if len(ids) <= sequence_length:
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    return tokens, lengths
