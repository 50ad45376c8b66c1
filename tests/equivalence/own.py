"""A reward for the texts of a random model, and an environment that says nothing."""


def odd(completion, example):
    """The share of the characters with an odd number."""
    return sum(ord(character) % 2 for character in completion) / max(len(completion), 1)


class Silent:
    def reset(self, **row):
        return None

    def step(self, text: str) -> str | None:
        return None
