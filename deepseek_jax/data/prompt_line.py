"""A line that tells a policy how to answer, such as its reasoning effort, in any kind of prompt."""

from deepseek_jax.data.chat import (
    R1_ZERO_TEMPLATE,
    asked_messages,
    by_template,
    render_question,
)
from deepseek_jax.data.tokenizer import Tokenizer


def render_with_line(tokenizer: Tokenizer, example, line: str, *, template: str, opening: str = ""):
    """data.chat.render_question with a line, "" for none: ids of the prompt.

    With template "chat" it is the first line of the system message. Other templates have no system message:
    there it stands right before each question, so it has to end as a line does in that text.
    """
    if not line:
        return render_question(tokenizer, example, template=template, opening=opening)
    if template == "chat":
        asked = _with_system_line(asked_messages(example), line.strip())
        return render_question(tokenizer, {"messages": asked}, template=template, opening=opening)
    text = R1_ZERO_TEMPLATE if template == "r1_zero" else template
    text = text.replace("{question}", line + "{question}")
    return render_question(tokenizer, example, template=text, opening=opening)


def check_line(tokenizer: Tokenizer, line: str, template: str):
    """Raise ValueError where no prompt in this template can hold the line: the chat template refuses a system
    message or leaves it out, or the line has words that are not in a closed vocabulary.
    """
    if template != "chat":
        try:
            tokenizer.encode(line)
        except ValueError as error:
            raise ValueError(
                f"line={line!r} has words that this tokenizer does not know; set it to others, or to the "
                f"number alone ({error})"
            ) from error
        return
    messages = _with_system_line([{"role": "user", "content": "?"}], line.strip())
    why = "leaves a system message out"
    try:
        if line.strip() in by_template(tokenizer, messages, tokenize=False):
            return
    except ValueError as error:
        why = f"refuses a system message ({error})"
    raise ValueError(
        f"line={line!r} has no room in template='chat': the checkpoint's chat template {why}; set the "
        'template to "r1_zero" or to a text that contains {question}, where it stands before the question'
    )


def _with_system_line(messages, line):
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": line}, *messages]
    first, *others = messages
    return [first | {"content": f"{line}\n{first['content']}"}, *others]
