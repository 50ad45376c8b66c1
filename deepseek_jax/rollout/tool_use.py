"""What the conversations of a policy can call, and the record that is kept of each."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from deepseek_jax.data.chat import with_reset_text
from deepseek_jax.data.tools import Call, ToolForm
from deepseek_jax.environments import Environments
from deepseek_jax.rollout.settings import ConversationLimits


@dataclasses.dataclass
class Conversation:
    """What is known of a conversation beside its tokens, as JSON holds it.

    number: its row in the rollout. sampled, digest: how many tokens the model sampled in all turns, and the
    digest_of these, as the engine gave them turn by turn. rewarded: the number of the conversation whose
    environment gave the reward, None for no reward.
    reset_text: what reset gave. messages: those after the prompt, in OpenAI's form. turns: of the model.
    tool_calls: calls of tools, or steps of an environment; tool_errors: those that raised or could not be
    read; tool_seconds: those spent in the user's code. cut: which limit ended it, or None; at_fault: whether
    the user's code went over it, and not the model. rewritten: the earlier turns that the template would have
    encoded otherwise. reward: that of get_reward, or None; unscored: why there is none.
    """

    number: int = 0
    sampled: int = 0
    digest: int = 0
    rewarded: int | None = None
    reset_text: str | None = None
    messages: list = dataclasses.field(default_factory=list)
    turns: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    tool_seconds: float = 0.0
    cut: str | None = None
    at_fault: bool = False
    rewritten: int = 0
    reward: float | None = None
    unscored: str | None = None

    def add_sampled(self, ids):
        """Take note of the tokens of a turn."""
        self.sampled, self.digest = self.sampled + len(ids), digest_of(ids, self.digest)

    def counts(self):
        """{metric: number} of what is logged of a conversation."""
        return {
            "turns": self.turns,
            "tool_calls": self.tool_calls,
            "tool_errors": self.tool_errors,
            "tool_seconds": self.tool_seconds,
            "truncated_turns": int(self.cut is not None),
            "rewritten_turns": self.rewritten,
        }


def digest_of(ids, before: int = 0):
    """A number that other ids, or the same in another order, have not. before: of the ids before these."""
    return zlib.crc32(np.asarray(ids, np.int32).tobytes(), before)


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """What the conversations of a policy can call: tools and an environment in their processes, the form in
    which its template writes calls, and the limits. said: how often there was something to say.
    """

    environments: Environments
    form: ToolForm
    limits: ConversationLimits
    said: Counter = dataclasses.field(default_factory=Counter, compare=False)

    def prompt(self, example: Mapping, opening: str = "", reset_text: str | None = None):
        """The ids of an example's prompt, which ends with `opening`."""
        example = with_reset_text(example, reset_text)
        return self.form.prompt(example, self.environments.schemas, opening)

    def read_ids(self, messages: list) -> list[int]:
        """The ids that a model has read between its turns, from the messages of its conversation alone."""
        ids, calls, said = [], [], []
        for message in messages:
            if message["role"] != "assistant":
                said.append(message)
                continue
            # What follows the last turn was not read
            ids += self._ids_of(calls, said)
            calls, said = [Call(**of["function"]) for of in message.get("tool_calls", ())], []
        return ids

    def _ids_of(self, calls, said):
        texts = [message["content"] for message in said]
        if said and said[0]["role"] == "user":
            return self.form.user(*texts)
        return self.form.results(calls, texts) if said else []


class EnvironmentReward:
    """What get_reward gave, as a reward beside the rules: what rewards.Rewards takes as a model."""

    def score(self, examples, completions):
        """The reward of each example's conversation, or why there is none."""
        conversations = [example["conversation"] for example in examples]
        return [c.reward if c.unscored is None else RuntimeError(c.unscored) for c in conversations]


def environments_of(settings) -> Environments:
    """The Environments that settings with tools, environment and conversation name. Raises ValueError as
    these do.
    """
    limits = settings.conversation
    return Environments(
        settings.tools,
        settings.environment,
        call_seconds=limits.call_seconds,
        call_bytes=limits.call_bytes,
        workers=limits.workers,
    )
