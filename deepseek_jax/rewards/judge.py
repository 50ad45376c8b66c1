"""A generative reward model: a policy that compares two answers, reasons, and says which one is better.

It judges pairs as in arXiv:2501.12948, section 3.1, and reasons before its verdict as in
arXiv:2412.19437, section 5.2.1. Plain Python: the caller's function samples the policy's replies.
"""

from collections.abc import Callable, Mapping, Sequence

from deepseek_jax.rewards.answer import marked_answer
from deepseek_jax.rewards.marks import TAGS, final_text

VERDICTS = {"1": 1, "2": 2}


def reader_text(completion: str):
    """The text for the reader: after the last </think>, without tags and surrounding newlines.

    Spaces stay: in a closed vocabulary a space is part of a word's token.
    """
    return TAGS.sub("", final_text(completion)).strip("\n")


def judge_question(question: str, first: str, second: str):
    """The judge's prompt. The answer to it is "<think>reasoning</think><answer>1</answer>", or 2."""
    return f"{question}\n1 = {first}\n2 = {second}"


def verdict(reply: str | ValueError):
    """1 or 2, the answer marked after the last </think>; None for any other answer, or no answer."""
    return None if isinstance(reply, ValueError) else VERDICTS.get(marked_answer(reply))


class Judge:
    """A reward for rewards.Rewards(..., models={NAME: it}): how often a completion is preferred to
    the reference, example["answer"].

    ask(questions) -> a list with the reply to each question, a str, or a ValueError if it cannot be asked.
    """

    def __init__(self, ask: Callable):
        self.ask = ask

    def score(self, examples: Sequence[Mapping], completions: Sequence[str]):
        """For each completion 0, 1/2 or 1, or a ValueError where no verdict came.

        The text for the reader is compared with example["answer"] in both orders, because judges favour one
        position. A text equal to the reference earns 1/2, and the judge is not asked.
        """
        texts = [reader_text(completion) for completion in completions]
        pairs = list(zip(examples, texts, strict=True))
        asked = [pair for pair in pairs if pair[1] != pair[0]["answer"]]
        shares = iter(self.preferences([(e["question"], t, e["answer"]) for e, t in asked]))
        results = []
        for example, text in pairs:
            share = 0.5 if text == example["answer"] else next(shares)
            results.append(ValueError(f"no verdict on {text!r:.80}") if share is None else share)
        return results

    def preferences(self, pairs):
        """How often the first of two answers is preferred, over both orders: 0, 1/2 or 1 per pair.

        None where neither order gave a verdict. pairs: (question, first answer, second answer).
        """
        forth, back = self.verdicts(pairs), self.verdicts([(q, b, a) for q, a, b in pairs])
        shares = []
        for a, b in zip(forth, back, strict=True):
            # An order without a verdict has no vote, rather than a vote against
            votes = [float(a == 1)] * (a is not None) + [float(b == 2)] * (b is not None)
            shares.append(sum(votes) / len(votes) if votes else None)
        return shares

    def verdicts(self, pairs):
        """1, 2 or None for each pair, asked in this order of its answers."""
        return [verdict(reply) for reply in self.replies(pairs)]

    def replies(self, pairs):
        """What the judge says of each pair, asked in this order of its answers: see ask."""
        return self.ask([judge_question(*pair) for pair in pairs]) if pairs else []
