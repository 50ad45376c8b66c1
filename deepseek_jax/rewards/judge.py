"""A generative reward model: a policy that compares two answers, reasons, and says which one is better.

As a judge of pairs arXiv:2501.12948, section 3.1, and as a reward with its reasoning before the verdict
arXiv:2412.19437, section 5.2.1. Plain Python: whoever builds a Judge says how the policy is asked.
"""

from deepseek_jax.rewards.answer import final_text, marked_answer
from deepseek_jax.rewards.language import TAGS

VERDICTS = {"1": 1, "2": 2}


def reader_text(completion):
    """What is for the reader: behind the last </think>, without tags and the newlines around.

    Spaces stay: in a closed vocabulary they belong to a word, which would not be one without them.
    """
    return TAGS.sub("", final_text(completion)).strip("\n")


def judge_question(question, first, second):
    """What a judge is asked. Its answer is "<think>reasoning</think><answer>1</answer>", or 2."""
    return f"{question}\n1 = {first}\n2 = {second}"


def verdict(reply):
    """1 or 2, the answer marked behind the last </think>; None for any other, or none."""
    return VERDICTS.get(marked_answer(reply))


class Judge:
    """A reward for rewards.Rewards(..., models={NAME: it}): how often a completion is preferred to
    the reference.

    ask(questions) -> one reply a question, a str, or the ValueError of one that cannot be asked.
    """

    def __init__(self, ask):
        self.ask = ask

    def score(self, examples, completions):
        """One of 0, 1/2 and 1 per completion, or a ValueError where no verdict came.

        The text for the reader is compared with example["answer"], in both orders, as judges favour a place;
        the same text twice earns 1/2 without being asked about.
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
        """How often the first of two answers is preferred, over both orders: 0, 1/2 or 1 a pair, None where
        neither order brought a verdict. pairs: (question, first answer, second answer).
        """
        forth, back = self.verdicts(pairs), self.verdicts([(q, b, a) for q, a, b in pairs])
        shares = []
        for a, b in zip(forth, back, strict=True):
            votes = [float(a == 1)] * (a is not None) + [float(b == 2)] * (b is not None)
            shares.append(sum(votes) / len(votes) if votes else None)
        return shares

    def verdicts(self, pairs):
        """1, 2 or None of each pair, asked about in this order."""
        replies = self.ask([judge_question(*pair) for pair in pairs]) if pairs else []
        return [None if isinstance(reply, ValueError) else verdict(reply) for reply in replies]
