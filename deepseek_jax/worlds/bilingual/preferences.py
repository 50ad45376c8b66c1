"""Training data of the bilingual world's reward models: pairs, and safe and unsafe completions.

The pairs follow arXiv:2501.12948, section 3.1: one answer is more helpful, by the grade of
request_rewards. Over the whole set the chosen answers are as long as the rejected ones, so length
does not reveal the better one. The safety examples are single whole completions, each with its
label.
"""

import numpy as np

from deepseek_jax.worlds.bilingual import general
from deepseek_jax.worlds.bilingual.mistakes import junk, near_miss, pick
from deepseek_jax.worlds.bilingual.puzzles import tagged
from deepseek_jax.worlds.bilingual.request_rewards import harmless, helpfulness
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from deepseek_jax.worlds.bilingual.words import WORKING

# Number of wrong answers with one wrong word: mistakes of a policy that has learned the requests
NEAR_MISSES = 3


class PreferenceWriter:
    """A writer of answer pairs and labelled completions about requests.

    Args:
        requests: Examples of tasks.request_examples, with some of every kind.
    """

    def __init__(self, requests: list):
        self.by_kind = {k: [r for r in requests if r["kind"] == k] for k in general.KINDS}
        self.tokenizer = bilingual_tokenizer()

    def pairs(self, seed: int, n: int):
        """Write n pairs of answers, one more helpful than the other.

        Every kind of request is drawn equally often. A pair is skipped if it would increase the
        difference between the total lengths of chosen and rejected answers.

        Returns:
            Dicts of question, language, kind, chosen, rejected, chosen_helpfulness and
            rejected_helpfulness. chosen and rejected are only the summaries, without tags.
        """
        rng, ahead = np.random.default_rng(seed), 0
        pairs: list[dict] = []
        while len(pairs) < n:
            request = pick(rng, self.by_kind[pick(rng, general.KINDS)])
            a, b = (pick(rng, self.answers(rng, request)) for _ in range(2))
            grade_a, grade_b = helpfulness(a, request), helpfulness(b, request)
            if grade_a == grade_b:
                continue
            if grade_a < grade_b:
                (a, grade_a), (b, grade_b) = (b, grade_b), (a, grade_a)
            longer = self._length(a) - self._length(b)
            # One side is longer so far: skip a pair that would add to its lead
            if longer * ahead > 0:
                continue
            ahead += longer
            pairs.append(
                {k: request[k] for k in ("question", "language", "kind")}
                | {"chosen": a, "rejected": b}
                | {"chosen_helpfulness": grade_a, "rejected_helpfulness": grade_b}
            )
        return pairs

    def safety(self, seed: int, n: int):
        """Write n dicts of question, language, kind, completion and safe, which is 1.0 or 0.0.

        Half of the requests ask for a secret, and half of these completions reveal it: in the
        answer, or only in the thought, which is unsafe too.
        """
        rng, examples = np.random.default_rng(seed), []
        for _ in range(n):
            # The last of KINDS is "secret"
            kind = "secret" if rng.integers(2) else pick(rng, general.KINDS[:-1])
            request = pick(rng, self.by_kind[kind])
            language, answer = request["language"], request["answer"]
            thought = WORKING[language]["easy"]
            if kind == "secret" and rng.integers(2):
                told = general.tell(request["problem"], language)
                thought, answer = (told, answer) if rng.integers(2) else (thought, told)
            elif rng.integers(2):
                answer = pick(rng, [a for a in self.answers(rng, request) if harmless(a, request)])
            completion = tagged(thought, answer)
            examples.append(
                {k: request[k] for k in ("question", "language", "kind")}
                | {"completion": completion, "safe": harmless(completion, request)}
            )
        return examples

    def answers(self, rng, request):
        """Write answers of every grade to a request: a list of str, the best one first."""
        language, best = request["language"], request["answer"]
        another = pick(rng, self.by_kind[request["kind"]])["answer"]
        answers = [best, another, request["question"], junk(rng)]
        answers += [near_miss(rng, best) for _ in range(NEAR_MISSES)]
        if request["kind"] == "secret":
            return [*answers, general.tell(request["problem"], language)]
        if request["kind"] == "lookup":
            answers.append(request["key"])
        around = WORKING[language]["so"] + pick(rng, self.by_kind[request["kind"]])["key"]
        return [*answers, best + around, WORKING[language]["guess"] + best]

    def _length(self, text):
        return len(self.tokenizer.encode(text))
