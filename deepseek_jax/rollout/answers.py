"""A policy's answers to examples: their texts, their tokens and their conversations."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from deepseek_jax.data.texts import LazyTexts
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.rewards.scoring import Scores
from deepseek_jax.rollout.completions import Rollout
from deepseek_jax.rollout.tool_use import Conversation

# How many tokens at the end of a prompt are searched for <think>: enough for the tag and a line
# break at one byte a token
TAIL = 16


class Scorer(Protocol):
    """An object that scores answers: rewards.Rewards, or the rewards of several scenarios."""

    def score_together(
        self,
        examples: Sequence[Mapping],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        owners: np.ndarray | None = None,
    ) -> Scores:
        """Score a batch as Rewards.score_together does."""


class Answers(NamedTuple):
    """A policy's answers to examples, n adjacent ones for each example.

    Attributes:
        texts: The text of each answer, from completion_texts.
        rollout: The Rollout with the tokens of these texts.
        n: Answers of each example.
        prompts: The ids of each example's prompt.
        conversations: The record of each answer; None for single turns.
    """

    texts: LazyTexts
    rollout: Rollout
    n: int
    prompts: list[list[int]]
    conversations: list[Conversation] | None = None

    def per_answer(self, examples: Sequence[dict]) -> list[dict]:
        """Return the example of each answer: n entries for each of the examples.

        If answers are conversations, each entry has its Conversation too, as "conversation".
        """
        answer_examples = [example for example in examples for _ in range(self.n)]
        if self.conversations is None:
            return answer_examples
        pairs = zip(answer_examples, self.conversations, strict=True)
        return [example | {"conversation": conversation} for example, conversation in pairs]

    def scored_by(self, rewards: Scorer, examples: Sequence[dict]) -> Scores:
        """Score the answers to these examples, and return their rewards.Scores.

        Every process calls it.

        Args:
            rewards: What scores them.
            examples: The examples that were answered.
        """
        asked, owned, ids = self.per_answer(examples), self.rollout.owned, self.rollout.tokens()
        # A user's own object need not know of owners, which only GRPO's rollouts have
        if owned is None:
            return rewards.score_together(asked, self.texts, ids)
        return rewards.score_together(asked, self.texts, ids, owned.owners)

    def groups(self) -> list[LazyTexts]:
        """Return the answers of each example, n texts each."""
        return [self.texts[i : i + self.n] for i in range(0, len(self.texts), self.n)]

    def lengths(self) -> np.ndarray:
        """Return the number of tokens that the model sampled for each answer: int[p n]."""
        return self.rollout.lengths.reshape(-1, self.n)


def completion_texts(tokenizer: Tokenizer, prompts: list[list[int]], rollout: Rollout) -> LazyTexts:
    """Return the text of every completion, without special tokens, as LazyTexts.

    The text of a conversation includes what the model read between its turns. A text is decoded
    when it is first read, so a process does not decode texts that other processes score.

    Some chat templates end every prompt in <think>. The text of a completion then begins with this
    tag. Without it, a completion that was truncated during its thought would pass for an answer,
    and no completion would have the required format.

    Args:
        prompts: Lists of ids.
        rollout: The completions, n adjacent rows for each prompt.
    """
    n = len(rollout.completion_ids) // len(prompts)

    @functools.cache
    def text(row: int) -> str:
        return opened_thought(tokenizer, prompts[row // n]) + tokenizer.decode(rollout.ids_of(row))

    return LazyTexts(text, range(len(rollout.completion_ids)))


def opened_thought(tokenizer: Tokenizer, prompt_ids: list[int]) -> str:
    """Return the <think> at the end of a prompt with the white space after it, or ""."""
    _, tag, space = tokenizer.decode(prompt_ids[-TAIL:]).rpartition("<think>")
    # If text follows the tag, this <think> is part of the prompt and does not open the completion
    return tag + space if tag and not space.strip() else ""
