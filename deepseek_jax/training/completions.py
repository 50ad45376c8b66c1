"""The completions that a run keeps of its logged steps, in completions.jsonl beside metrics.jsonl.

A line is an object of a prompt's group, or of as many of its completions as the run keeps:
{"step": int, "phase": str, "prompt": str, "answer": str or null, "columns": {name: value}, "completions":
[{"text": str, "reward": float or null, "parts": {name: float or null}, "advantage": float or null,
"columns": {name: value}, "length": int, "truncated": bool, "unread": bool}]}. columns: the others of the
question's line, and of a completion what rewards logged of it. length: in tokens. unread: it scores 0 because
a rule could not read what it states. A reward that failed, or that there is none of, is null. A completion
that is a conversation also has "messages": those after the prompt, in OpenAI's form.
"""

import json
import math
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from deepseek_jax.errors import shortened
from deepseek_jax.training.lines import read_lines

FILE = "completions.jsonl"
# Characters of a text, or of all columns together, and of all texts of a conversation
LONGEST_TEXT, LONGEST_CONVERSATION = 4000, 8000
# How a text continues in the lines of a conversation
CONTINUED = "\n" + 6 * " "
# The columns of the table that boards show
COLUMNS = "prompt answer completion reward rewards advantage length truncated".split()


def read_completions(path: str | Path, phase: str | None = None) -> list[dict]:
    """The lines of a file of completions, in order, or those of one phase; none without a file.

    Raises ValueError as lines.read_lines.
    """
    return [line for line in read_lines(path) if phase is None or line["phase"] == phase]


def completions_line(step: int, phase: str, group: dict):
    """A group, {"prompt", "answer", "columns", "completions"}, as its line: long texts are cut, NaN and
    infinities are null.
    """
    completions = [
        {
            "text": shortened(each["text"], LONGEST_TEXT),
            "reward": _finite(each["reward"]),
            "parts": {name: _finite(part) for name, part in each["parts"].items()},
            "advantage": _finite(each["advantage"]),
            "columns": _columns(each["columns"]),
            "length": int(each["length"]),
            "truncated": bool(each["truncated"]),
            "unread": bool(each["unread"]),
        }
        | _messages_of(each)
        for each in group["completions"]
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
    """The rows of a table of COLUMNS, one a completion. rewards: all of them by name, in one text."""
    return [
        (
            *(line["prompt"], line["answer"], shown_text(each), each["reward"]),
            ", ".join(f"{n} {p:.4g}" for n, p in each["parts"].items() if p is not None),
            *(each["advantage"], each["length"], each["truncated"]),
        )
        for line in lines
        for each in line["completions"]
    ]


def spoken_lines(messages: Sequence[dict]) -> list[tuple[str, str]]:
    """A conversation for a reader: (who, text) of each turn of the "model", each "call" in it, what each
    "tool" answered, and each "reply" of an environment or about a call that could not be read.
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
    shown = ", ".join(f"{key}={_value_text(value)}" for key, value in arguments.items())
    return f"{name}({shown})"


def _value_text(value):
    # Code is read by its lines
    if isinstance(value, str) and "\n" in value:
        return f'"""\n{value}\n"""'
    return json.dumps(value, ensure_ascii=False)


def shown_text(completion: dict, key: str = "text") -> str:
    """A completion's text, which it has by this key; of a conversation a line for each of spoken_lines, whose
    further lines are indented: none looks like another's.
    """
    if "messages" not in completion:
        return completion[key]
    return "\n".join(starmap(line_text, spoken_lines(completion["messages"])))


def line_text(who: str, text: str) -> str:
    """A line of spoken_lines; the further lines of its text are indented."""
    return f"{who:<6}{text}".replace("\n", CONTINUED)


def fair_limit(lengths: Sequence[int], total: int) -> int:
    """The largest limit for which min(length, limit) adds up to at most `total`: only the longest are cut."""
    left = total
    for number, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - number)
        if length > share:
            return share
        left -= length
    return total


def _messages_of(completion):
    """{"messages": those of a conversation, whose long texts are cut}, {} for a single turn."""
    if "messages" not in completion:
        return {}
    messages, lengths = completion["messages"], []
    for message in messages:
        _changed(message, lambda text: lengths.append(len(text)))
    most = fair_limit(lengths, LONGEST_CONVERSATION)
    return {"messages": [_changed(each, lambda text: shortened(text, most)) for each in messages]}


def _changed(message, change):
    """A message with change(text) in place of each text that the model or a tool wrote."""
    new = message | {"content": change(message["content"])}
    if "tool_calls" in message:
        calls = [call["function"] for call in message["tool_calls"]]
        calls = [call | {"arguments": _each_text(call["arguments"], change)} for call in calls]
        new["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return new


def _each_text(value, change):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(of, change) for key, of in value.items()}
    return [_each_text(of, change) for of in value] if isinstance(value, list) else value


def _columns(values):
    """Columns of plain values, whose long texts are cut."""
    lengths = [len(value) for value in values.values() if isinstance(value, str)]
    most = fair_limit(lengths, LONGEST_TEXT)
    return {name: _plain(value, most) for name, value in values.items()}


def _plain(value, most):
    if isinstance(value, str):
        return shortened(value, most)
    return _finite(value) if isinstance(value, float) else value


def _finite(number):
    return float(number) if number is not None and math.isfinite(number) else None
