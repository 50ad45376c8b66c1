"""Questions and conversations to token ids, by a checkpoint's chat template or by a plain template."""

from functools import partial
from typing import Annotated

from deepseek_jax.data.tokenizer import Tokenizer

# The answer begins on the line below
PLAIN_TEMPLATE = "{question}\n"
# arXiv:2501.12948, Table 1; {question} stands where the paper has the word "prompt".
R1_ZERO_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. The reasoning process and answer are enclosed within "
    "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>. User: {question}. Assistant:"
)
# A private-use character, in place of the assistant's text while a chat template renders the rest
OWN_TEXT = "\ue000"


class _Asks:
    """The templates that a settings field may hold: each has a place for the question."""

    def holds(self, template: str):
        return template in ("chat", "r1_zero") or "{question}" in template

    def __str__(self):
        return '"chat", "r1_zero" or a text with {question} in it'


# The type of a settings field
Template = Annotated[str, _Asks()]


def asked_messages(example):
    """The messages of an example's prompt, the question last."""
    return example.get("messages") or [{"role": "user", "content": example["question"]}]


def with_reset_text(example, text: str | None):
    """The example whose last message ends with the text of an environment's reset, if there is any."""
    if not text:
        return example
    *before, last = asked_messages(example)
    last = last | {"content": last["content"] + text}
    return dict(example) | {"question": last["content"], "messages": [*before, last]}


def render_question(tokenizer: Tokenizer, example, *, template: str, opening: str = ""):
    r"""Ids of an example's prompt; the answer continues them, after `opening`.

    With template "chat" an example's `line` is the first line of the system message. Other templates have no
    system message: there it stands right before each question, so it has to end as a line does in that text.
    template: see render_prompt. opening: text that every answer begins with, "<think>\n" for one that has
    to think; the part of it that the chat template has written is not repeated.
    Raises ValueError as render_prompt and render_conversation do.
    """
    messages, line = asked_messages(example), example.get("line")
    if line and template == "chat":
        messages = with_system_line(messages, line)
    elif line:
        text = R1_ZERO_TEMPLATE if template == "r1_zero" else template
        template = text.replace("{question}", line + "{question}")
    if len(messages) == 1:
        ids = render_prompt(tokenizer, messages[0]["content"], template=template)
    elif template == "chat" and all(message["role"] != "assistant" for message in messages):
        ids = _render_chat(tokenizer, messages)
    else:
        # render_conversation needs an answer; last_prompt cuts this one off again
        reply = {"role": "assistant", "content": messages[-1]["content"]}
        rendered = render_conversation(tokenizer, [*messages, reply], template=template)
        ids = last_prompt(*rendered)
    return with_opening(tokenizer, ids, opening)


def with_opening(tokenizer: Tokenizer, ids: list[int], opening: str):
    """The ids, then as much of an answer's opening as they do not end with already."""
    opened = tokenizer.encode(opening) if opening else []
    # R1's template as first released stops before <think>, and a later one writes it: look for the longest
    # start of the opening that is already there
    for size in range(len(opened), 0, -1):
        if ids[-size:] == opened[:size]:
            return ids + opened[size:]
    return ids + opened


def with_system_line(messages: list, line: str):
    """The messages with a line before the rest of the system message."""
    line, (first, *others) = line.strip(), messages
    if first["role"] != "system":
        return [{"role": "system", "content": line}, *messages]
    return [first | {"content": f"{line}\n{first['content']}"}, *others]


def render_prompt(tokenizer: Tokenizer, question: str, *, template: str) -> list[int]:
    """Ids (a list of int) of the prompt that asks `question`; the answer begins where they end.

    tokenizer: data.tokenizer.Tokenizer. template: "chat", the checkpoint's own template with its
    generation prompt; "r1_zero", R1_ZERO_TEMPLATE; or any text with {question} in it. The last
    two begin with bos where the tokenizer puts one before plain text.
    Raises ValueError for an empty question, for "chat" without a chat template, and for a
    template without {question}.
    """
    if not question.strip():
        raise ValueError(f"the question {question!r} is empty; remove it from the data.")
    if template == "chat":
        return _render_chat(tokenizer, [{"role": "user", "content": question}])
    template = R1_ZERO_TEMPLATE if template == "r1_zero" else template
    if "{question}" not in template:
        raise ValueError(
            f"template={template!r} has no place for the question; "
            'set it to "chat", to "r1_zero" or to a text that contains {question}.'
        )
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    # Not str.format: other braces, such as those of \boxed{} in a template, are text
    return bos + tokenizer.encode(template.replace("{question}", question))


def render_conversation(
    tokenizer: Tokenizer, messages: list, *, template: str
) -> tuple[list[int], list[bool]]:
    """(ids, is_target): lists of int and of bool, True on the assistant's texts and their end tokens.

    messages: see data.messages.parse_conversation. template: see data.chat.render_prompt. A lone message of
    the assistant is a text without a prompt, in any template. Each assistant's text is encoded on its own,
    as a policy samples it after a prompt, so every turn has its <think>. The ids end with the last turn's
    end token. "chat": the checkpoint's template writes all but the assistant's texts and never sees them,
    because templates, R1's among them, drop the <think> of earlier turns. A <think> that the template
    writes at the start of a turn is removed, so that only the text's own remains. Other templates cannot
    hold a system message. They ask each question in the template anew, after the end token of the answer
    before; bos stands at the start alone. Raises ValueError as render_prompt does; for a system message
    that the template cannot hold; for an end token within a text; and for a chat template that leaves out
    an assistant's turn, ends it with no special token, or whose generation prompt differs from how it
    begins the finished turn.
    """
    contexts_of = _chat_contexts if template == "chat" else _text_contexts
    if len(messages) == 1:
        contexts_of = _lone_context
    contexts, end_id = contexts_of(tokenizer, messages, template)
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    ids, is_target = [], []
    for context, text in zip(contexts, texts, strict=True):
        own = [*tokenizer.encode(text), end_id]
        if own.index(end_id) < len(own) - 1:
            raise ValueError(
                f"the assistant's text {text[:80]!r} has an end-of-turn token in it; remove it, one is "
                "added at the end."
            )
        ids += context + own
        is_target += [False] * len(context) + [True] * len(own)
    return ids, is_target


def render_response(tokenizer: Tokenizer, messages: list, response: str, *, template: str):
    """Ids of a conversation that ends in this response and its end token: a list of int.

    Rendered, and refused with a ValueError, as by render_conversation.
    """
    answered = [*messages, {"role": "assistant", "content": response}]
    return render_conversation(tokenizer, answered, template=template)[0]


def last_prompt(ids, is_target):
    """The ids of a rendered conversation up to the start of the last assistant's text."""
    end = len(ids)
    while is_target[end - 1]:
        end -= 1
    return ids[:end]


def end_of_turn(tokenizer: Tokenizer, template: str):
    """The id of the token that ends an assistant's turn, as in render_conversation."""
    if template != "chat":
        return tokenizer.eos_id
    turns = [{"role": role, "content": "?"} for role in ("user", "assistant")]
    return _chat_contexts(tokenizer, turns, template)[1]


def _render_chat(tokenizer, messages):
    if tokenizer.chat is None:
        raise ValueError(
            "template='chat', but this tokenizer has no chat template; "
            'set it to "r1_zero" or to a text that contains {question}.'
        )
    return by_template(tokenizer, messages, add_generation_prompt=True)["input_ids"]


def by_template(tokenizer, messages, *, tokenize: bool = True, add_generation_prompt: bool = False):
    """transformers' apply_chat_template; raises ValueError where the template cannot be run."""
    try:
        return tokenizer.chat.apply_chat_template(
            messages, tokenize=tokenize, add_generation_prompt=add_generation_prompt
        )
    # Any exception: the template is a program, which jinja runs in a sandbox
    except Exception as error:
        line = getattr(error, "lineno", None)
        place = "" if line is None else f" in line {line}"
        raise ValueError(
            f"the tokenizer's chat template fails{place}: {type(error).__name__}: {error}; correct the field "
            "chat_template of its tokenizer_config.json, or its chat_template.jinja, or set template to "
            '"r1_zero" or to a text that contains {question}.'
        ) from error


def _lone_context(tokenizer, messages, template):
    """([what stands before a text], the end token)."""
    return [[] if tokenizer.bos_id is None else [tokenizer.bos_id]], tokenizer.eos_id


def _chat_contexts(tokenizer, messages, template):
    """(ids from the previous turn's end token to each assistant's text, the end token)."""
    if tokenizer.chat is None:
        # Raises the ValueError about the missing chat template
        render_prompt(tokenizer, messages[-2]["content"], template=template)
    hidden = [m | {"content": OWN_TEXT} if m["role"] == "assistant" else m for m in messages]
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    render = partial(by_template, tokenizer, tokenize=False)
    written = render(hidden).split(OWN_TEXT)
    # The same texts as generation prompts write them: what a policy reads before it samples
    asked = [render(hidden[:i], add_generation_prompt=True).split(OWN_TEXT)[-1] for i in ends]
    if len(written) != len(ends) + 1:
        raise ValueError(
            f"the chat template writes {len(written) - 1} of {len(ends)} assistant's turns; set "
            'template to "r1_zero" or to a text that contains {question}.'
        )
    for pair in zip(written, asked, strict=False):
        if not pair[0].startswith(pair[1]) and not pair[1].startswith(pair[0]):
            raise ValueError(
                "the chat template's generation prompt asks for an assistant's turn in other words than "
                "those that begin the finished turn: "
                f"{pair[1][-80:]!r} against {pair[0][-80:]!r}."
            )
    # Take the shorter: the longer has a <think> of the template's, as later revisions of R1's write it in the
    # prompt, and Qwen3's in the finished turn
    pairs = [min(pair, key=len) for pair in zip(written, asked, strict=False)]
    first, *later = map(tokenizer.encode, [*pairs, written[-1]])
    # Each text after an answer begins with the token that ends the turn; decode drops special tokens,
    # so an end that it leaves over is an ordinary token
    end_ids = {ids[0] if ids else None for ids in later}
    if len(end_ids) > 1 or None in end_ids or tokenizer.decode(end_ids):
        raise ValueError(
            f"the chat template ends an assistant's turn with {written[-1][:20]!r}, which begins with no "
            "special token that could end a completion."
        )
    return [first, *(ids[1:] for ids in later[:-1])], end_ids.pop()


def _text_contexts(tokenizer, messages, template):
    """The same as _chat_contexts, for a template that has a place for the question alone."""
    if messages[0]["role"] == "system":
        raise ValueError(
            f"template={template!r} has no place for a system message; set it to "
            '"chat", or leave the message out.'
        )
    questions = [message["content"] for message in messages if message["role"] == "user"]
    first, *later = (render_prompt(tokenizer, q, template=template) for q in questions)
    bos = 0 if tokenizer.bos_id is None else 1
    return [first, *(ids[bos:] for ids in later)], tokenizer.eos_id
