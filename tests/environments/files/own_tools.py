"""Tools as a user writes them, for the tests: right ones, and each mistake."""

import os
import random
import sys
import time


def multiply(a: float, b: float) -> float:
    """Multiply two numbers.

    Args:
        a: The first factor.
        b: The second factor.

    Returns:
        The product.
    """
    return a * b


def search(text: str, most: int = 3) -> list:
    """Find words.

    Args:
        text: The text to look in.
        most: How many words to give back.
    """
    return text.split()[:most]


def fail(text: str):
    """Raise an error.

    Args:
        text: What it says.
    """
    raise KeyError(text)


def leave():
    """End the process."""
    os._exit(3)


def quit_python():
    """Call sys.exit."""
    sys.exit("bye")


def interrupt():
    """Raise what is no Exception."""
    raise KeyboardInterrupt("stop")


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


def fail_oddly():
    """Raise an error without a text."""
    raise Unprintable


def sleep(seconds: float):
    """Wait.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "slept"


def draw_one():
    """Draw a number, and see how texts are hashed."""
    return f"{random.random()} {hash('a')}"


def repeat(text: str, times: int):
    """Repeat a text.

    Args:
        text: The text.
        times: How often.
    """
    return text * times


def where():
    """The process, and which large packages it has imported."""
    print("this goes nowhere")
    heavy = [name for name in ("jax", "torch", "transformers", "flax") if name in sys.modules]
    return f"{os.getpid()} {heavy}"


def half_pair():
    """A text that has no UTF-8."""
    return "a\ud800b"


def without_hints(a):
    """Has no hints.

    Args:
        a: A number.
    """


def without_docstring(a: int):
    return a


def without_meaning(a: int):
    """Does not say what a is."""


async def waits():
    """Is async."""


class SameName:
    def reset(self, **columns):
        pass

    def multiply(self, a: float) -> float:
        """Double a number.

        Args:
            a: The number.
        """
        return 2 * a


A_NUMBER = 3
