"""Tools that several tests describe, and turns of a model that calls them."""

import json

from deepseek_jax.data.tools import Call


def _schema(name, description, required, **properties):
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


SCHEMAS = [
    _schema(
        "add",
        "Add two numbers.",
        ["a", "b"],
        a={"type": "integer", "description": "The first."},
        b={"type": "integer", "description": "The second."},
    ),
    _schema(
        "look_up",
        "Look a word up.",
        ["word"],
        word={"type": "string", "description": "It."},
        language={"type": "string", "enum": ["en", "zh"], "description": "Its language."},
    ),
    _schema("roll", "Roll a die.", []),
]

CALLS = [Call("add", {"a": 312, "b": 4805}), Call("look_up", {"word": '日本 "x"'})]
THOUGHT = "<think>\nhm\n</think>\n\n"


def raw_calls(form, calls):
    """A model's turn that calls, in the words of its template."""
    arguments = [json.dumps(call.arguments, ensure_ascii=False) for call in calls]
    if form.name == "hermes":
        one = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
        return "\n".join(one.format(c.name, a) for c, a in zip(calls, arguments, strict=True))
    if form.name == "llama":
        return f'{{"name": "{calls[0].name}", "parameters": {arguments[0]}}}'
    one = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
    inside = "\n".join(one.format(c.name, a) for c, a in zip(calls, arguments, strict=True))
    return f"<｜tool▁calls▁begin｜>{inside}<｜tool▁calls▁end｜>"
