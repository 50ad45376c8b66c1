"""Tools that several tests describe."""


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
