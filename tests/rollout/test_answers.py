"""The text of each completion, with the thought that its own prompt opens."""

import numpy as np
import pytest

from deepseek_jax.rollout.answers import completion_texts
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
