"""Tool calls as lines of plain text, for a chat template without tools.

Tests: tests/data/test_tool_calls.py, tests/data/test_tools.py.
"""

import ast
import json
import re
import warnings

from deepseek_jax.data.tool_calls import (
    Call,
    checked_call,
    functions_by_name,
    parameters_of,
    split_thought,
)

BEGINS = re.compile(r"([A-Za-z_]\w*)\(")
WHOLE = re.compile(r"[A-Za-z_]\w*\(.*\)")
# Longest line, in characters, that is parsed: Python's parser uses stack for each bracket or sign
LINE_LENGTH = 20_000
TYPES = dict(
    integer="int", number="float", string="str", boolean="bool", array="list", object="dict"
)


def plain_description(schemas: list[dict]):
    """Return what a system message says about the tools and about how to call them."""
    texts = ["You can call these tools:", *map(_described, functions_by_name(schemas).values())]
    texts.append(
        "To call a tool, end your answer with a line that holds the call and nothing else. Write its "
        "arguments as Python literals, by position or by name. For several calls write one such line for "
        "each. The results come in the next message."
    )
    return "\n\n".join(texts)


def _described(function):
    """Describe a tool as a Python function: signature, then what it does and its parameters."""
    required = function.get("parameters", {}).get("required", ())
    signature, lines = [], [function.get("description", "")]
    for name, schema in parameters_of(function).items():
        kind = schema.get("type", "any")
        kinds = [kind] if isinstance(kind, str) else kind
        hint = " | ".join(TYPES.get(k, k) for k in kinds)
        signature.append(f"{name}: {hint}" + ("" if name in required else " = ..."))
        choices = f" One of {json.dumps(schema['enum'])}." if "enum" in schema else ""
        lines.append(f"{name}: {schema.get('description', '')}{choices}")
    text = "\n".join(line for line in lines if line.strip()).replace("\n", "\n    ")
    return f"{function['name']}({', '.join(signature)})\n    {text}"


def parse_plain(text: str, schemas: list[dict]) -> tuple[str, list[Call]]:
    """Return (content, calls): the last lines of a turn that are calls are read as calls.

    An example of such a line is add(1, b=2). content is the rest of the text, with its thought.

    Of the lines above the last one, only those that are a whole call count as calls.

    Args:
        text: The text of a model's turn.
        schemas: Schemas of the tools.

    Raises:
        ValueError: The last line begins as the call of a tool and cannot be read, or it is a whole
            call of a tool that does not exist.
    """
    functions = functions_by_name(schemas)
    thought, answer = split_thought(text)
    lines = [line for line in answer.split("\n") if line.strip()]
    first = len(lines)
    while first and _name(lines[first - 1]) in functions:
        if first < len(lines) and not WHOLE.fullmatch(lines[first - 1].strip()):
            break
        first -= 1
    if first < len(lines):
        calls = [_read_call(line.strip(), schemas) for line in lines[first:]]
        return thought + "\n".join(lines[:first]), calls
    if lines and WHOLE.fullmatch(lines[-1].strip()):
        # Raises, because no tool has this name
        checked_call(_name(lines[-1]), {}, schemas)
    return text, []


def _name(line):
    """Return the name that a line begins to call, or None."""
    begins = BEGINS.match(line.strip())
    return begins and begins[1]


def _read_call(line, schemas):
    name = _name(line)
    if len(line) > LINE_LENGTH:
        raise ValueError(f"The call of {name} is longer than {LINE_LENGTH} characters.")
    try:
        with warnings.catch_warnings(action="ignore"):
            node = ast.parse(line, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise TypeError("an expression around a call")
        positional = [ast.literal_eval(value) for value in node.args]
        named = [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in node.keywords]
        # Tuples become lists; other values that JSON does not have raise TypeError
        positional, named = json.loads(json.dumps([positional, named]))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"This line is no call of {name} with literals as arguments: {line[:80]!r}."
        ) from error
    return checked_call(name, _by_parameter(name, positional, named, schemas), schemas)


def _by_parameter(name, positional, named, schemas):
    """Return {parameter: value} for a call's arguments."""
    parameters = list(parameters_of(functions_by_name(schemas)[name]))
    if len(positional) > len(parameters):
        raise ValueError(
            f"{name} takes {len(parameters)} arguments, and the call has {len(positional)}."
        )
    arguments = dict(zip(parameters, positional, strict=False))
    for key, value in named:
        if key is None:
            raise ValueError(f"Name each argument of {name}: ** is not read.")
        if key in arguments:
            raise ValueError(f"The call of {name} has the parameter {key!r} twice.")
        arguments[key] = value
    return arguments
