"""Filters completions for training by one rule after another, and counts their fates."""

from collections import Counter
from hashlib import blake2b

from deepseek_jax.data.questions import asked_key

REPEATED, ENOUGH = "repeated", "more than enough"


class Sieve:
    """Decides for each completion whether it passes.

    rules: reason -> rejects(text, example), checked in order. Then a text that passed before for the same
    question is "repeated", and one after max_per_prompt others "more than enough". last: rules for the
    remaining texts. fates: Counter of all so far, "kept" among its keys.
    """

    def __init__(self, rules, *, max_per_prompt: int, last=None):
        self.rules, self.max_per_prompt, self.last = rules, max_per_prompt, last or {}
        self.fates = Counter()
        self._kept = {}  # asked_key of a question -> digests of the texts that passed

    def keeps(self, text: str, example: dict):
        """Whether the text passes. example: from data.questions, with the fields that the rules read."""
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
