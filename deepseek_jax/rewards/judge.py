"""A generative reward model: a policy that compares two answers and says which one is better.

It judges pairs as in arXiv:2501.12948, section 3.1, and reasons before its verdict as in
arXiv:2412.19437, section 5.2.1. This file is plain Python: the caller's function samples the
policy's replies.
"""

from collections.abc import Callable, Mapping, Sequence

from deepseek_jax.rewards.answer import marked_answer
from deepseek_jax.rewards.marks import TAGS, final_text

VERDICTS = {"1": 1, "2": 2}
# A question, the first answer and the second
Pair = tuple[str, str, str]


def reader_text(completion: str) -> str:
    """Return the text for the reader: after the last </think>, without tags and outer newlines.

    Spaces stay: in a closed vocabulary a space is part of a word's token.
    """
    return TAGS.sub("", final_text(completion)).strip("\n")


def judge_question(question: str, first: str, second: str) -> str:
    """Return the judge's prompt about two answers to a question.

    The judge answers it with "<think>reasoning</think><answer>1</answer>", or 2.
    """
    return f"{question}\n1 = {first}\n2 = {second}"


def verdict(reply: str | ValueError) -> int | None:
    """Return the answer, 1 or 2, that a reply marks after the last </think>, or None.

    None means another answer or no answer. A ValueError in place of a reply gives None, too.
    """
    answer = None if isinstance(reply, ValueError) else marked_answer(reply)
    return None if answer is None else VERDICTS.get(answer)


class Judge:
    """Reward by a judge: how often it prefers a completion to the reference, example["answer"].

    Pass it to rewards.Rewards(..., models={NAME: it}).

    Args:
        ask: ask(questions) -> a list with the reply to each question: a str, or a ValueError if the
            question cannot be asked.
    """

    def __init__(self, ask: Callable[[list[str]], Sequence[str | ValueError]]):
        self.ask = ask

    def score(
        self, examples: Sequence[Mapping], completions: Sequence[str]
    ) -> list[float | ValueError]:
        """Compare each completion's text for the reader with the reference, example["answer"].

        The judge compares them in both orders, because judges favour one position. It is not asked
        about a text that equals the reference: this text earns 1/2.

        Returns:
            For each completion 0, 1/2 or 1, or a ValueError if there was no verdict.
        """
        texts = [reader_text(completion) for completion in completions]
        pairs = list(zip(examples, texts, strict=True))
        asked_pairs = [pair for pair in pairs if pair[1] != pair[0]["answer"]]
        shares = iter(self.preferences([(e["question"], t, e["answer"]) for e, t in asked_pairs]))
        results: list[float | ValueError] = []
        for example, text in pairs:
            share = 0.5 if text == example["answer"] else next(shares)
            results.append(ValueError(f"no verdict on {text!r:.80}") if share is None else share)
        return results

    def preferences(self, pairs: Sequence[Pair]) -> list[float | None]:
        """Return how often the first of two answers is preferred, over both orders.

        Returns:
            0, 1/2 or 1 for each pair, or None if neither order gave a verdict.
        """
        forward, swapped = self.verdicts(pairs), self.verdicts([(q, b, a) for q, a, b in pairs])
        shares: list[float | None] = []
        for a, b in zip(forward, swapped, strict=True):
            # An order without a verdict has no vote, rather than a vote against
            votes = [float(a == 1)] * (a is not None) + [float(b == 2)] * (b is not None)
            shares.append(sum(votes) / len(votes) if votes else None)
        return shares

    def verdicts(self, pairs: Sequence[Pair]) -> list[int | None]:
        """Ask about each pair, its answers in this order, and return verdicts: 1, 2 or None."""
        return [verdict(reply) for reply in self.replies(pairs)]

    def replies(self, pairs: Sequence[Pair]) -> Sequence[str | ValueError]:
        """Ask about each pair, its answers in this order, and return the replies (see `ask`)."""
        return self.ask([judge_question(*pair) for pair in pairs]) if pairs else []
