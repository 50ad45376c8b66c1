"""Conversations in the tokens of a student and of a teacher side by side, and which of them say the same."""

from functools import partial

import numpy as np

from deepseek_jax.data.conversations import Fitting, render_conversation, render_numbered
from deepseek_jax.data.packing import BLOCK, check_rows, pack_segments
from deepseek_jax.distill.token_alignment import align_tokens

FEATURES = ("tokens", "weights", "teacher_tokens", "teacher_index", "exact")


def pair_conversation(tokenizer, teacher_tokenizer, messages, *, template):
    """One conversation as both render it: (ids, is_target, teacher_ids, teacher_index, exact).

    The first two as of render_conversation. teacher_index: for each of the student's tokens the place in
    teacher_ids of the teacher's that is compared with it, -1 for none: only what the assistant wrote, and its
    end tokens, are, for the two may ask in other words. exact: see distill.token_alignment.
    """
    ids, is_target = render_conversation(tokenizer, messages, template=template)
    teacher_ids, theirs = render_conversation(teacher_tokenizer, messages, template=template)
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    teacher_index, exact = np.full(len(ids), -1), np.zeros(len(ids), bool)
    for text, own, other in zip(texts, _begins(is_target), _begins(theirs), strict=True):
        offsets = [_offsets(each, text) for each in (tokenizer, teacher_tokenizer)]
        aligned = align_tokens(*offsets)
        place = slice(own, own + len(offsets[0]))
        found = aligned.teacher_index
        teacher_index[place] = np.where(found < 0, -1, other + found)
        exact[place] = aligned.exact
    return ids, is_target, teacher_ids, teacher_index, exact


def pack_paired(
    source,
    tokenizer,
    teacher_tokenizer,
    *,
    template,
    sequence_length,
    batch_size,
    seed,
    packing=False,
    process_index=0,
    process_count=1,
):
    """conversations.pack_conversations, a conversation a row, with the teacher's tokens of the same text:
    batches have teacher_tokens, teacher_tokens_segment_ids, teacher_index, int32[b t], and exact, bool[b t].

    source: a Mixture of conversations. One longer than a row in the tokens of either is left out. Raises
    ValueError for packing=True, under which a place in a row would not be one in its text.
    """
    if packing:
        raise ValueError("packing=True: two tokenizers align one text a row; set it to False")
    check_rows(sequence_length, batch_size, process_count)
    draws = source.order(seed, process_index=process_index, process_count=process_count)
    pair = partial(_read, source=source, tokenizers=(tokenizer, teacher_tokenizer))
    return pack_segments(
        draws.batch(BLOCK).map(partial(pair, template=template)),
        _FittingBoth(sequence_length),
        features=FEATURES,
        sequence_length=sequence_length,
        batch_size=batch_size // process_count,
        seed=seed,
        packing=False,
        pad_id=tokenizer.pad_id,
    )


class _FittingBoth(Fitting):
    """The conversations of at most `length` tokens of either tokenizer."""

    def flat_map(self, element):
        return [x for x in super().flat_map(element) if len(x["teacher_tokens"]) <= self.length]


def _read(draws, *, source, tokenizers, template):
    indices, read = draws[:, 1].tolist(), []
    for index, record in zip(indices, source.__getitems__(indices), strict=True):
        render_numbered(tokenizers[0], record, index, template=template)  # whose errors name it
        paired = pair_conversation(*tokenizers, record["messages"], template=template)
        ids, is_target, teacher_ids, teacher_index, exact = paired
        weights = np.where(is_target, np.float32(record["weight"]), np.float32(0))
        read.append(
            {
                "tokens": np.array(ids, np.int32),
                "weights": weights,
                "teacher_tokens": np.array(teacher_ids, np.int32),
                "teacher_index": teacher_index.astype(np.int32),
                "exact": exact,
            }
        )
    return read


def _begins(is_target):
    """Where each assistant's text begins."""
    target = np.array([False, *is_target])
    return np.flatnonzero(target[1:] & ~target[:-1])


def _offsets(tokenizer, text):
    """(begin, end) of each token of a text, and of the end token behind it."""
    offsets = tokenizer.backend.encode(text, add_special_tokens=False).offsets
    return [*offsets, (len(text), len(text) + 1)]
