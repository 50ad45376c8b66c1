"""The check of a line that tells a policy how to answer, such as its reasoning effort."""

from deepseek_jax.data.chat import by_template, with_system_line
from deepseek_jax.data.tokenizer import Tokenizer


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
    messages = with_system_line([{"role": "user", "content": "?"}], line)
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
