"""Conversion of messages with tool calls into the forms that chat templates take.

Tests: tests/data/test_tools.py.
"""

import dataclasses
import json

from deepseek_jax.data import deepseek_v32
from deepseek_jax.data.plain_calls import plain_description
from deepseek_jax.data.text_ids import CutTokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.data.tool_calls import Call, deepseek_description


class _Showing:
    """Replacement of Tokenizer.chat that passes the tools' schemas to the chat template."""

    def __init__(self, tokenizer, schemas):
        self._tokenizer = tokenizer
        self._tools = {"tools": schemas} if schemas else {}

    def apply_chat_template(self, messages, *, tokenize=True, add_generation_prompt=False):
        """Return the text of the messages, or {"input_ids": ids} if tokenize is set.

        A CutTokenizer encodes the text.
        """
        text = self._tokenizer.chat.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._tools
        )
        return {"input_ids": self._tokenizer.encode(text)} if tokenize else text


def showing_tools(tokenizer: Tokenizer, schemas: list[dict]) -> CutTokenizer:
    """Return the tokenizer with a chat template that lists these tools; [] lists none.

    Its encode splits a text at each CUT, see `text_ids.CutTokenizer`.
    """
    fields = {f.name: getattr(tokenizer, f.name) for f in dataclasses.fields(tokenizer)}
    if tokenizer.chat is not None:
        fields["chat"] = _Showing(CutTokenizer(**fields), schemas)
    return CutTokenizer(**fields)


def as_tool_call(call: Call):
    """Return a call in OpenAI's form, with its arguments as an object."""
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def with_arguments(message, *, as_text):
    """Return the message with the arguments of its calls as JSON text or as objects.

    A message with calls and no content gets "": transformers drops a content of None, and
    DeepSeek's templates then fail.

    Args:
        message: A message in OpenAI's form.
        as_text: True for JSON text, False for objects.
    """
    if not message.get("tool_calls"):
        return {key: value for key, value in message.items() if key != "tool_calls"}
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if as_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "content": message.get("content") or "", "tool_calls": calls}


def with_thought_apart(message):
    """Return the message as data.deepseek_v32 takes it: the thought under reasoning_content.

    The thought is the text before the last </think>; without a </think> it is None.
    """
    message = with_arguments(message, as_text=True)
    if message["role"] != "assistant":
        return message
    thought, end_tag, content = message["content"].rpartition(deepseek_v32.THOUGHT)
    return {**message, "content": content, "reasoning_content": thought if end_tag else None}


def with_description(messages, name, schemas):
    """Return the messages with a description of the tools at the end of the system message.

    Args:
        messages: The conversation. A system message is added if it has none.
        name: The name of the form of calls, see `tools.ToolForm`.
        schemas: Schemas as transformers.utils.get_json_schema makes them.
    """
    system, other_messages = "", messages
    if messages[0]["role"] == "system":
        system, other_messages = messages[0]["content"], messages[1:]
    if name == "deepseek_v32":
        system_messages = [{"role": "system", "content": system, "tools": schemas}]
        system = deepseek_v32.render_messages(system_messages, thinking=False).removeprefix(
            deepseek_v32.BOS
        )
    else:
        describe = deepseek_description if name == "deepseek" else plain_description
        system = f"{system}\n\n{describe(schemas)}".lstrip("\n")
    return [{"role": "system", "content": system}, *other_messages]
