"""DeepSeek-V3.2's prompts: its folder has no chat template, but a Python file, encoding_dsv32.py.

This file is a new implementation of what the public copies of encoding/encoding_dsv32.py do. The
copies differ by seven blank lines in the description of the tools: ours has these lines, as in
mlx-lm's copy; the copies of vLLM and SGLang do not have them. Not checked: the tokenizer of V3.2's
own folder, in which the ids of ｜DSML｜ may be special. Everything else in a prompt is in V3's
vocabulary.
"""

import json
import re
from typing import NoReturn

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, THOUGHT = "<think>", "</think>"
MARK = "｜DSML｜"
TOOLS = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{MARK}function_calls>" block like the following as part of your reply to the user:
<{MARK}function_calls>
<{MARK}invoke name="$FUNCTION_NAME">
<{MARK}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{MARK}parameter>
...
</{MARK}invoke>
<{MARK}invoke name="$FUNCTION_NAME2">
...
</{MARK}invoke>
</{MARK}function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<{MARK}function_calls>
...
</{MARK}function_calls>

<function_results>
...
</function_results>

{THINK}...thinking about results{THOUGHT}

Here are the functions available in JSONSchema format:
<functions>
"""  # noqa: E501  the model learned these lines
FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
ROLES = ("system", "developer", "user", "assistant", "tool")


def render_messages(messages: list[dict], *, thinking: bool):
    """Return the text of a conversation, from the begin token on.

    If the conversation ends with a question or with results of tools, an answer continues the text.
    Reasoning is written only after the last question, through all tool calls that follow it.
    Earlier turns lose their reasoning, and developer messages before the last question are left
    out, as in the published file.

    Args:
        messages: Dicts with role and content, in OpenAI's form. system and developer messages may
            have tools ([{"function": schema}]) and response_format. assistant messages may have
            reasoning_content and tool_calls ([{"function": {"name", "arguments": JSON text}}]).
        thinking: Whether the model thinks about the last question.

    Raises:
        ValueError: The format has no place for a message; the error has the message's number.
    """
    _check_roles(messages, ROLES)
    question_index = max((i for i, m in enumerate(messages) if _asks(m)), default=-1)
    if thinking:
        messages = [
            m for i, m in enumerate(messages) if i >= question_index or m["role"] != "developer"
        ]
        question_index = max((i for i, m in enumerate(messages) if _asks(m)), default=-1)
    text, open_calls, num_results = BOS, 0, 0
    for i, message in enumerate(messages):
        opening = THINK if thinking and i >= question_index else THOUGHT
        role = message["role"]
        if open_calls and role != "tool":
            _refuse(
                i, f"comes before the results of {open_calls} calls; give a tool message for each"
            )
        if role == "tool":
            if not open_calls:
                _refuse(i, "is a result that no tool_calls of the assistant ask for; leave it out")
            text += "" if num_results else "\n\n<function_results>"
            text += f"\n<result>{_content(i, message, 'the result')}</result>"
            open_calls, num_results = open_calls - 1, num_results + 1
            if not open_calls:
                text += f"\n</function_results>\n\n{opening}"
        elif role == "assistant":
            text += _answer(i, message, thinking and i > question_index)
            open_calls, num_results = len(message.get("tool_calls") or ()), 0
        elif _asks(message):
            text += USER + _question(i, message) + ASSISTANT + opening
        else:
            text += _with_tools(message.get("content") or "", message)
    return text


def _asks(message):
    return message["role"] in ("user", "developer")


def _check_roles(messages, roles):
    for i, message in enumerate(messages):
        role = message.get("role")
        if role not in roles:
            fault = "has no role" if role is None else f"has the role {role!r}"
            _refuse(i, f"{fault}; set it to one of {', '.join(roles)}")


def _refuse(i, why) -> NoReturn:
    raise ValueError(f"messages[{i}] {why}")


def _content(i, message, meaning):
    """Return the content of a message, or raise ValueError that asks for it by its meaning."""
    if message.get("content") is None:
        _refuse(i, f"has no content; give {meaning}")
    return message["content"]


def _question(i, message):
    content = message.get("content")
    if not content:
        _refuse(i, "has no content; give the question")
    if message["role"] == "user":
        return content
    return _with_tools("", message) + f"\n\n# The user's message is: {content}"


def _with_tools(text, message):
    if tools := message.get("tools"):
        schemas = "\n".join(_json(tool["function"]) for tool in tools)
        text += f"\n\n{TOOLS}{schemas}\n</functions>\n"
    if schema := message.get("response_format"):
        text += f"\n\n{FORMAT}{_json(schema)}"
    return text


def _answer(i, message, thinks):
    calls, reasoning = message.get("tool_calls") or [], message.get("reasoning_content") or ""
    if thinks and not (reasoning or calls):
        _refuse(
            i, "answers the last question without reasoning_content; give it, or set thinking=False"
        )
    text = (reasoning + THOUGHT if thinks else "") + (message.get("content") or "")
    if calls:
        invocations = "\n".join(_invoke(call["function"]) for call in calls)
        text += f"\n\n<{MARK}function_calls>\n{invocations}\n</{MARK}function_calls>"
    return text + EOS


def _invoke(call):
    lines = [
        f'<{MARK}parameter name="{name}" string="{_is_text(value)}">{_value(value)}</{MARK}parameter>'
        for name, value in json.loads(call["arguments"]).items()
    ]
    parameters = "\n".join(lines)
    return f'<{MARK}invoke name="{call["name"]}">\n{parameters}\n</{MARK}invoke>'


def _is_text(value):
    return "true" if isinstance(value, str) else "false"


def _value(value):
    return value if isinstance(value, str) else _json(value)


def _json(value):
    return json.dumps(value, ensure_ascii=False)


INVOKE = re.compile(rf'<{MARK}invoke name="(.*?)">\n(.*?)\n?</{MARK}invoke>', re.DOTALL)
PARAMETER = re.compile(
    rf'<{MARK}parameter name="(.*?)" string="(true|false)">(.*?)</{MARK}parameter>', re.DOTALL
)


def parse_answer(text: str, *, thinking: bool):
    """Return the assistant message of a sampled text (no end token); inverts render_messages.

    Raises:
        ValueError: The text is cut short or malformed. A sampled text may be anything.
    """
    reasoning = ""
    if thinking:
        reasoning, thought_end, text = text.partition(THOUGHT)
        if not thought_end:
            raise ValueError(f"the answer has no {THOUGHT} after its reasoning")
    content, calls_start, block = text.partition(f"\n\n<{MARK}function_calls>\n")
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    if any(token in content + reasoning for token in (BOS, EOS, THINK, THOUGHT, MARK)):
        raise ValueError("the answer has a special token in its text")
    if not calls_start:
        return message
    calls_text, calls_end, rest = block.partition(f"\n</{MARK}function_calls>")
    if not calls_end or rest or INVOKE.sub("", calls_text).strip("\n"):
        raise ValueError("the answer's function_calls are not complete, or not alone at its end")
    return message | {"tool_calls": [_parse_call(*call) for call in INVOKE.findall(calls_text)]}


def _parse_call(name, block):
    if PARAMETER.sub("", block).strip("\n"):
        raise ValueError(f"the call of {name!r} has text outside of its parameters")
    arguments = {}
    for key, is_text, value in PARAMETER.findall(block):
        if key in arguments:
            raise ValueError(f"the call of {name!r} has the parameter {key!r} twice")
        try:
            arguments[key] = value if is_text == "true" else json.loads(value)
        except ValueError as error:
            raise ValueError(f"parameter {key!r} of {name!r} is no JSON: {value[:80]!r}") from error
    return {"type": "function", "function": {"name": name, "arguments": _json(arguments)}}


class DeepseekV32Chat:
    """Replacement for the transformers tokenizer that renders chats in data.chat.

    Its generation prompt opens with <think>. In a finished turn the answer comes right after the
    token <｜Assistant｜>, because in every turn the text brings its own <think>.
    """

    # The name of this class in the record of data.carried
    carried_as = "deepseek_v32"

    def __init__(self, backend):
        self._backend = backend

    def apply_chat_template(self, messages, *, add_generation_prompt=False, tokenize=True):
        """Return the text of the messages, or {"input_ids": ids} if tokenize is set.

        The messages have the roles user, assistant and system.

        Raises:
            ValueError: A message has another role or no content; the error has its number.
        """
        _check_roles(messages, ("system", "user", "assistant"))
        text = BOS
        for i, message in enumerate(messages):
            start_token = USER if message["role"] == "user" else ""
            end_token = dict(user=ASSISTANT, assistant=EOS).get(message["role"], "")
            text += start_token + _content(i, message, "its text") + end_token
        text += THINK if add_generation_prompt else ""
        if not tokenize:
            return text
        return {"input_ids": self._backend.encode(text, add_special_tokens=False).ids}
