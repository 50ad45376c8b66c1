"""Computes the teacher's likeliest next tokens for texts, as records that distill.cached_targets stores."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.distill.top_k import check_top_k, top_k_logprobs
from deepseek_jax.models import ModelConfig, head_weight, hidden_states
from deepseek_jax.parallel.led import Led
from deepseek_jax.parallel.shard import put_share


@dataclasses.dataclass(frozen=True)
class TopKRecords:
    """A function without arguments that yields one record per text, in distill.cached_targets' format.

    Process 0 alone calls it, within `led`. texts: an iterable, read once, of dicts of tokens int32[n] and
    weights float32[n]. A text longer than a row gets an empty record: no student trains on it. led: computes
    the TopK of rows, (tokens int32[b t], lengths int32[b]) -> TopK of [b t k], [b t k] and [b t].
    """

    texts: object
    led: Led

    def __call__(self):
        rows, sequence_length = self.led.like[0].shape
        left = iter(self.texts)
        while batch := list(itertools.islice(left, rows)):
            tokens, lengths = _rows([text["tokens"] for text in batch], rows, sequence_length)
            found = jax.device_get(self.led(tokens, lengths))
            # The last batch may have fewer texts than rows; one shape for all needs one compilation
            for row, (text, n) in enumerate(zip(batch, lengths, strict=False)):
                yield {
                    "tokens": text["tokens"][:n],
                    "weights": text["weights"][:n],
                    "top_ids": found.ids[row, :n],
                    "top_logprobs": found.logprobs[row, :n],
                    "dropped": found.dropped[row, :n],
                }


def top_k_records(
    config: ModelConfig,
    params,
    texts,
    top_k: int,
    *,
    shape: tuple[int, int],
    mesh: Mesh,
    vocab_size: int | None,
    temperature: float,
):
    """TopKRecords of texts. config, params: the teacher's, on the mesh.

    shape: the rows that the teacher reads at once, a text in each, and their length. vocab_size: the first
    tokens of the teacher's head that count, None for all. Raises ValueError for a top_k outside 1 to that
    number of tokens.
    """
    check_top_k(top_k, min(config.vocab_size, vocab_size or config.vocab_size))

    def likeliest(params, tokens_bt, length_b):
        segment_ids = (jnp.arange(shape[1]) < length_b[:, None]).astype(jnp.int32)
        hidden_btd, _ = hidden_states(config, params, tokens_bt, segment_ids=segment_ids)
        head = head_weight(config, params)[:vocab_size]
        found = top_k_logprobs(
            hidden_btd.reshape(-1, hidden_btd.shape[-1]), head, top_k, temperature
        )
        return jax.tree.map(lambda x: x.reshape(*tokens_bt.shape, *x.shape[1:]), found)

    # Replicated, so that process 0 has all rows
    everywhere = NamedSharding(mesh, PartitionSpec())
    likeliest = jax.jit(likeliest, out_shardings=everywhere)

    def of_rows(tokens, lengths):
        rows = put_share(mesh, {"tokens": tokens, "lengths": lengths})
        return likeliest(params, rows["tokens"], rows["lengths"])

    like = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    return TopKRecords(texts, Led(of_rows, like))


def _rows(texts, rows, sequence_length):
    """One text a row: tokens int32[b t] and lengths int32[b]. A text that is too long has length 0."""
    tokens = np.zeros((rows, sequence_length), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, ids in enumerate(texts):
        if len(ids) <= sequence_length:
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    return tokens, lengths
