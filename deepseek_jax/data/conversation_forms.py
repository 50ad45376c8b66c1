"""The forms in which data sets write conversations, and a reader that turns each into one form."""

import contextlib
import re
from collections.abc import Mapping

import numpy as np

from deepseek_jax.data.columns import check_names

ROLES = ("system", "user", "assistant")
# ShareGPT's names of the roles
FROM = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# The forms of a record, for error messages
FORMS = (
    'messages ([{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]); prompt and '
    "completion (texts, or lists of messages); text; instruction, input and output (Alpaca); conversations "
    "(ShareGPT: from, value)"
)


# Required columns of each form -> its optional columns
PARTS = {
    ("messages",): (),
    ("prompt", "completion"): (),
    ("conversations",): (),
    ("instruction", "output"): ("input", "system"),
    ("text",): (),
}


def as_conversation(place: str, record: Mapping) -> dict:
    """Return the conversation of a record in one of FORMS, with the record's other columns.

    A column that is None counts as absent, because files merged from several forms have such
    columns. A text becomes a single message of the assistant.

    Args:
        place: Where the record is, for error messages.
        record: The record as it was read.

    Returns:
        The dict of `parse_conversation`, and the other columns.

    Raises:
        ValueError: The record has none of the forms, or a column with a reserved name
            (`columns.check_names`). The message has the place.
    """
    present_columns = {name for name, value in record.items() if value is not None}
    form = next((form for form in PARTS if present_columns.issuperset(form)), None)
    if form is None:
        raise ValueError(
            f"{place} is no conversation; its columns are {', '.join(record)}, and a line has {FORMS}. Name "
            "yours by columns={'prompt': ..., 'completion': ...}"
        )
    conversation = {"messages": _messages(place, form, record)}
    conversation |= {"weight": record["weight"]} if "weight" in record else {}
    used_columns = {*form, *PARTS[form], "messages", "weight"}
    other_columns = {name: value for name, value in record.items() if name not in used_columns}
    check_names(place, other_columns)
    return other_columns | parse_conversation(place, conversation)


def _messages(place, form, record):
    if form == ("prompt", "completion"):
        return _listed("user", record["prompt"]) + _listed("assistant", record["completion"])
    if form == ("conversations",):
        return _share_gpt(place, record["conversations"])
    if form == ("instruction", "output"):
        question = "\n\n".join(filter(None, [record["instruction"], record.get("input") or ""]))
        messages = _listed("system", record.get("system") or []) + _listed("user", question)
        return messages + _listed("assistant", record["output"])
    return record["messages"] if form == ("messages",) else _listed("assistant", record["text"])


def _listed(role, content):
    """Return a list of messages unchanged, and a text as one message of the role."""
    return content if isinstance(content, list) else [{"role": role, "content": content}]


def _share_gpt(place, turns):
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(f"{place} has no list of from and value under 'conversations'.")
    for turn in turns:
        if turn.get("from") not in FROM:
            raise ValueError(f"{place} has from={turn.get('from')!r}; allowed: {', '.join(FROM)}")
    return [{"role": FROM[turn["from"]], "content": turn.get("value")} for turn in turns]


def parse_conversation(place: str, record: Mapping) -> dict:
    """Check the messages and the weight of a record and return them.

    The messages are an optional system message, then user and assistant in turns, the assistant
    last. A single message of the assistant, a text, is allowed too.

    Args:
        place: Where the record is, for error messages.
        record: A dict with messages, and optionally weight: how much each of its tokens counts, 1.0
            by default. A number written as text is accepted, since csv only has texts.

    Returns:
        {"messages": [{"role": str, "content": str}, ...], "weight": float}.

    Raises:
        ValueError: Any other record; the message has the place.
    """
    if not isinstance(record.get("messages"), list) or not record["messages"]:
        raise ValueError(f"{place} has no list under 'messages'; it has {sorted(record)}.")
    messages = check_turns(place, record["messages"], last="assistant")
    return {"messages": messages, "weight": _parse_weight(place, record.get("weight", 1.0))}


def check_turns(place: str, messages: list, *, last: str) -> list:
    """Return the messages, each with role and content only, if they take turns correctly.

    Args:
        place: Where the messages are, for error messages.
        messages: The messages to check.
        last: The role that must come last.

    Raises:
        ValueError: The messages do not take turns, or one of them is malformed; the error has the
            place.
    """
    messages = [_parse_message(f"{place}, message {i}", m) for i, m in enumerate(messages, 1)]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected_turns = [("user", "assistant")[i % 2] for i in range(len(turns))]
    is_text = roles == ["assistant"] and last == "assistant"
    if not is_text and (turns != expected_turns or turns[-1:] != [last]):
        raise ValueError(
            f"{place} has the roles {', '.join(roles)}; after a system message, if there is one, user "
            f"and assistant must take turns, the {last} last."
        )
    return messages


def _parse_message(place, message):
    if not isinstance(message, Mapping):
        raise ValueError(f"{place} is no object with role and content: {str(message)[:80]}")
    role, content = (_text(place, key, message.get(key)) for key in ("role", "content"))
    if role not in ROLES:
        raise ValueError(f"{place} has the role {role!r}; allowed: {', '.join(ROLES)}.")
    return {"role": role, "content": content}


def _text(place, key, value):
    try:
        value = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: its {key} is not UTF-8 text: {error}") from error
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} has no text under {key!r}.")
    # JSON can hold half of a surrogate pair, and UTF-8 cannot
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{place} has half of a surrogate pair, which is no character; remove it.")
    return value


def _parse_weight(place, weight):
    raw_weight = weight
    if isinstance(weight, str):
        with contextlib.suppress(ValueError):
            weight = float(weight)
    # A bool is an instance of int
    is_number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
    # The loss computes with float32 weights
    range32 = np.finfo(np.float32)
    if not is_number or not float(range32.tiny) <= weight <= float(range32.max):
        raise ValueError(f"{place} has weight={raw_weight!r}; set a finite number above 0.")
    return float(weight)
