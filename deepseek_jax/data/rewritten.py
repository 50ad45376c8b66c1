"""Count of turns that the chat template would encode differently from what was sampled.

Tests: tests/data/test_tools.py.
"""

import json
from collections.abc import Callable

from deepseek_jax.data.chat import OWN_TEXT


def rewritten_turns(messages: list[dict], texts: list[str], render: Callable, end: str) -> int:
    """Return how many earlier turns do not stand in the rendered conversation as they were sampled.

    If the conversation cannot be rendered, all earlier turns count.

    Args:
        messages, texts: See `tools.ToolForm.rewritten`.
        render: render(messages, add_generation_prompt=bool) returns the text of messages.
        end: The text of the token that ends a turn.
    """
    raw = _raw_by_place(messages, texts)
    # A message that nothing follows was never encoded as part of a prompt
    raw.pop(len(messages) - 1, None)
    # A character that is in no text replaces the texts of the user and of tools
    everything = json.dumps([messages, texts], ensure_ascii=False)
    mark = next(c for c in map(chr, range(ord(OWN_TEXT), 0xF900)) if c not in everything)
    hidden = [m if m["role"] == "assistant" else {**m, "content": mark} for m in messages]
    try:
        written = render(hidden, add_generation_prompt=False).split(mark)
        before = [render(hidden[:i], add_generation_prompt=True).split(mark) for i in raw]
    except ValueError:
        return len(raw)
    if len(written) != 1 + sum(m["role"] != "assistant" for m in messages):
        return len(raw)
    turns = zip(before, raw.values(), strict=True)
    return sum(not written[len(b) - 1].startswith(b[-1] + text + end) for b, text in turns)


def as_plain(messages: list[dict], texts: list[str]) -> list[dict]:
    """Return the messages as a template without tools takes them.

    Calls become text, and their results become one message of the user.

    Args:
        messages, texts: See `tools.ToolForm.rewritten`.
    """
    raw = _raw_by_place(messages, texts)
    plain: list[dict] = []
    for i, message in enumerate(messages):
        role = "user" if message["role"] == "tool" else message["role"]
        if not (plain and plain[-1]["role"] == role == "user"):
            plain.append({"role": role, "content": raw.get(i, message["content"])})
    return plain


def _raw_by_place(messages, texts):
    """Return {index among the messages: raw text} of the model's turns.

    These are the last turns of the assistant.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return dict(zip(turns[len(turns) - len(texts) :], texts, strict=True))
