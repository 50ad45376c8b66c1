"""Messages that say what was given, what is allowed, and which field of the config to change."""

import contextlib
import difflib
import re

# Characters of a line on the console: an answer that it quotes may have millions
MOST = 4000
# A message that begins with an argument's name
FIELD = re.compile(r"[A-Za-z_]\w*(?:[.\[][^\s=]*)?=")
# A whole path of a config, which is no file config.json
WHOLE = re.compile(r"config\.(?!json\b)")


class CannotPlan(ValueError):
    """A plan of a run that could run all the same: only its sizes cannot be told."""


class Fault(Exception):
    """What a run finds wrong with itself, and no check of its config could. status: the exit status of a
    program that it ends; a user's mistake has 2, and a run that was asked to stop 75.
    """

    status: int


class NotFinite(Fault, FloatingPointError):
    """Gradients of several updates in a row, parameters or log-probabilities are NaN or infinite."""

    status = 3


class SamplerApart(Fault, ValueError):
    """Samples do not come from the policy that learns from them: stale parameters, or another program."""

    status = 4


class BrokenTerm(Fault, ValueError):
    """An update does not do what the config says: a term of its loss, its gradient or its step is 0, its
    reference is another policy, or it learns other questions, tokens or advantages than were sampled, or from
    a conversation with another's replies, turns or reward.
    """

    status = 5


class UnusableRewards(Fault, RuntimeError):
    """No completion could be scored, or for many steps there is nothing to learn from their rewards."""

    status = 6


@contextlib.contextmanager
def at(path: str, argument: str | None = None):
    """Put the config's path before the message of a ValueError that the body raises.

    Rooms below the recipes name only their argument: "clip_eps=0 must be above 0". Within at("config.loss")
    that reads "config.loss.clip_eps=0 must be above 0". Any other message follows the path and a colon.
    Nested paths join; a message that has its whole path keeps it. argument: the argument that the field
    `path` sets, where their names differ: "file=x is missing" within at("config.sources", "file") reads
    "config.sources=x is missing".
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        if WHOLE.match(message) and not path.startswith("-"):
            raise
        has_path = getattr(error, "has_path", False) or FIELD.match(message)
        if argument is not None and message.startswith(f"{argument}="):
            message = path + message.removeprefix(argument)
        else:
            message = f"{path}{'.' if has_path else ': '}{message}"
        # Changed in place: launch distinguishes a user's mistake from ours by the traceback's last line
        error.args = (message,)
        error.has_path = True
        raise


@contextlib.contextmanager
def renamed(flag: str, argument: str):
    """In messages of a ValueError that the body raises, name a function's argument in place of a flag."""
    try:
        yield
    except ValueError as error:
        error.args = (str(error).replace(flag, argument),)
        raise


def shortened(text: str, most: int = MOST):
    """A text for a person: a long one without its middle."""
    if len(text) <= most:
        return text
    left = len(text) - most
    return f"{text[: most // 2]} ... ({left:,} characters left out) ... {text[-most // 2 :]}"


def suggest(name, allowed):
    """The end of a message about an unknown name: the nearest of the allowed ones, then all of them."""
    allowed = list(map(str, allowed))
    close = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(allowed) or 'none'}"
