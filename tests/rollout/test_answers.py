"""The text of each completion, with the thought that its own prompt opens."""

import numpy as np
import pytest

from deepseek_jax.data.texts import LazyTexts
from deepseek_jax.rollout.answers import Answers, completion_texts
from deepseek_jax.rollout.completions import Rollout
from tests.rollout.conversing import letters

LETTERS = letters(64)


def ids(text):
    return LETTERS.encode(text)


@pytest.mark.parametrize(
    "prompt, opened",
    [("1\n", ""), ("1<think>\n", "<think>\n"), ("1<think>", "<think>"), ("<think>1\n", "")],
)
def test_a_completion_begins_with_the_thought_that_its_own_prompt_opens(prompt, opened):
    """Oracle: by hand, of two prompts with two completions each."""
    tokens = np.array([ids(text) for text in ("ab", "bc", "cd", "de")])
    rollout = Rollout(tokens, np.ones_like(tokens, bool), np.zeros(tokens.shape), np.zeros(4, bool))
    texts = completion_texts(LETTERS, [ids("2\n"), ids(prompt)], rollout)
    assert list(texts) == ["ab", "bc", f"{opened}cd", f"{opened}de"]


def test_each_answer_knows_its_example():
    """Oracle: by hand: three examples with two answers each; a conversation's example has its record, too."""
    tokens = np.arange(6)[:, None]
    rollout = Rollout(tokens, tokens >= 0, tokens * 1.0, tokens[:, 0] > 9)
    texts = LazyTexts(str, range(6))
    answers = Answers(texts, rollout, 2, [[7], [8], [9]])
    examples = [{"id": 1}, {"id": 2}, {"id": 3}]
    doubled = [example for example in examples for _ in range(2)]
    assert answers.per_answer(examples) == doubled
    conversing = answers._replace(conversations=list("abcdef"))
    wanted = [e | {"conversation": c} for e, c in zip(doubled, "abcdef", strict=True)]
    assert conversing.per_answer(examples) == wanted
