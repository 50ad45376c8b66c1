"""What a person sees of a chat: lines that are typed, answers as they are sampled, and commands."""

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
# Those of ASCII and of Latin 1 but line breaks and tabs -> how they are shown: a terminal obeys them
CONTROLS = {
    code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


class Chat:
    """What a person says to some policies. talks: [(name, Talk)]. seed: of the first answers, and one more
    for each question: one that is asked again is answered anew. failed: whether a line could not be asked.
    """

    def __init__(self, talks: list, seed: int):
        self.talks, self.seed, self.failed = talks, seed, False
        forms = {}
        for name, talk in talks:
            form = _form(talk).format(template=talk.policy.template)
            forms.setdefault(form, []).append(name)
        for form, names in forms.items():
            note(f"{' and '.join(names)}: asked by {form}; /help lists the commands")

    def take(self, line: str) -> bool:
        """Do what a line says, a command or a text to be answered: -> whether to go on."""
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
                    # Before the name is printed: the text may be refused
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
        # Once for policies of one tokenizer
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
    """Print a part of a line at once. Control characters that a model wrote are shown and not obeyed."""
    print(*(text.translate(CONTROLS) for text in texts), sep="", end="", flush=True)


def note(text: str):
    """Print what is no answer."""
    print(text, file=sys.stderr, flush=True)


def typed():
    """Yield the lines of the standard input, until Ctrl-D."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            # input then edits lines and remembers them
            import readline  # noqa: F401
    with contextlib.suppress(EOFError):
        while True:
            yield _line() if is_terminal else input()
    if is_terminal:
        # After the prompt that Ctrl-D answered
        show("\n")


def _line():
    """A line typed at the prompt; Ctrl-C drops what was typed and asks again."""
    while True:
        try:
            with raised():
                return input("> ")
        except KeyboardInterrupt:
            note(f"\n{DROPPED}")
