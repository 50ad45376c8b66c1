"""A question to the ids of a prompt, by a checkpoint's chat template or by a plain template."""

from typing import Annotated

from deepseek_jax.data.tokenizer import Tokenizer

# arXiv:2501.12948, Table 1; {question} stands where the paper has the word "prompt".
R1_ZERO_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. The reasoning process and answer are enclosed within "
    "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process "
    "here </think> <answer> answer here </answer>. User: {question}. Assistant:"
)


class _Asks:
    """The templates that a settings field may hold: each has a place for the question."""

    def holds(self, template: str):
        return template in ("chat", "r1_zero") or "{question}" in template

    def __str__(self):
        return '"chat", "r1_zero" or a text with {question} in it'


Template = Annotated[str, _Asks()]  # a field of settings


def render_prompt(tokenizer: Tokenizer, question: str, *, template: str):
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
        return _render_chat(tokenizer, question)
    template = R1_ZERO_TEMPLATE if template == "r1_zero" else template
    if "{question}" not in template:
        raise ValueError(
            f"template={template!r} has no place for the question; "
            'set it to "chat", to "r1_zero" or to a text that contains {question}.'
        )
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + tokenizer.encode(template.replace("{question}", question))


def _render_chat(tokenizer, question):
    if tokenizer.chat is None:
        raise ValueError(
            "template='chat', but this tokenizer has no chat template; "
            'set it to "r1_zero" or to a text that contains {question}.'
        )
    messages = [{"role": "user", "content": question}]
    return tokenizer.chat.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
