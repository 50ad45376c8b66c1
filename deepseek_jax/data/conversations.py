"""Conversations to token ids of which the assistant's alone are learned, and those to packed batches."""

from functools import partial

import grain
import numpy as np

from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.packing import BLOCK, check_rows, pack_segments

OWN_TEXT = "\ue000"  # stands for what an assistant wrote while a chat template renders the rest


def render_conversation(tokenizer, messages, *, template):
    """(ids, is_target): lists of int and of bool, True on what an assistant wrote and on its end tokens.

    messages: as of data.messages.parse_conversation. template: as of data.chat.render_prompt.
    An assistant's text is encoded as it stands, apart from what surrounds it, as when it is sampled behind
    a prompt; so every turn keeps its <think>. The ids end with the last turn's end token.
    "chat": what stands around the assistant's texts is the checkpoint's own template's, which never sees
    them: templates drop an earlier turn's <think>, R1's among them. A <think> with which a template opens
    or fills in a turn by itself is left out: where there is one, it is the text's own. Other templates have
    no place for a system message; each question is asked by the template anew, behind the end token of the
    answer before, and bos stands at the start alone.
    Raises ValueError as render_prompt does, for a system message where it has no place, for an end token
    within a text, and for a chat template that leaves out an assistant's turn, ends it with no special token,
    or asks for it in other words than it tells it in.
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
                f"the assistant's text {text[:80]!r} has an end-of-turn token in it; leave it out, one is "
                "put at the end."
            )
        ids += context + own
        is_target += [False] * len(context) + [True] * len(own)
    return ids, is_target


def last_prompt(ids, is_target):
    """The ids of a rendered conversation up to where its last assistant's text begins."""
    end = len(ids)
    while is_target[end - 1]:
        end -= 1
    return ids[:end]


def pack_conversations(
    source,
    tokenizer,
    *,
    template,
    sequence_length,
    batch_size,
    seed,
    num_epochs=None,
    packing=True,
    process_index=0,
    process_count=1,
):
    """Batches of conversations, whole ones and each a segment of its own, as a grain.IterDataset.

    source: a Mixture of conversations, or random access to them, as of data.messages. One longer than a row
    is left out. Loss is on the assistant's tokens, each of which counts as much as its conversation's weight:
    see packing.pack_segments; all else as in packing.pack.
    Raises ValueError as these do, and render_conversation, with the conversation's number.
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


def render_numbered(tokenizer, record, index, *, template):
    """render_conversation of a record, whose errors name the record by its index."""
    try:
        return render_conversation(tokenizer, record["messages"], template=template)
    except ValueError as error:
        raise ValueError(f"conversation {index} of the data: {error}") from error


def weighed_tokens(tokenizer, record, index, *, template):
    """A conversation as a dict of tokens int32[n] and weights float32[n], what it counts to predict each."""
    ids, is_target = render_numbered(tokenizer, record, index, template=template)
    weights = np.where(is_target, np.float32(record["weight"]), np.float32(0))
    return {"tokens": np.array(ids, np.int32), "weights": weights}


def end_of_turn(tokenizer, template):
    """The id with which an assistant's turn ends, as render_conversation puts it there."""
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
    """The conversations of at most `length` tokens, and of any at all."""

    def __init__(self, length):
        self.length = length

    def flat_map(self, element):
        return [x for x in element if 0 < len(x["tokens"]) <= self.length]


def _chat_contexts(tokenizer, messages, template):
    """(the ids that lead to each assistant's text, behind the end token of the one before; the end token)"""
    if tokenizer.chat is None:
        render_prompt(tokenizer, messages[-2]["content"], template=template)  # which says so
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
                "the chat template asks for an assistant's turn in other words than it tells it in: "
                f"{pair[1][-80:]!r} against {pair[0][-80:]!r}."
            )
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
    """As _chat_contexts, of a template with a place for the question alone."""
    if messages[0]["role"] == "system":
        raise ValueError(
            f"template={template!r} has no place for a system message; set it to "
            '"chat", or leave the message out.'
        )
    questions = [message["content"] for message in messages if message["role"] == "user"]
    first, *later = (render_prompt(tokenizer, q, template=template) for q in questions)
    bos = 0 if tokenizer.bos_id is None else 1
    return [first, *(ids[bos:] for ids in later)], tokenizer.eos_id
