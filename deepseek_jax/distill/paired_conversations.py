"""Conversations in a student's tokens and in a teacher's, with an alignment of the two."""

from functools import partial

import grain
import numpy as np

from deepseek_jax.data.chat import render_conversation
from deepseek_jax.data.conversations import Fitting
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.packing import BLOCK, Rows, pack_segments
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.distill.token_alignment import align_tokens

FEATURES = ("tokens", "weights", "teacher_tokens", "teacher_index", "exact")


def pair_conversation(
    tokenizer: Tokenizer, teacher_tokenizer: Tokenizer, messages, *, template: str
):
    """Render one conversation with both tokenizers, and align the two.

    Only the assistant's texts and their end tokens are aligned: two chat templates may put other
    text around a question.

    Returns:
        (ids, is_target, teacher_ids, teacher_index, exact). ids and is_target are from
        render_conversation. teacher_index is the place in teacher_ids of the token aligned with
        each of the student's tokens, -1 if there is none. For exact see distill.token_alignment.
    """
    ids, is_target = render_conversation(tokenizer, messages, template=template)
    teacher_ids, is_teacher_target = render_conversation(
        teacher_tokenizer, messages, template=template
    )
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    teacher_index, exact = np.full(len(ids), -1), np.zeros(len(ids), bool)
    for text, student_start, teacher_start in zip(
        texts, _begins(is_target), _begins(is_teacher_target), strict=True
    ):
        offsets = [
            _offsets(side_tokenizer, text) for side_tokenizer in (tokenizer, teacher_tokenizer)
        ]
        alignment = align_tokens(*offsets)
        span = slice(student_start, student_start + len(offsets[0]))
        aligned_index = alignment.teacher_index
        teacher_index[span] = np.where(aligned_index < 0, -1, teacher_start + aligned_index)
        exact[span] = alignment.exact
    return ids, is_target, teacher_ids, teacher_index, exact


def pack_paired(
    source: Mixture,
    tokenizer: Tokenizer,
    teacher_tokenizer: Tokenizer,
    rows: Rows,
    *,
    template: str,
    seed: int,
) -> grain.IterDataset:
    """Batch conversations as pack_conversations does, one a row, with the teacher's tokens too.

    A batch adds teacher_tokens, teacher_tokens_segment_ids and teacher_index, int32[b t], and
    exact, bool[b t], of the same texts. A conversation is skipped if either tokenizer makes it
    longer than a row.

    Args:
        source: Of conversations.

    Raises:
        ValueError: If rows.packing is True: teacher_index counts from the beginning of a row, so a
            text must begin there.
    """
    if rows.packing:
        raise ValueError("packing=True: two tokenizers need one text a row; set it to False")
    draws = rows.order(source, seed)
    read_draws = partial(_read, source=source, tokenizers=(tokenizer, teacher_tokenizer))
    return pack_segments(
        draws.batch(BLOCK).map(partial(read_draws, template=template)),
        _FittingBoth(rows.sequence_length),
        rows,
        features=FEATURES,
        seed=seed,
        pad_id=tokenizer.pad_id,
    )


class _FittingBoth(Fitting):
    """Drops conversations that have more than `length` tokens under either tokenizer."""

    def flat_map(self, element):
        return [x for x in super().flat_map(element) if len(x["teacher_tokens"]) <= self.length]


def _read(draws, *, source, tokenizers, template):
    (tokenizer, teacher_tokenizer), examples = tokenizers, []
    indices = draws[:, 1].tolist()
    for index, record in zip(indices, source.__getitems__(indices), strict=True):
        try:
            pair_arrays = pair_conversation(
                tokenizer, teacher_tokenizer, record["messages"], template=template
            )
        except ValueError as error:
            raise ValueError(f"conversation {index} of the data: {error}") from error
        ids, is_target, teacher_ids, teacher_index, exact = pair_arrays
        weights = np.where(is_target, np.float32(record["weight"]), np.float32(0))
        examples.append(
            {
                "tokens": np.array(ids, np.int32),
                "weights": weights,
                "teacher_tokens": np.array(teacher_ids, np.int32),
                "teacher_index": teacher_index.astype(np.int32),
                "exact": exact,
            }
        )
    return examples


def _begins(is_target):
    """Return the positions where the assistant's texts begin."""
    target = np.array([False, *is_target])
    return np.flatnonzero(target[1:] & ~target[:-1])


def _offsets(tokenizer: Tokenizer, text: str):
    """Return where each token of a text, and its end token, begins and ends."""
    offsets = tokenizer.backend.encode(text, add_special_tokens=False).offsets
    # End tokens have no text. align_tokens pairs them by this span, which both sides share
    return [*offsets, (len(text), len(text) + 1)]
