"""Tools in a chat template: how it shows them to a model, and how it writes their results.

Ids that a model sampled stay as they are; only the texts between its turns are tokenised here.
"""

import json
from dataclasses import dataclass
from functools import cached_property

from deepseek_jax.data import deepseek_v32, tool_calls
from deepseek_jax.data.chat import (
    OWN_TEXT,
    R1_ZERO_TEMPLATE,
    asked_messages,
    by_template,
    end_of_turn,
    render_question,
)
from deepseek_jax.data.plain_calls import parse_plain
from deepseek_jax.data.rewritten import as_plain, rewritten_turns
from deepseek_jax.data.text_ids import cut_markers, encode_parts, encode_text
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.data.tool_calls import Call
from deepseek_jax.data.tool_messages import (
    as_tool_call,
    showing_tools,
    with_arguments,
    with_description,
    with_thought_apart,
)

__all__ = ["Call", "ToolForm", "encode_text", "tool_form"]

PARSERS = {
    "hermes": tool_calls.parse_hermes,
    "llama": tool_calls.parse_llama,
    "deepseek": tool_calls.parse_deepseek,
    "deepseek_v32": tool_calls.parse_deepseek_v32,
    "plain": parse_plain,
}
# Form -> text that its template writes for a call of `probe` and its result. R1-Distill's template leaves
# out the call
PROBED = {
    "hermes": '<tool_call>\n{"name": "probe", "arguments": {',
    "llama": '{"name": "probe", "parameters": {',
    "deepseek": "<｜tool▁outputs▁begin｜>",
}
MARKERS = {"hermes": "<tool_call>", "deepseek": tool_calls.CALL, "deepseek_v32": deepseek_v32.MARK}
# Most characters of the message that a model reads about a malformed call
ERROR_LENGTH = 299
ASKED = {"role": "user", "content": "?"}
# The quote between the two marks shows whether the template writes a text unchanged or as JSON
TEXT = f'{OWN_TEXT}"{OWN_TEXT}'


@dataclass(frozen=True)
class ToolForm:
    """How one tokenizer and template write and read tool calls; `tool_form` makes it.

    A schema in the methods is a dict as transformers.utils.get_json_schema makes it; [] means no
    tools.

    Attributes:
        tokenizer: The tokenizer of the model.
        template: See `data.chat.render_prompt`.
        name: "hermes" (Qwen2.5, Qwen3), "llama" (3.1), "deepseek" (V3, R1), "deepseek_v32", or
            "plain", which needs no template for tools.
    """

    tokenizer: Tokenizer
    template: str
    name: str

    def prompt(self, example: dict, schemas: list[dict], opening: str = "") -> list[int]:
        """Return the ids of the example's prompt, with a description of the tools.

        Markers in the messages of the user are encoded as plain text, since an environment may have
        written them. The form "plain" with a template of text describes no tools, because such a
        template has no place for them.

        Args:
            example: See `data.chat.render_question`.
            schemas: Schemas of the tools.
            opening: See `data.chat.render_question`.
        """
        knows_tools, messages = self.name in ("hermes", "llama"), asked_messages(example)
        if schemas and not knows_tools and self.template == "chat":
            self._check_system()
            messages = with_description(messages, self.name, schemas)
        messages = [
            {**m, "content": cut_markers(self.tokenizer, m["content"])}
            if m["role"] == "user"
            else m
            for m in messages
        ]
        tokenizer = showing_tools(self.tokenizer, schemas if knows_tools else [])
        example = {**example, "messages": messages}
        return render_question(tokenizer, example, template=self.template, opening=opening)

    def parse(self, text: str, schemas: list[dict]) -> tuple[str, list[Call]]:
        """Return (content, calls in order) of a model's turn; content has no calls in it.

        Args:
            text: The turn, decoded without special tokens.
            schemas: Schemas of the tools.

        Raises:
            ValueError: A call is malformed. The message is for the model: it says in under 300
                characters what was wrong.
        """
        if not schemas:
            return text, []
        try:
            return PARSERS[self.name](text, schemas)
        except RecursionError as error:
            raise ValueError("The arguments of the call are nested too deeply.") from error
        except ValueError as error:
            raise ValueError(str(error)[:ERROR_LENGTH]) from error

    def results(self, calls: list[Call], texts: list[str]) -> list[int]:
        """Return the ids that follow the end token of a turn with calls, up to the next turn.

        They are a message with one text for each call, and the generation prompt. `encode_text`
        tokenises the texts.

        Args:
            calls: The calls of the turn.
            texts: The result of each call.
        """
        if self.name == "plain":
            return self.user("\n".join(texts))
        call_dicts = [as_tool_call(Call(call.name, {})) for call in calls]
        turn = {"role": "assistant", "content": "", "tool_calls": call_dicts}
        answers = [{"role": "tool", "name": call.name, "content": TEXT} for call in calls]
        return self._between([ASKED, turn, *answers], texts)

    def user(self, text: str) -> list[int]:
        """Return the ids between two turns, as `results` does, for a message of the user."""
        if self.template != "chat":
            template_text = R1_ZERO_TEMPLATE if self.template == "r1_zero" else self.template
            template_parts = template_text.split("{question}")
            return encode_parts(self.tokenizer, template_parts, [text] * (len(template_parts) - 1))
        reply = {"role": "assistant", "content": "?"}
        return self._between([ASKED, reply, {"role": "user", "content": TEXT}], [text])

    def rewritten(self, messages: list[dict], texts: list[str]) -> int:
        """Return how many earlier turns the template would encode otherwise than they were sampled.

        The templates of R1 and Qwen3 drop earlier thoughts, for example. If the template cannot
        write the conversation, all earlier turns count. A message that nothing follows is not an
        earlier turn. Templates of text rewrite none.

        Args:
            messages: The whole conversation in OpenAI's form.
            texts: The raw text of each of the model's turns, in order. It includes text between the
                template's generation prompt and the turn, such as an opening. They are the last
                turns of the assistant.
        """
        if self.template != "chat" or not texts:
            return 0
        if self.name == "plain":
            messages = as_plain(messages, texts)
        return rewritten_turns(messages, texts, self._render, self._end)

    @cached_property
    def _end(self):
        """The text of the token that ends a turn."""
        return self.tokenizer.backend.id_to_token(end_of_turn(self.tokenizer, self.template))

    def _check_system(self):
        """Raise ValueError if the template leaves out a system message.

        The tools are described in that message.
        """
        if OWN_TEXT not in self._render(
            [{"role": "system", "content": OWN_TEXT}, ASKED], add_generation_prompt=True
        ):
            raise ValueError(
                f"template={self.template!r}: the chat template leaves out the system message that would "
                'describe the tools; set it to "r1_zero" or to a text that contains {question}.'
            )

    def _between(self, messages, texts):
        """Return the ids after the assistant's last end token, with the texts in place of TEXT."""
        template_parts = self._render(messages, add_generation_prompt=True).split(OWN_TEXT)
        if len(template_parts) != 2 * len(texts) + 1 or self._end not in template_parts[0]:
            raise ValueError(
                f"template={self.template!r}: the chat template leaves out what a tool or a user says after "
                'an answer; set it to "r1_zero" or to a text that contains {question}.'
            )
        if template_parts[1] != '"':
            texts = [json.dumps(text, ensure_ascii=False)[1:-1] for text in texts]
        template_parts[0] = template_parts[0].rpartition(self._end)[2]
        return encode_parts(self.tokenizer, template_parts[0::2], texts)

    def _render(self, messages, *, add_generation_prompt):
        """Return the text of a conversation in the chat template."""
        if self.name == "deepseek_v32":
            return deepseek_v32.render_messages(
                [with_thought_apart(m) for m in messages], thinking=True
            )
        template_messages = [with_arguments(m, as_text=self.name == "deepseek") for m in messages]
        return by_template(
            self.tokenizer,
            template_messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )


def tool_form(tokenizer: Tokenizer, template: str) -> ToolForm:
    """Return the form in which this tokenizer's chat template writes calls.

    It is "plain" if the template has no tools.

    Args:
        tokenizer: The tokenizer of the model.
        template: See `data.chat.render_prompt`.

    Raises:
        ValueError: The chat template leaves out the results of tools, or the tokenizer leaves the
            markers of its calls out of decoded text.
    """
    # Raises ValueError for a tokenizer without a chat template
    end_of_turn(tokenizer, template)
    name = _form_name(tokenizer) if template == "chat" else "plain"
    form = ToolForm(tokenizer, template, name)
    marker = MARKERS.get(name, "")
    if tokenizer.decode(tokenizer.encode(marker)) != marker:
        raise ValueError(
            f"the tokenizer leaves {marker} out of decoded text, so no call could be read; set special to "
            "false for it in added_tokens of its tokenizer.json."
        )
    form.results([Call("probe", {})], ["?"])
    form.user("?")
    return form


def _form_name(tokenizer):
    if getattr(tokenizer.chat, "carried_as", None) == "deepseek_v32":
        return "deepseek_v32"
    call = as_tool_call(Call("probe", {"a": 1}))
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    # Templates differ in whether they take arguments as an object or as JSON text
    for as_text in (False, True):
        messages = [ASKED, with_arguments(turn, as_text=as_text), {"role": "tool", "content": "?"}]
        try:
            text = by_template(tokenizer, messages, tokenize=False)
        # This template takes arguments in the other form, or has no tools
        except ValueError:
            continue
        for name, call_start in PROBED.items():
            if call_start in text and (name == "deepseek" or _shows_tools(tokenizer)):
                return name
    return "plain"


def _shows_tools(tokenizer):
    """Return whether the chat template lists the tools."""
    parameters = {"type": "object", "properties": {}}
    function = {"name": "probe", "description": "", "parameters": parameters}
    probe_tokenizer = showing_tools(tokenizer, [{"type": "function", "function": function}])
    return "probe" in by_template(probe_tokenizer, [ASKED], tokenize=False)
