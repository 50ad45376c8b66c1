"""Questions and conversations to token ids, by a checkpoint's chat template or a plain template."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

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
# A private-use character that replaces the assistant's text while a chat template renders the rest
OWN_TEXT = "\ue000"


class _Asks:
    """Templates that a settings field may hold: each has a place for the question."""

    def holds(self, template: str):
        return template in ("chat", "r1_zero") or "{question}" in template

    def __str__(self):
        return '"chat", "r1_zero" or a text with {question} in it'


# The type of a settings field
Template = Annotated[str, _Asks()]


def asked_messages(example: Mapping) -> list[dict]:
    """Return the messages of an example's prompt, the question last."""
    return example.get("messages") or [{"role": "user", "content": example["question"]}]


def with_reset_text(example: dict, text: str | None) -> dict:
    """Return the example with the text of an environment's reset at the end of its last message.

    Without such a text (None or "") the example comes back unchanged.
    """
    if not text:
        return example
    *earlier_messages, last_message = asked_messages(example)
    last_message = last_message | {"content": last_message["content"] + text}
    return example | {
        "question": last_message["content"],
        "messages": [*earlier_messages, last_message],
    }


def render_question(
    tokenizer: Tokenizer, example: Mapping, *, template: str, opening: str = ""
) -> list[int]:
    r"""Return the ids of an example's prompt, which ends with `opening`; the answer continues them.

    An example may have a `line`. With template "chat" it becomes the first line of the system
    message. Other templates have no system message: there it is put right before each question, so
    it has to end as a line does in that text.

    Args:
        tokenizer: The tokenizer of the model that answers.
        example: A dict with question, or with messages, and optionally line.
        template: See `render_prompt`.
        opening: Text that every answer begins with, such as "<think>\n" for a model that has to
            think. If the chat template has already written a part of it, that part is not repeated.

    Raises:
        ValueError: As `render_prompt` and `render_conversation` do.
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
        # render_conversation needs an answer; last_prompt removes this one again
        reply = {"role": "assistant", "content": messages[-1]["content"]}
        rendered = render_conversation(tokenizer, [*messages, reply], template=template)
        ids = last_prompt(*rendered)
    return with_opening(tokenizer, ids, opening)


def with_opening(tokenizer: Tokenizer, ids: list[int], opening: str) -> list[int]:
    """Return the ids, then the part of an answer's opening that they do not already end with."""
    opening_ids = tokenizer.encode(opening) if opening else []
    # R1's first template stops before <think>, and a later one writes it: look for the longest start of the
    # opening that the ids already end with
    for size in range(len(opening_ids), 0, -1):
        if ids[-size:] == opening_ids[:size]:
            return ids + opening_ids[size:]
    return ids + opening_ids


def with_system_line(messages: list[dict], line: str) -> list[dict]:
    """Return the messages with a line at the start of the system message.

    A system message is added if there is none.
    """
    line, (first_message, *other_messages) = line.strip(), messages
    if first_message["role"] != "system":
        return [{"role": "system", "content": line}, *messages]
    return [first_message | {"content": f"{line}\n{first_message['content']}"}, *other_messages]


def render_prompt(tokenizer: Tokenizer, question: str, *, template: str) -> list[int]:
    """Return the ids of the prompt that asks `question`; the answer comes next.

    Args:
        tokenizer: The tokenizer of the model that answers.
        question: The text of the user.
        template: One of three. "chat" is the checkpoint's chat template with its generation prompt.
            "r1_zero" is R1_ZERO_TEMPLATE. Any other text must contain {question}. The last two
            begin with bos if the tokenizer puts one before plain text.

    Raises:
        ValueError: The question is empty, template is "chat" and there is no chat template, or the
            template does not contain {question}.
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
    # str.format would fail on other braces, such as \boxed{} in a template
    return bos + tokenizer.encode(template.replace("{question}", question))


def render_conversation(
    tokenizer: Tokenizer, messages: list, *, template: str
) -> tuple[list[int], list[bool]]:
    """Return (ids, is_target) of a conversation, to train on the assistant's tokens.

    ids is a list of int that ends with the end token of the last turn. is_target is a list of bool,
    True on the assistant's texts and their end tokens. Each assistant's text is encoded separately,
    as a policy samples it after a prompt, so every turn keeps its <think>.

    With template "chat" the checkpoint's template writes everything except the assistant's texts
    and never sees these, because templates (R1's is one) drop the <think> of earlier turns. A
    <think> that the template itself writes at the start of a turn is removed, so that only the one
    in the text remains.

    Other templates have no place for a system message. They repeat the template for each question,
    after the end token of the answer before; bos stands only at the start.

    Args:
        tokenizer: The tokenizer of the model that learns.
        messages: See `data.conversation_forms.parse_conversation`. A single message, of the
            assistant, is a text without a prompt, in any template.
        template: See `render_prompt`.

    Raises:
        ValueError: As `render_prompt` does. Also for a system message that the template has no
            place for; for an end token within a text; and for a chat template that leaves out an
            assistant's turn, does not end it with a special token, or writes a generation prompt
            that differs from the beginning of a finished turn.
    """
    contexts_of = _chat_contexts if template == "chat" else _text_contexts
    if len(messages) == 1:
        contexts_of = _lone_context
    contexts, end_id = contexts_of(tokenizer, messages, template)
    texts = [message["content"] for message in messages if message["role"] == "assistant"]
    ids, is_target = [], []
    for context, text in zip(contexts, texts, strict=True):
        turn_ids = [*tokenizer.encode(text), end_id]
        if turn_ids.index(end_id) < len(turn_ids) - 1:
            raise ValueError(
                f"the assistant's text {text[:80]!r} has an end-of-turn token in it; remove it, one is "
                "added at the end."
            )
        ids += context + turn_ids
        is_target += [False] * len(context) + [True] * len(turn_ids)
    return ids, is_target


def render_response(
    tokenizer: Tokenizer, messages: list[dict], response: str, *, template: str
) -> list[int]:
    """Return the ids of a conversation that ends in this response and its end token.

    Raises:
        ValueError: As `render_conversation` does.
    """
    conversation = [*messages, {"role": "assistant", "content": response}]
    return render_conversation(tokenizer, conversation, template=template)[0]


def last_prompt(ids: list[int], is_target: Sequence[bool]) -> list[int]:
    """Return the ids of a rendered conversation up to the start of the last assistant's text.

    Args:
        ids: As `render_conversation` returns them.
        is_target: As `render_conversation` returns them.
    """
    end = len(ids)
    while is_target[end - 1]:
        end -= 1
    return ids[:end]


def end_of_turn(tokenizer: Tokenizer, template: str) -> int:
    """Return the id of the token with which `render_conversation` ends an assistant's turn."""
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


# Any: a text, or with `tokenize` what has the ids under "input_ids"
def by_template(
    tokenizer: Tokenizer,
    messages: list[dict],
    *,
    tokenize: bool = True,
    add_generation_prompt: bool = False,
) -> Any:
    """Call apply_chat_template of the tokenizer's chat template, as transformers defines it.

    Raises:
        ValueError: The template cannot be run; the message names its error and line.
    """
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
    """Return ([ids before the text], end token) for a text without a prompt."""
    return [[] if tokenizer.bos_id is None else [tokenizer.bos_id]], tokenizer.eos_id


def _chat_contexts(tokenizer, messages, template):
    """Return (contexts, end token) of a conversation in the chat template.

    contexts: for each assistant's text, the ids from the end token of the previous turn to this
    text.
    """
    if tokenizer.chat is None:
        # Raises the ValueError about the missing chat template
        render_prompt(tokenizer, messages[-2]["content"], template=template)
    masked_messages = [
        m | {"content": OWN_TEXT} if m["role"] == "assistant" else m for m in messages
    ]
    assistant_indices = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    render = partial(by_template, tokenizer, tokenize=False)
    template_texts = render(masked_messages).split(OWN_TEXT)
    # The same texts as the generation prompt writes them, which a policy reads before it samples
    generation_prompts = [
        render(masked_messages[:i], add_generation_prompt=True).split(OWN_TEXT)[-1]
        for i in assistant_indices
    ]
    if len(template_texts) != len(assistant_indices) + 1:
        raise ValueError(
            f"the chat template writes {len(template_texts) - 1} of {len(assistant_indices)} assistant's "
            'turns; set template to "r1_zero" or to a text that contains {question}.'
        )
    for pair in zip(template_texts, generation_prompts, strict=False):
        if not pair[0].startswith(pair[1]) and not pair[1].startswith(pair[0]):
            raise ValueError(
                "the chat template's generation prompt asks for an assistant's turn in other words than "
                "those that begin the finished turn: "
                f"{pair[1][-80:]!r} against {pair[0][-80:]!r}."
            )
    # Take the shorter one: the longer one has a <think> that the template writes. Later revisions of R1's
    # template write it in the prompt, and Qwen3's template in the finished turn
    shorter_texts = [
        min(pair, key=len) for pair in zip(template_texts, generation_prompts, strict=False)
    ]
    first_ids, *later_ids = map(tokenizer.encode, [*shorter_texts, template_texts[-1]])
    # Each text after an answer begins with the token that ends the turn. decode drops special tokens, so a
    # first token that it still shows is an ordinary one
    end_ids = {ids[0] if ids else None for ids in later_ids}
    if len(end_ids) > 1 or None in end_ids or tokenizer.decode(end_ids):
        raise ValueError(
            f"the chat template ends an assistant's turn with {template_texts[-1][:20]!r}, which begins with "
            "no special token that could end a completion."
        )
    return [first_ids, *(ids[1:] for ids in later_ids[:-1])], end_ids.pop()


def _text_contexts(tokenizer, messages, template):
    """Do the same as _chat_contexts for a template that only has a place for the question."""
    if messages[0]["role"] == "system":
        raise ValueError(
            f"template={template!r} has no place for a system message; set it to "
            '"chat", or leave the message out.'
        )
    questions = [message["content"] for message in messages if message["role"] == "user"]
    first_ids, *later_ids = (render_prompt(tokenizer, q, template=template) for q in questions)
    num_bos = 0 if tokenizer.bos_id is None else 1
    return [first_ids, *(ids[num_bos:] for ids in later_ids)], tokenizer.eos_id
