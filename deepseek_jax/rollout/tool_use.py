"""ToolUse, what a policy's conversations can call, and Conversation, the record of each one."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from deepseek_jax.data.chat import with_reset_text
from deepseek_jax.data.tools import Call, ToolForm
from deepseek_jax.environments.pool import Environments
from deepseek_jax.rollout.settings import ConversationLimits, Conversing


@dataclasses.dataclass
class Conversation:
    """The record of a conversation without its tokens, in types that JSON can hold.

    Attributes:
        number: The conversation's row in the rollout.
        sampled: How many tokens the model sampled in all turns.
        digest: The digest_of these tokens, as the engine returned them turn by turn.
        rewarded: The number of the conversation that began the environment which gave the reward;
            None for no reward.
        reset_text: The text that reset returned.
        messages: The messages after the prompt, in OpenAI's form.
        turns: The number of the model's turns.
        tool_calls: The number of calls of tools, or of steps of an environment.
        tool_errors: The number of calls that raised or could not be read.
        tool_seconds: The time that calls spent in the user's code.
        cut: In words, the limit that ended the conversation, or None.
        at_fault: True if the user's code exceeded this limit, and not the model.
        rewritten: The number of earlier turns that the template would have encoded otherwise.
        reward: The reward of get_reward, or None.
        unscored: In words, why get_reward gave no reward, or None.
    """

    number: int = 0
    sampled: int = 0
    digest: int = 0
    rewarded: int | None = None
    reset_text: str | None = None
    messages: list[dict] = dataclasses.field(default_factory=list)
    turns: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    tool_seconds: float = 0.0
    cut: str | None = None
    at_fault: bool = False
    rewritten: int = 0
    reward: float | None = None
    unscored: str | None = None

    def add_sampled(self, ids: Sequence[int]):
        """Add the tokens of a turn to the count and the digest."""
        self.sampled, self.digest = self.sampled + len(ids), digest_of(ids, self.digest)

    def counts(self) -> dict[str, float]:
        """Return {metric: number} for the log of a run."""
        return {
            "turns": self.turns,
            "tool_calls": self.tool_calls,
            "tool_errors": self.tool_errors,
            "tool_seconds": self.tool_seconds,
            "truncated_turns": int(self.cut is not None),
            "rewritten_turns": self.rewritten,
        }


def digest_of(ids: ArrayLike, before: int = 0) -> int:
    """Return a number that differs for other ids, and for the same ids in another order.

    Args:
        ids: Token ids.
        before: The digest of the ids before these.
    """
    return zlib.crc32(np.asarray(ids, np.int32).tobytes(), before)


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """Tools and environment of a policy's conversations, and their limits.

    Attributes:
        environments: The tools and the environment, in processes of their own.
        form: How the policy's template writes calls.
        limits: The limits of conversations.
        said: How often each event occurred that Conversations reports to a person.
    """

    environments: Environments
    form: ToolForm
    limits: ConversationLimits
    said: Counter[str] = dataclasses.field(default_factory=Counter, compare=False)

    def prompt(self, example: dict, opening: str = "", reset_text: str | None = None) -> list[int]:
        """Return the ids of an example's prompt, which ends with `opening`.

        Args:
            example: The example.
            opening: The text that every answer begins with.
            reset_text: The text that an environment's reset returned, or None.
        """
        example = with_reset_text(example, reset_text)
        return self.form.prompt(example, self.environments.schemas, opening)

    def read_ids(self, messages: list[dict]) -> list[int]:
        """Return the ids that a model read between its turns, computed from the messages only."""
        ids: list[int] = []
        calls: list[Call] = []
        said: list[dict] = []
        for message in messages:
            if message["role"] != "assistant":
                said.append(message)
                continue
            # The model did not read what follows its last turn
            ids += self._ids_of(calls, said)
            calls, said = [Call(**of["function"]) for of in message.get("tool_calls", ())], []
        return ids

    def _ids_of(self, calls, said):
        texts = [message["content"] for message in said]
        if said and said[0]["role"] == "user":
            return self.form.user(*texts)
        return self.form.results(calls, texts) if said else []


class EnvironmentReward:
    """The reward of get_reward, in the form in which rewards.Rewards takes a model's score."""

    reads_texts = False

    def score(
        self, examples: Sequence[Mapping], completions: Sequence[str]
    ) -> list[float | RuntimeError | None]:
        """Return the reward of each example's conversation.

        In place of a missing reward there is a RuntimeError that says why it is missing.
        """
        conversations = [example["conversation"] for example in examples]
        return [c.reward if c.unscored is None else RuntimeError(c.unscored) for c in conversations]


def environments_of(settings: Conversing) -> Environments:
    """Create the Environments that a run's settings name.

    Args:
        settings: The settings.

    Raises:
        ValueError: As Environments does.
    """
    limits = settings.conversation
    return Environments(
        settings.tools,
        settings.environment,
        call_seconds=limits.call_seconds,
        call_bytes=limits.call_bytes,
        workers=limits.workers,
    )
