"""Conversations to token ids and to packed batches, with loss on the assistant's tokens alone."""

from functools import partial

import grain
import numpy as np

from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.packing import BLOCK, check_rows, pack_segments
from deepseek_jax.data.tokenizer import Tokenizer

# Stands in for the assistant's text while a chat template renders the rest: a private-use character
OWN_TEXT = "\ue000"


def render_conversation(tokenizer: Tokenizer, messages: list, *, template: str):
    """(ids, is_target): lists of int and of bool, True on the assistant's texts and their end tokens.

    messages: see data.messages.parse_conversation. template: see data.chat.render_prompt.
    Each assistant's text is encoded on its own, as a policy samples it after a prompt, so every turn has
    its <think>. The ids end with the last turn's end token.
    "chat": the checkpoint's template writes all but the assistant's texts and never sees them, because
    templates, R1's among them, drop the <think> of earlier turns. A <think> that the template writes at the
    start of a turn is removed, so that only the text's own remains. Other templates cannot hold a system
    message. They ask each question in the template anew, after the end token of the answer before; bos
    stands at the start alone.
    Raises ValueError as render_prompt does; for a system message that the template cannot hold; for an end
    token within a text; and for a chat template that leaves out an assistant's turn, ends it with no special
    token, or whose generation prompt differs from how it begins the finished turn.
    """
    contexts, end_id = (_chat_contexts if template == "chat" else _text_contexts)(
        tokenizer, messages, template
    )
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    ids, is_target = [], []
    for context, text in zip(contexts, texts, strict=True):
        own = [*tokenizer.encode(text), end_id]
        if own.index(end_id) < len(own) - 1:
            raise ValueError(
                f"the assistant's text {text[:80]!r} has an end-of-turn token in it; remove it, one is "
                "added at the end."
            )
        ids += context + own
        is_target += [False] * len(context) + [True] * len(own)
    return ids, is_target


def last_prompt(ids, is_target):
    """The ids of a rendered conversation up to the start of the last assistant's text."""
    end = len(ids)
    while is_target[end - 1]:
        end -= 1
    return ids[:end]


def pack_conversations(
    source,
    tokenizer: Tokenizer,
    *,
    template: str,
    sequence_length: int,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
    packing: bool = True,
    process_index: int = 0,
    process_count: int = 1,
):
    """Batches of whole conversations, each one a segment of its own, as a grain.IterDataset.

    source: a Mixture of conversations, or random access to them, see data.messages. A conversation longer
    than a row is dropped. Loss is on the assistant's tokens, each with its conversation's weight: see
    packing.pack_segments. All else is as in packing.pack.
    Raises ValueError as these do, and as render_conversation does, with the conversation's number.
    """
    check_rows(sequence_length, batch_size, process_count)
    mixture = source if isinstance(source, Mixture) else Mixture((source,), (1,))
    draws = mixture.order(
        seed, num_epochs=num_epochs, process_index=process_index, process_count=process_count
    )
    to_arrays = partial(_read, source=mixture, tokenizer=tokenizer, template=template)
    return pack_segments(
        draws.batch(BLOCK).map(to_arrays),
        Fitting(sequence_length),
        features=("tokens", "weights"),
        sequence_length=sequence_length,
        batch_size=batch_size // process_count,
        seed=seed,
        packing=packing,
        pad_id=tokenizer.pad_id,
    )


def render_numbered(tokenizer: Tokenizer, record, index: int, *, template: str):
    """render_conversation of a record; errors name the record by its index."""
    try:
        return render_conversation(tokenizer, record["messages"], template=template)
    except ValueError as error:
        raise ValueError(f"conversation {index} of the data: {error}") from error


def weighed_tokens(tokenizer: Tokenizer, record, index: int, *, template: str):
    """A conversation as a dict: tokens int32[n], and weights float32[n], the loss weight of each token."""
    ids, is_target = render_numbered(tokenizer, record, index, template=template)
    weights = np.where(is_target, np.float32(record["weight"]), np.float32(0))
    return {"tokens": np.array(ids, np.int32), "weights": weights}


def end_of_turn(tokenizer: Tokenizer, template: str):
    """The id of the token that ends an assistant's turn, as in render_conversation."""
    if template != "chat":
        return tokenizer.eos_id
    turns = [{"role": role, "content": "?"} for role in ("user", "assistant")]
    return _chat_contexts(tokenizer, turns, template)[1]


def _read(draws, *, source, tokenizer, template):
    """Conversations as dicts of tokens int32[n] and weights float32[n]. draws: int64[n 2]."""
    indices = draws[:, 1].tolist()
    records = zip(indices, source.__getitems__(indices), strict=True)
    return [weighed_tokens(tokenizer, r, index, template=template) for index, r in records]


class Fitting(grain.experimental.FlatMapTransform):
    """Keep the conversations of at most `length` tokens, without empty ones."""

    def __init__(self, length: int):
        self.length = length

    def flat_map(self, element):
        return [x for x in element if 0 < len(x["tokens"]) <= self.length]


def _chat_contexts(tokenizer, messages, template):
    """(ids from the previous turn's end token to each assistant's text, the end token)."""
    if tokenizer.chat is None:
        # Raises the ValueError about the missing chat template
        render_prompt(tokenizer, messages[-2]["content"], template=template)
    hidden = [m | {"content": OWN_TEXT} if m["role"] == "assistant" else m for m in messages]
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    render = partial(tokenizer.chat.apply_chat_template, tokenize=False)
    told = render(hidden).split(OWN_TEXT)
    asked = [render(hidden[:i], add_generation_prompt=True).split(OWN_TEXT)[-1] for i in ends]
    if len(told) != len(ends) + 1:
        raise ValueError(
            f"the chat template writes {len(told) - 1} of {len(ends)} assistant's turns; set "
            'template to "r1_zero" or to a text that contains {question}.'
        )
    for pair in zip(told, asked, strict=False):
        if not pair[0].startswith(pair[1]) and not pair[1].startswith(pair[0]):
            raise ValueError(
                "the chat template's generation prompt asks for an assistant's turn in other words than "
                "those that begin the finished turn: "
                f"{pair[1][-80:]!r} against {pair[0][-80:]!r}."
            )
    # Take the shorter: the longer has a <think> of the template's, in its prompt or in its finished turn
    pairs = [min(pair, key=len) for pair in zip(told, asked, strict=False)]
    first, *later = map(tokenizer.encode, [*pairs, told[-1]])
    end_ids = {ids[0] if ids else None for ids in later}
    if len(end_ids) > 1 or None in end_ids or tokenizer.decode(end_ids):
        raise ValueError(
            f"the chat template ends an assistant's turn with {told[-1][:20]!r}, which begins with no "
            "special token that could end a completion."
        )
    return [first, *(ids[1:] for ids in later[:-1])], end_ids.pop()


def _text_contexts(tokenizer, messages, template):
    """The same as _chat_contexts, for a template that has a place for the question alone."""
    if messages[0]["role"] == "system":
        raise ValueError(
            f"template={template!r} has no place for a system message; set it to "
            '"chat", or leave the message out.'
        )
    questions = [message["content"] for message in messages if message["role"] == "user"]
    first, *later = (render_prompt(tokenizer, q, template=template) for q in questions)
    bos = 0 if tokenizer.bos_id is None else 1
    return [first, *(ids[bos:] for ids in later)], tokenizer.eos_id
