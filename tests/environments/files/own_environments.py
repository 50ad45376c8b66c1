"""Environments as a user writes them, for the tests: right ones, and each mistake."""

import math
import os
import random
import time


class Counter:
    """Counts from the column `first`."""

    def reset(self, first, **columns):
        self.count = first
        return f"The count is {first}."

    def add(self, number: int) -> int:
        """Add to the count.

        Args:
            number: What to add.
        """
        self.count += number
        return self.count

    def above(self, number: int) -> bool:
        """Whether the count is above a number.

        Args:
            number: The number.
        """
        return self.count > number

    def hang(self):
        """Wait for ever."""
        time.sleep(600)

    def leave(self):
        """End the process."""
        os._exit(3)

    def draw(self):
        """Draw a number."""
        return random.random()

    def get_reward(self):
        if self.count == 13:
            return math.nan
        if self.count == 14:
            return None
        if self.count == 15:
            return 1 / 0
        if self.count == 16:
            self.hang()
        return self.count / 10


class Guess:
    """A number is guessed: `step` alone. No reward of its own."""

    def reset(self, secret, **columns):
        self.secret = secret

    def step(self, text):
        if text == "odd":
            return 3
        if text == "hang":
            time.sleep(600)
        guess = int(text)
        if guess == self.secret:
            return None
        return "higher" if guess < self.secret else "lower"


class Takes:
    def __init__(self, size):
        pass

    def reset(self, **columns):
        pass


class NoReset:
    def step(self, text):
        return text


class Nothing:
    def reset(self, **columns):
        pass


class Fails(Guess):
    def reset(self, **columns):
        raise RuntimeError("no board")


class Hangs(Guess):
    def reset(self, **columns):
        time.sleep(600)


class ANumber(Guess):
    def reset(self, **columns):
        return 3


class TooLong(Guess):
    def reset(self, **columns):
        return "ö" * 100_000


class FewColumns(Guess):
    def reset(self, secret):
        self.secret = secret


class CannotBeMade(Guess):
    def __init__(self):
        raise OSError("no key")


class AsyncStep:
    def reset(self, **columns):
        pass

    async def step(self, text):
        pass


class StepWithoutText:
    def reset(self, **columns):
        pass

    def step(self):
        pass


def a_function():
    return Guess()
