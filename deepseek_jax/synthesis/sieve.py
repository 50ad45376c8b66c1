"""Which of many completions are worth learning: filters one after the other, and what became of each."""

from collections import Counter
from hashlib import blake2b

from deepseek_jax.data.questions import asked_key

REPEATED, ENOUGH = "repeated", "more than enough"


class Sieve:
    """Completions in, the fate of each out.

    rules: why -> rejects(text, example), asked in order. Then a text that was kept for the same question is
    "repeated", and one beyond max_per_prompt kept ones "more than enough". last: more rules, for what these
    leave. fates: Counter of all so far, "kept" among its keys.
    """

    def __init__(self, rules, *, max_per_prompt, last=None):
        self.rules, self.max_per_prompt, self.last = rules, max_per_prompt, last or {}
        self.fates = Counter()
        self._kept = {}  # what was asked -> digests of the texts kept

    def keeps(self, text, example):
        """Whether the text is kept. example: of data.questions, with whatever the rules read."""
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
        why = why or _first(self.last, text, example)
        if why is None:
            of_question.add(digest)
        return why


def _first(rules, text, example):
    return next((why for why, rejects in rules.items() if rejects(text, example)), None)
