"""The screen of a chat: typed lines, answers as they are sampled, and commands."""

import contextlib
import sys

from deepseek_jax.errors import suggest
from launch.signals import heard, raised

QUIT = "/quit"
COMMANDS = {
    "/reset": "begin a new conversation",
    "/help": "list these",
    QUIT: "end the program, as Ctrl-D does; Ctrl-C stops an answer or drops a line",
}
DROPPED = "(Ctrl-D or /quit ends)"
SEVERAL = "the chat template of its tokenizer, which holds several turns"
ONE = "the template {template!r}, which holds one question: each line is asked by itself"
PLAYED = (
    "the template {template!r}, each line in a new environment; it may be a row of data, as JSON"
)
# {control character of ASCII or Latin 1, except line breaks and tabs: its visible text}. A terminal
# would obey the character
CONTROLS = {
    code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


class Chat:
    """A person's conversation with one or several policies.

    Attributes:
        talks: [(name, Talk)].
        seed: The seed of the next answers. It grows by one with each question, so that the answer
            to a repeated question is a new one.
        failed: True once a line was refused.
    """

    def __init__(self, talks: list, seed: int):
        self.talks, self.seed, self.failed = talks, seed, False
        forms: dict[str, list[str]] = {}
        for name, talk in talks:
            form = _form(talk).format(template=talk.policy.template)
            forms.setdefault(form, []).append(name)
        for form, names in forms.items():
            note(f"{' and '.join(names)}: asked by {form}; /help lists the commands")

    def take(self, line: str) -> bool:
        """Do what a line says: a command, or a text to answer.

        Returns:
            Whether the chat goes on.
        """
        word = line.strip()
        if line.startswith("/") and word not in COMMANDS:
            self._fail(f"{word} is not a command; {suggest(word, COMMANDS)}")
        elif word == "/reset":
            for _, talk in self.talks:
                talk.reset()
            note("a new conversation")
        elif word == "/help":
            note("\n".join(f"{name:<8}{meaning}" for name, meaning in COMMANDS.items()))
        elif word and word != QUIT:
            self._ask(word)
        return word != QUIT

    def _ask(self, text):
        """Print the answers to a text, one below the other."""
        refused = []
        for name, talk in self.talks:
            with heard() as stopped, contextlib.closing(talk.answer(text, self.seed)) as pieces:
                try:
                    # Before the name is printed, because the text may be refused
                    first = next(pieces)
                except ValueError as error:
                    refused.append(str(error))
                    continue
                show(f"{name}: " if len(self.talks) > 1 else "", first)
                for piece in pieces:
                    show(piece)
                    if stopped():
                        break
            show(" [stopped]\n" if stopped() else "\n")
            if stopped():
                break
        self.seed += 1
        # Policies with the same tokenizer refuse a text with the same message, which is printed
        # once
        for message in dict.fromkeys(refused):
            self._fail(message)

    def _fail(self, message):
        self.failed = True
        note(f"error: {message}")


def _form(talk):
    tools = talk.policy.tools
    if tools is not None and tools.environments.has_state:
        return PLAYED
    return SEVERAL if talk.holds_turns else ONE


def show(*texts: str):
    """Print a part of a line at once, with control characters as visible text.

    A model may write control characters, and a terminal would obey them.
    """
    print(*(text.translate(CONTROLS) for text in texts), sep="", end="", flush=True)


def note(text: str):
    """Print text that is not an answer, on standard error."""
    print(text, file=sys.stderr, flush=True)


def typed():
    """Yield the lines of standard input, until Ctrl-D."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            # With readline, `input` edits lines and remembers them
            import readline  # noqa: F401
    with contextlib.suppress(EOFError):
        while True:
            yield _line() if is_terminal else input()
    if is_terminal:
        # End the line of the prompt at which Ctrl-D came
        show("\n")


def _line():
    """Return a line that was typed at the prompt; Ctrl-C drops the text and prompts again."""
    while True:
        try:
            with raised():
                return input("> ")
        except KeyboardInterrupt:
            note(f"\n{DROPPED}")
