"""Conversations to packed batches, with loss only on the assistant's tokens."""

from collections.abc import Mapping
from functools import partial

import grain
import numpy as np
from typing_extensions import override

from deepseek_jax.data.chat import render_conversation
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.packing import BLOCK, Rows, pack_segments
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.data.tokenizer import Tokenizer


def pack_conversations(
    source: RandomAccess,
    tokenizer: Tokenizer,
    rows: Rows,
    *,
    template: str,
    seed: int,
    num_epochs: int | None = None,
) -> grain.IterDataset:
    """Return batches of whole conversations, each one segment, as a grain.IterDataset.

    A conversation longer than a row is dropped. The loss is on the assistant's tokens, each with
    the weight of its conversation: see `packing.pack_segments`.

    Args:
        source: A Mixture of conversations, or random access to them, see `data.messages`.
        tokenizer: The tokenizer of the model that learns.
        rows: The shape of the batch, and the reader that packs.
        template: See `data.chat.render_prompt`.
        seed, num_epochs: See `packing.pack`.

    Raises:
        ValueError: As `Mixture.order` does. Also as `render_conversation` does; the message then
            has the conversation's number.
    """
    mixture = source if isinstance(source, Mixture) else Mixture((source,), (1,))
    draws = rows.order(mixture, seed, num_epochs)
    to_arrays = partial(_read, source=mixture, tokenizer=tokenizer, template=template)
    return pack_segments(
        draws.batch(BLOCK).map(to_arrays),
        Fitting(rows.sequence_length),
        rows,
        features=("tokens", "weights"),
        seed=seed,
        pad_id=tokenizer.pad_id,
    )


def render_numbered(
    tokenizer: Tokenizer, record: Mapping, index: int, *, template: str
) -> tuple[list[int], list[bool]]:
    """Return `render_conversation` of a record; its errors name the record by its index."""
    try:
        return render_conversation(tokenizer, record["messages"], template=template)
    except ValueError as error:
        raise ValueError(f"conversation {index} of the data: {error}") from error


def weighed_tokens(
    tokenizer: Tokenizer, record: Mapping, index: int, *, template: str
) -> dict[str, np.ndarray]:
    """Return a conversation as {tokens, weights}, arrays of one length n.

    tokens is int32[n]. weights is float32[n], the loss weight of each token.
    """
    ids, is_target = render_numbered(tokenizer, record, index, template=template)
    weights = np.where(is_target, np.float32(record["weight"]), np.float32(0))
    return {"tokens": np.array(ids, np.int32), "weights": weights}


def _read(draws, *, source, tokenizer, template):
    """Read conversations as dicts of tokens int32[n] and weights float32[n].

    Args:
        draws: int64[n 2], epoch and conversation.
    """
    indices = draws[:, 1].tolist()
    records = zip(indices, source.__getitems__(indices), strict=True)
    return [weighed_tokens(tokenizer, r, index, template=template) for index, r in records]


class Fitting(grain.experimental.FlatMapTransform):
    """Pass on the conversations of 1 to `length` tokens and drop the others."""

    def __init__(self, length: int):
        self.length = length

    @override
    def flat_map(self, element: list[dict]) -> list[dict]:
        return [x for x in element if 0 < len(x["tokens"]) <= self.length]
