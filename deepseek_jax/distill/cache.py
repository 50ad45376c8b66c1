"""The teacher's likeliest next tokens of texts, as records for the disk: distill.cached_targets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from deepseek_jax.distill.top_k import check_top_k, top_k_logprobs
from deepseek_jax.models import head_weight, hidden_states


def top_k_records(
    config, params, texts, top_k, *, sequence_length, batch_size, vocab_size, temperature
):
    """A function without arguments that gives the record of each text, as distill.cached_targets has it.

    config, params: the teacher's. texts: an iterable, gone through once, of dicts of tokens int32[n] and
    weights float32[n]; of one longer than a row of sequence_length, which nobody will learn, the record is
    empty. batch_size: texts that the teacher reads at once. vocab_size: the tokens that its head is cut to,
    None for all. Raises ValueError for a top_k that they do not have.
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
    """tokens int32[b t] and lengths int32[b] of texts, one a row: 0 of one that is too long."""
    tokens = np.zeros((batch_size, sequence_length), np.int32)
    lengths = np.zeros(batch_size, np.int32)
    for row, ids in enumerate(texts):
        if len(ids) <= sequence_length:
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    return tokens, lengths
