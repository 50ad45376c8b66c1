"""Filter of completions for training by one rule after another, with counts of their fates."""

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b

from deepseek_jax.data.questions import asked_key

# Reason -> rejects(text, example)
Rules = Mapping[str, Callable[[str, dict], bool]]
REPEATED, ENOUGH = "repeated", "more than enough"


class Sieve:
    """Filter that decides for each completion whether it passes, and counts the decisions.

    First come `rules`. Then a text that passed before for the same question is "repeated", and a
    text after max_per_prompt others is "more than enough". Then comes `last`.

    Args:
        rules: Checked in order.
        max_per_prompt: Most texts of a question that pass.
        last: Rules for the remaining texts, in the same form.

    Attributes:
        fates: Counter of all decisions so far: "kept", or the reason.
    """

    def __init__(self, rules: Rules, *, max_per_prompt: int, last: Rules | None = None):
        self.rules, self.max_per_prompt, self.last = rules, max_per_prompt, last or {}
        self.fates: Counter[str] = Counter()
        # asked_key of a question -> digests of the texts that passed
        self._kept: dict[tuple, set[bytes]] = {}

    def keeps(self, text: str, example: dict) -> bool:
        """Return whether the text passes, and count the decision.

        Args:
            text: The completion.
            example: An example as in data.questions, with the fields that the rules read.
        """
        why = self._why_not(text, example)
        self.fates[why or "kept"] += 1
        return why is None

    def _why_not(self, text, example):
        digest = blake2b(text.encode(), digest_size=16).digest()
        of_question = self._kept.setdefault(asked_key(example), set())
        why = _first(self.rules, text, example)
        if why is None and digest in of_question:
            why = REPEATED
        if why is None and len(of_question) >= self.max_per_prompt:
            why = ENOUGH
        # NearDuplicates adds every new text to its index, so it must see only texts that pass all other rules
        why = why or _first(self.last, text, example)
        if why is None:
            of_question.add(digest)
        return why


def _first(rules, text, example):
    return next((why for why, rejects in rules.items() if rejects(text, example)), None)
