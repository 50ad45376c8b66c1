"""Messages with calls of tools, as chat templates of several forms take them."""

import dataclasses
import json

from deepseek_jax.data import deepseek_v32
from deepseek_jax.data.plain_calls import plain_description
from deepseek_jax.data.text_ids import CutTokenizer
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.data.tool_calls import Call, deepseek_description


class _Showing:
    """Stands for a tokenizer of transformers, as data.chat uses one: it shows the tools to its template."""

    def __init__(self, tokenizer, schemas):
        self._tokenizer = tokenizer
        self._tools = {"tools": schemas} if schemas else {}

    def apply_chat_template(self, messages, *, tokenize=True, add_generation_prompt=False):
        """The text of the messages, or with tokenize {"input_ids": ids}, encoded by a CutTokenizer."""
        text = self._tokenizer.chat.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._tools
        )
        return {"input_ids": self._tokenizer.encode(text)} if tokenize else text


def showing_tools(tokenizer: Tokenizer, schemas: list[dict]) -> CutTokenizer:
    """The tokenizer with a chat template that knows these tools, [] for none; CUT in a text cuts it."""
    fields = {f.name: getattr(tokenizer, f.name) for f in dataclasses.fields(tokenizer)}
    if tokenizer.chat is not None:
        fields["chat"] = _Showing(CutTokenizer(**fields), schemas)
    return CutTokenizer(**fields)


def as_tool_call(call: Call):
    """A call in OpenAI's form, its arguments as an object."""
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def with_arguments(message, *, as_text):
    """The message with its calls' arguments as JSON text or as objects.

    Content is "" where there is none: transformers leaves None out, and templates of DeepSeek's fail then.
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
    """The message with its thought apart, as data.deepseek_v32 takes it."""
    message = with_arguments(message, as_text=True)
    if message["role"] != "assistant":
        return message
    thought, found, content = message["content"].rpartition(deepseek_v32.THOUGHT)
    return {**message, "content": content, "reasoning_content": thought if found else None}


def with_description(messages, name, schemas):
    """The messages with the tools described at the end of the system message."""
    system, others = "", messages
    if messages[0]["role"] == "system":
        system, others = messages[0]["content"], messages[1:]
    if name == "deepseek_v32":
        told = [{"role": "system", "content": system, "tools": schemas}]
        system = deepseek_v32.render_messages(told, thinking=False).removeprefix(deepseek_v32.BOS)
    else:
        describe = deepseek_description if name == "deepseek" else plain_description
        system = f"{system}\n\n{describe(schemas)}".lstrip("\n")
    return [{"role": "system", "content": system}, *others]
