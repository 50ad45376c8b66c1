"""Reading and writing completions.jsonl: the completions that a run keeps of its logged steps.

The file stands next to metrics.jsonl. Each line is an object for one prompt and the whole
group of its completions:

    {"step": int, "phase": str, "prompt": str, "answer": str or null, "columns": {name: value},
     "completions": [{"text": str, "reward": float or null, "parts": {name: float or null},
                      "advantage": float or null, "columns": {name: value}, "length": int,
                      "truncated": bool, "unread": bool}]}

- `columns` of a line are the other columns of the question's data. `columns` of a completion are
  the values that reward functions logged for it.
- `length` is in tokens.
- `unread` is true where the completion scores 0 because a rule could not read what it states.
- A reward that failed or does not exist is null.
- A completion that is a conversation also has "messages": the messages after the prompt, in
  OpenAI's form.
"""

import json
import math
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from deepseek_jax.errors import shortened
from deepseek_jax.training.lines import read_lines

FILE = "completions.jsonl"
# Most characters of one text or of all columns together; most of all texts of a conversation
LONGEST_TEXT, LONGEST_CONVERSATION = 4000, 8000
# A line break within a text of a conversation: the next line is indented
CONTINUED = "\n" + 6 * " "
# The columns of the table that boards show
COLUMNS = "prompt answer completion reward rewards advantage length truncated".split()


def read_completions(path: str | Path, phase: str | None = None) -> list[dict]:
    """Read the lines of a completions file, in order.

    Args:
        phase: return only the lines of this phase; None returns all.

    Returns:
        A list of dicts, empty where the file does not exist.

    Raises:
        ValueError: as lines.read_lines does.
    """
    return [line for line in read_lines(path) if phase is None or line["phase"] == phase]


def completions_line(step: int, phase: str, group: dict):
    """Convert a group of completions to the object of its line.

    Long texts are cut. NaN and infinities become None, which JSON writes as null.

    Args:
        group: {"prompt", "answer", "columns", "completions"}.
    """
    completions = [
        {
            "text": shortened(completion["text"], LONGEST_TEXT),
            "reward": _finite(completion["reward"]),
            "parts": {name: _finite(part) for name, part in completion["parts"].items()},
            "advantage": _finite(completion["advantage"]),
            "columns": _columns(completion["columns"]),
            "length": int(completion["length"]),
            "truncated": bool(completion["truncated"]),
            "unread": bool(completion["unread"]),
        }
        | _messages_of(completion)
        for completion in group["completions"]
    ]
    answer = group["answer"]
    return {
        "step": step,
        "phase": phase,
        "prompt": shortened(group["prompt"], LONGEST_TEXT),
        "answer": None if answer is None else shortened(str(answer), LONGEST_TEXT),
        "columns": _columns(group["columns"]),
        "completions": completions,
    }


def rows_of(lines: list[dict]):
    """Build the rows of the boards' table, one for each completion, with the columns COLUMNS.

    The cell `rewards` lists all rewards by name in one text.
    """
    return [
        (
            *(line["prompt"], line["answer"], shown_text(completion), completion["reward"]),
            ", ".join(f"{n} {p:.4g}" for n, p in completion["parts"].items() if p is not None),
            *(completion["advantage"], completion["length"], completion["truncated"]),
        )
        for line in lines
        for completion in line["completions"]
    ]


def spoken_lines(messages: Sequence[dict]) -> list[tuple[str, str]]:
    """Split a conversation into labelled texts that a person can read.

    Args:
        messages: the conversation, in OpenAI's form.

    Returns:
        Pairs (who, text) in order. "model" is the text of a model's turn, "call" a call in that
        turn, and "tool" the answer of a tool. "reply" is a message of an environment, or about a
        call that could not be read.
    """
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls", ())]
        who = {"assistant": "model", "tool": "tool"}.get(message["role"], "reply")
        # A turn may be nothing but its calls
        if message["content"] or not calls:
            lines.append((who, message["content"]))
        lines += [("call", _call_text(**call)) for call in calls]
    return lines


def _call_text(name, arguments):
    arguments_text = ", ".join(f"{key}={_value_text(value)}" for key, value in arguments.items())
    return f"{name}({arguments_text})"


def _value_text(value):
    # Code is easier to read line by line
    if isinstance(value, str) and "\n" in value:
        return f'"""\n{value}\n"""'
    return json.dumps(value, ensure_ascii=False)


def shown_text(completion: dict, key: str = "text") -> str:
    """Return a completion's text for a person; a conversation has one line per turn or call.

    These are the lines of spoken_lines. The further lines of a text are indented, so that none
    looks like the line of another turn.

    Args:
        key: the key of the text in a completion that is a single turn.
    """
    if "messages" not in completion:
        return completion[key]
    return "\n".join(starmap(line_text, spoken_lines(completion["messages"])))


def line_text(who: str, text: str) -> str:
    """Format one pair of spoken_lines; the further lines of its text are indented."""
    return f"{who:<6}{text}".replace("\n", CONTINUED)


def fair_limit(lengths: Sequence[int], total: int) -> int:
    """Return the largest limit for which min(length, limit) adds up to at most `total`.

    Texts that are cut to this limit fit together in `total` characters, and only the longest are
    cut.
    """
    characters_left = total
    for number, length in enumerate(sorted(lengths)):
        share = characters_left // (len(lengths) - number)
        if length > share:
            return share
        characters_left -= length
    return total


def _messages_of(completion):
    """Return a conversation's messages, long texts cut, as {"messages": [...]}; {} for one turn."""
    if "messages" not in completion:
        return {}
    messages, lengths = completion["messages"], []
    for message in messages:
        _changed(message, lambda text: lengths.append(len(text)))
    limit = fair_limit(lengths, LONGEST_CONVERSATION)
    return {"messages": [_changed(turn, lambda text: shortened(text, limit)) for turn in messages]}


def _changed(message, change):
    """Return a message with change(text) in place of each text of the model or a tool."""
    new_message = message | {"content": change(message["content"])}
    if "tool_calls" in message:
        calls = [call["function"] for call in message["tool_calls"]]
        calls = [call | {"arguments": _each_text(call["arguments"], change)} for call in calls]
        new_message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return new_message


def _each_text(value, change):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    return [_each_text(item, change) for item in value] if isinstance(value, list) else value


def _columns(values):
    """Return the values of columns as JSON can hold them; long texts are cut."""
    lengths = [len(value) for value in values.values() if isinstance(value, str)]
    limit = fair_limit(lengths, LONGEST_TEXT)
    return {name: _plain(value, limit) for name, value in values.items()}


def _plain(value, limit):
    if isinstance(value, str):
        return shortened(value, limit)
    return _finite(value) if isinstance(value, float) else value


def _finite(number):
    return float(number) if number is not None and math.isfinite(number) else None
