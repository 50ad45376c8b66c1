"""The answers of a policy: their texts, their tokens, and the conversations that they are."""

import functools
from typing import NamedTuple

from deepseek_jax.data.texts import LazyTexts
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.rollout.completions import Rollout

# The last tokens of a prompt, searched for <think>: enough for it and a line break at one byte a token
TAIL = 16


class Answers(NamedTuple):
    """texts: from completion_texts, n adjacent ones an example. rollout: their Rollout. prompts: the ids that
    each example was asked with. conversations: a tool_use.Conversation for each completion, or None
    where these are single turns.
    """

    texts: LazyTexts
    rollout: Rollout
    n: int
    prompts: list
    conversations: list | None = None

    def asked(self, examples):
        """The example of each completion, of these examples; that of a conversation has it, too."""
        asked = [example for example in examples for _ in range(self.n)]
        if self.conversations is None:
            return asked
        pairs = zip(asked, self.conversations, strict=True)
        return [example | {"conversation": conversation} for example, conversation in pairs]

    def scored_by(self, rewards, examples):
        """The rewards.Scores of the answers to these examples. Every process calls it. rewards: Rewards, or
        any with its score_together.
        """
        return rewards.score_together(self.asked(examples), self.texts, self.rollout.tokens())

    def groups(self):
        """The texts of each example, a list of LazyTexts of n."""
        return [self.texts[i : i + self.n] for i in range(0, len(self.texts), self.n)]

    def lengths(self):
        """The number of tokens of each completion: int[p n]."""
        return self.rollout.completion_mask.sum(1).reshape(-1, self.n)


def completion_texts(tokenizer: Tokenizer, prompts: list[list[int]], rollout: Rollout) -> LazyTexts:
    """The text of every completion of a Rollout, without special tokens: LazyTexts. prompts: lists of ids.
    The text of a conversation has what the model read, too.

    A text is decoded when it is first read: a process decodes no text that others score.

    Some chat templates end every prompt in <think>. The text of a completion then begins with it: without it,
    a completion that was truncated while it thought would pass for an answer, and none would have the
    requested format.
    """
    n = len(rollout.completion_ids) // len(prompts)

    @functools.cache
    def text(row):
        return opened_thought(tokenizer, prompts[row // n]) + tokenizer.decode(rollout.ids_of(row))

    return LazyTexts(text, range(len(rollout.completion_ids)))


def opened_thought(tokenizer, prompt_ids):
    """The <think> at the end of a prompt, with the white space after it; else ""."""
    _, tag, space = tokenizer.decode(prompt_ids[-TAIL:]).rpartition("<think>")
    # Text after the tag: this <think> is part of the prompt and does not open the completion
    return tag + space if tag and not space.strip() else ""
