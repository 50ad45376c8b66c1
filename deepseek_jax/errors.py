"""Error messages that say what was given, what is allowed and which config field to change."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

# Most characters of a message on the console: an answer that it quotes may have millions
MOST = 4000
# Matches a message that begins with an argument's name
FIELD = re.compile(r"[A-Za-z_]\w*(?:[.\[][^\s=]*)?=")
# Matches a message that begins with a whole path of a config, but not with the file config.json
WHOLE = re.compile(r"config\.(?!json\b)")


class CannotPlan(ValueError):
    """The sizes of a run are not known, so it cannot be planned; it may run all the same."""


class Fault(Exception):
    """A failure that a run finds in itself, and that no check of its config could find.

    Attributes:
        status: Exit status of the program that it ends. A user's mistake has 2, and a run that was
            asked to stop has 75.
    """

    status: int


class NotFinite(Fault, FloatingPointError):
    """Gradients of several updates in a row, parameters or log-probabilities are not finite.

    They are NaN or infinite.
    """

    status = 3


class SamplerApart(Fault, ValueError):
    """Samples do not come from the policy that learns from them.

    The sampler has stale parameters, or it is another program.
    """

    status = 4


class BrokenTerm(Fault, ValueError):
    """An update does not do what the config says.

    A term of its loss, its gradient or its step is 0; its reference is another policy; it learns
    from other questions, tokens or advantages than were sampled; or it learns from a conversation
    with the replies, turns or reward of another one.
    """

    status = 5


class UnusableRewards(Fault, RuntimeError):
    """No completion could be scored, or for many steps the rewards gave nothing to learn from."""

    status = 6


@contextlib.contextmanager
def at(path: str, argument: str | None = None) -> Iterator[None]:
    """Put the config's path before the message of a ValueError that the body raises.

    Rooms below the recipes name only their argument: "clip_eps=0 must be above 0". Within
    at("config.loss") that reads "config.loss.clip_eps=0 must be above 0". Any other message follows
    the path and a colon. Nested paths join, and a message that has its whole path stays as it is.

    Args:
        path: The path of the block or field.
        argument: The argument that the field `path` sets, if their names differ: "file=x is
            missing" within at("config.sources", "file") reads "config.sources=x is missing".
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
        # Changed in place: launch tells a user's mistake from ours by the traceback's last line
        error.args = (message,)
        mark_path(error)
        raise


def mark_path(error: ValueError) -> None:
    """Mark a message that begins with a path, so that `at` joins an outer path to it with a dot."""
    vars(error)["has_path"] = True


@contextlib.contextmanager
def renamed(flag: str, argument: str) -> Iterator[None]:
    """Replace a flag by an argument's name in messages of ValueErrors that the body raises."""
    try:
        yield
    except ValueError as error:
        error.args = (str(error).replace(flag, argument),)
        raise


def shortened(text: str, most: int = MOST) -> str:
    """Shorten a long text by cutting out its middle, and say how many characters are missing."""
    if len(text) <= most:
        return text
    num_missing = len(text) - most
    return f"{text[: most // 2]} ... ({num_missing:,} characters left out) ... {text[-most // 2 :]}"


def suggest(name: object, allowed: Iterable) -> str:
    """Return the end of a message about an unknown name: the nearest allowed name, then all."""
    allowed_names = list(map(str, allowed))
    nearest = difflib.get_close_matches(str(name), allowed_names, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{hint}allowed: {', '.join(allowed_names) or 'none'}"
