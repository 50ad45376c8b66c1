"""The teacher's likeliest next tokens of texts, as records for the disk: data.cached_targets."""

import jax
import numpy as np

from deepseek_jax.losses.top_k import top_k_logprobs
from deepseek_jax.models import head_weight, hidden_states


def top_k_records(config, params, batches, k, *, vocab_size, temperature):
    """A function without arguments that gives the record of each text, as data.cached_targets has it.

    config, params: the teacher's. batches: of data.conversations.pack_conversations, one text a row, which
    are gone through once. vocab_size: the tokens that its head is cut to, None for all.
    """

    @jax.jit
    def top_k(params, batch):
        options = {name: batch[name] for name in ("segment_ids", "positions")}
        hidden_btd, _ = hidden_states(config, params, batch["tokens"], **options)
        head = head_weight(config, params)[:vocab_size]
        flat = hidden_btd.reshape(-1, hidden_btd.shape[-1])
        return top_k_logprobs(flat, head, k, temperature)

    def records():
        for batch in batches:
            yield from cut_targets(batch, jax.device_get(top_k(params, batch)))

    return records


def cut_targets(batch, found):
    """The records of data.cached_targets of a batch with one text a row. found: TopK of all its tokens."""
    b, t = batch["tokens"].shape
    ids, logprobs, dropped = (x.reshape(b, t, *x.shape[1:]) for x in found)
    weights = np.roll(
        batch["loss_weights"], 1, axis=1
    )  # of a token, not of the place that predicts it
    for row in range(b):
        n = int((batch["segment_ids"][row] > 0).sum())
        if n:
            yield {
                "tokens": batch["tokens"][row, :n],
                "weights": weights[row, :n],
                "top_ids": ids[row, :n],
                "top_logprobs": logprobs[row, :n],
                "dropped": dropped[row, :n],
            }
