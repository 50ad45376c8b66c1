"""Compute a teacher's likeliest next tokens for texts, as records for distill.cached_targets."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.distill.top_k import check_top_k, top_k_logprobs
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.heads import head_weight, hidden_states
from deepseek_jax.parallel.led import Led
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.trees import PyTree


@dataclasses.dataclass(frozen=True)
class TopKRecords:
    """Records of texts with a teacher's likeliest next tokens; a call yields one record per text.

    The records have the format of distill.cached_targets. Only process 0 makes the call, inside the
    context of `led`. A text longer than a row gets an empty record, so that no student trains on
    it.

    Attributes:
        texts: Read once; each has tokens int32[n] and weights float32[n].
        led: Computes the TopK of rows: (tokens int32[b t], lengths int32[b]) -> TopK of [b t k], [b
            t k] and [b t].
    """

    texts: Iterable[Mapping[str, np.ndarray]]
    led: Led

    def __call__(self) -> Iterator[dict]:
        """Yield the records in the order of texts, a batch of rows at a time."""
        rows, sequence_length = self.led.like[0].shape
        remaining_texts = iter(self.texts)
        while batch := list(itertools.islice(remaining_texts, rows)):
            tokens, lengths = _rows([text["tokens"] for text in batch], rows, sequence_length)
            top_k = jax.device_get(self.led(tokens, lengths))
            # The last batch may have fewer texts than rows. It keeps the shape, so nothing compiles
            # again
            for row, (text, n) in enumerate(zip(batch, lengths, strict=False)):
                yield {
                    "tokens": text["tokens"][:n],
                    "weights": text["weights"][:n],
                    "top_ids": top_k.ids[row, :n],
                    "top_logprobs": top_k.logprobs[row, :n],
                    "dropped": top_k.dropped[row, :n],
                }


def top_k_records(
    config: ModelConfig,
    params: PyTree,
    texts: Iterable[Mapping[str, np.ndarray]],
    top_k: int,
    *,
    shape: tuple[int, int],
    mesh: Mesh,
    vocab_size: int | None,
    temperature: float,
) -> TopKRecords:
    """Build the TopKRecords of texts, which run the teacher when they are called.

    Args:
        config: The teacher's.
        params: The teacher's, on the mesh.
        shape: (rows, length) of the teacher's batches; each row has one text.
        vocab_size: Number of tokens that count, from the start of the teacher's head; None for all.

    Raises:
        ValueError: If top_k is not from 1 to the number of tokens that count.
    """
    check_top_k(top_k, min(config.vocab_size, vocab_size or config.vocab_size))

    def likeliest(params, tokens_bt, length_b):
        segment_ids = (jnp.arange(shape[1]) < length_b[:, None]).astype(jnp.int32)
        hidden_btd, _ = hidden_states(config, params, tokens_bt, segment_ids=segment_ids)
        head = head_weight(config, params)[:vocab_size]
        teacher_top_k = top_k_logprobs(
            hidden_btd.reshape(-1, hidden_btd.shape[-1]), head, top_k, temperature
        )
        return jax.tree.map(lambda x: x.reshape(*tokens_bt.shape, *x.shape[1:]), teacher_top_k)

    # Replicated, so that process 0 has all rows
    replicated_sharding = NamedSharding(mesh, PartitionSpec())
    likeliest = jax.jit(likeliest, out_shardings=replicated_sharding)

    def top_k_of_rows(tokens, lengths):
        rows = put_share(mesh, {"tokens": tokens, "lengths": lengths})
        return likeliest(params, rows["tokens"], rows["lengths"])

    empty_rows = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    return TopKRecords(texts, Led(top_k_of_rows, empty_rows))


def _rows(texts, rows, sequence_length):
    """Put one text in each row.

    Returns:
        (tokens int32[b t], lengths int32[b]); a text that is too long for a row has length 0.
    """
    tokens = np.zeros((rows, sequence_length), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, ids in enumerate(texts):
        if len(ids) <= sequence_length:
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
    return tokens, lengths
