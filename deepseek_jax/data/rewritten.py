"""Turns of a conversation that its chat template would have encoded otherwise than they were sampled."""

import json
from collections.abc import Callable

from deepseek_jax.data.chat import OWN_TEXT


def rewritten_turns(messages: list[dict], texts: list[str], render: Callable, end: str) -> int:
    """Number of earlier turns whose raw text does not stand in the whole conversation as it was asked for.

    messages, texts: see ToolForm.rewritten. render(messages, ask=bool): their text; ask: with the generation
    prompt. end: the text of the token that ends a turn. A conversation that cannot be rendered counts whole.
    """
    raw = _raw_by_place(messages, texts)
    # A message that nothing follows has not been encoded by anyone
    raw.pop(len(messages) - 1, None)
    # A character that no text has stands for what the user and tools say
    everything = json.dumps([messages, texts], ensure_ascii=False)
    mark = next(c for c in map(chr, range(ord(OWN_TEXT), 0xF900)) if c not in everything)
    hidden = [m if m["role"] == "assistant" else {**m, "content": mark} for m in messages]
    try:
        written = render(hidden, ask=False).split(mark)
        before = [render(hidden[:i], ask=True).split(mark) for i in raw]
    except ValueError:
        return len(raw)
    if len(written) != 1 + sum(m["role"] != "assistant" for m in messages):
        return len(raw)
    turns = zip(before, raw.values(), strict=True)
    return sum(not written[len(b) - 1].startswith(b[-1] + text + end) for b, text in turns)


def as_plain(messages: list[dict], texts: list[str]):
    """The messages as a template without tools knows them: calls as text, their results as one message of
    the user.
    """
    raw = _raw_by_place(messages, texts)
    plain = []
    for i, message in enumerate(messages):
        role = "user" if message["role"] == "tool" else message["role"]
        if not (plain and plain[-1]["role"] == role == "user"):
            plain.append({"role": role, "content": raw.get(i, message["content"])})
    return plain


def _raw_by_place(messages, texts):
    """{index among the messages: raw text} of the model's turns: the last ones of the assistant."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return dict(zip(turns[len(turns) - len(texts) :], texts, strict=True))
