"""Parsers of tool calls in what a model wrote, one for the form of each chat template.

Each parser takes (text, schemas) and returns (content, calls); content is the text without the
calls. The messages of its ValueErrors are for the model to read.
"""

import json
import re
from typing import NamedTuple

from deepseek_jax.data.deepseek_v32 import MARK, THOUGHT, parse_answer

# Tokens of DeepSeek's vocabulary
CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
# Most characters of a name that an error quotes
NAME_LENGTH = 40


class Call(NamedTuple):
    """One call of a tool.

    Attributes:
        name: The name of the tool.
        arguments: Parameter name -> JSON value.
    """

    name: str
    arguments: dict


def functions_by_name(schemas: list[dict]):
    """Return {name: function} of schemas as transformers.utils.get_json_schema makes them."""
    return {schema["function"]["name"]: schema["function"] for schema in schemas}


def parameters_of(function: dict):
    """Return {name: JSON schema} of a function's parameters, in order."""
    return function.get("parameters", {}).get("properties", {})


def checked_call(name, arguments, schemas: list[dict]):
    """Return the Call if the tool exists and takes these arguments.

    The tool itself checks the types of the arguments.

    Raises:
        ValueError: There is no such tool or parameter, a required parameter is missing, or an
            argument is not JSON.
    """
    functions = functions_by_name(schemas)
    if not isinstance(name, str) or name not in functions:
        raise ValueError(
            f"There is no tool named {str(name)[:NAME_LENGTH]!r}; the tools are: {', '.join(functions)}."
        )
    if not isinstance(arguments, dict):
        raise ValueError(f"The arguments of {name} must be an object with a value by parameter.")
    parameters = parameters_of(functions[name])
    for parameter in arguments:
        if parameter not in parameters:
            raise ValueError(
                f"{name} has no parameter {parameter[:NAME_LENGTH]!r}; its parameters are: "
                f"{', '.join(parameters) or 'none'}."
            )
    for required_parameter in functions[name].get("parameters", {}).get("required", ()):
        if required_parameter not in arguments:
            raise ValueError(f"{name} needs the parameter {required_parameter!r}.")
    try:
        # json.loads accepts NaN, infinity and half surrogates, which the files of a run cannot store
        json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise ValueError(f"The arguments of {name} are not all JSON: {error}.") from error
    return Call(name, arguments)


def parse_hermes(text: str, schemas: list[dict]):
    """Parse Qwen2.5's and Qwen3's form: a JSON object between <tool_call> and </tool_call>."""
    thought, answer = split_thought(text)
    content, start_tag, rest = answer.partition("<tool_call>")
    if not start_tag:
        return text, []
    calls = []
    while start_tag:
        value, rest = _read_json(rest)
        rest = _without(rest, "</tool_call>")
        calls.append(_call_of(value, "arguments", schemas))
        text_between, start_tag, rest = rest.partition("<tool_call>")
        content += text_between
    return thought + content.strip(), calls


def parse_llama(text: str, schemas: list[dict]):
    """Parse Llama 3.1's form: the turn is one JSON object with name and parameters."""
    thought, answer = split_thought(text)
    answer = answer.lstrip().removeprefix("<|python_tag|>").lstrip()
    name_match = re.match(r'\{\s*"name"\s*:\s*"(.*?)"', answer)
    # Another object with a name may be the answer to a question
    if not name_match or (
        name_match[1] not in functions_by_name(schemas) and '"parameters"' not in answer
    ):
        return text, []
    value, rest = _read_json(answer)
    if rest:
        raise ValueError(
            "A turn can hold one call, and nothing after it: call the next tool later."
        )
    return thought, [_call_of(value, "parameters", schemas)]


def parse_deepseek(text: str, schemas: list[dict]):
    """Parse V3's and R1's form: marked calls, each a name and a fenced block of JSON arguments.

    R1-Distill's template writes a single call without the token that ends all calls, so this token
    may be missing.
    """
    thought, answer = split_thought(text)
    content, start_token, rest = answer.partition(CALLS if CALLS in answer else CALL)
    if not start_token:
        return text, []
    rest = rest.lstrip() if start_token == CALLS else CALL + rest
    calls = []
    while rest.startswith(CALL):
        head = re.match(rf"{CALL}function{SEPARATOR}([^\n]*)\n```json\n", rest)
        if not head:
            raise ValueError(
                f"A call begins with {CALL}function{SEPARATOR}, the name, and ```json."
            )
        value, rest = _read_json(rest[head.end() :])
        rest = _without(_without(rest, "```"), CALL_END)
        calls.append(checked_call(head[1].strip(), value, schemas))
    if not calls:
        raise ValueError(f"There is no {CALL} after {CALLS}.")
    return thought + (content + rest.removeprefix(CALLS_END)).strip(), calls


def deepseek_description(schemas: list[dict]):
    """Return what a system message says about the tools, for V3 and R1.

    Their chat templates do not describe tools.
    """
    functions = (json.dumps(f, ensure_ascii=False) for f in functions_by_name(schemas).values())
    return "\n".join(
        (
            "## Tools\n\nYou have access to these functions, each in JSON Schema format:\n",
            *functions,
            "\nTo call functions, end your answer in exactly this form, with a part from "
            f"{CALL} to {CALL_END} for each call:\n",
            f"{CALLS}{CALL}function{SEPARATOR}NAME\n```json\n"
            f'{{"PARAMETER": VALUE}}\n```{CALL_END}{CALLS_END}',
        )
    )


def parse_deepseek_v32(text: str, schemas: list[dict]):
    """Parse V3.2's form, see data.deepseek_v32."""
    if MARK not in text:
        return text, []
    message = parse_answer(text, thinking=THOUGHT in text)
    thought = message["reasoning_content"] + THOUGHT if THOUGHT in text else ""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = [checked_call(f["name"], json.loads(f["arguments"]), schemas) for f in functions]
    return thought + message["content"], calls


def split_thought(text: str):
    """Return (text up to </think>, rest).

    A call inside a thought does not count as a call.
    """
    thought, end_tag, answer = text.partition(THOUGHT)
    if end_tag:
        return thought + end_tag, answer
    return (text, "") if text.lstrip().startswith("<think>") else ("", text)


def _call_of(value, key, schemas):
    """Return the call in a JSON object that has its arguments under `key`."""
    if not isinstance(value, dict) or "name" not in value:
        raise ValueError(f'A call must be a JSON object with "name" and "{key}".')
    return checked_call(value["name"], value.get(key, {}), schemas)


def _read_json(text):
    """Return (JSON value at the start of a text, text after it), without blanks around them."""
    text = text.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError as error:
        raise ValueError(f"The call is not complete JSON: {error}.") from error
    return value, text[end:].lstrip()


def _without(text, end):
    """Return the text after `end`, with which it must begin."""
    if not text.startswith(end):
        raise ValueError(f"The call does not end in {end} right after its JSON.")
    return text.removeprefix(end).lstrip()
