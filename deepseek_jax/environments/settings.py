"""The fields of a config by which its answers are conversations with tools or an environment."""

import dataclasses

from deepseek_jax.settings import Count, Named, Natural, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationSettings:
    """turns: the model's turns of one conversation. turn_length: tokens of a turn; None: as many as
    rollout.max_completion_length leaves. call_seconds: of one call of a tool, a step, a reset or a reward.
    call_bytes: of the text of one call, in UTF-8. workers: processes; each holds the environments of its
    share of conversations. call_steps: token steps of decoding after which a call's text enters.
    """

    turns: Count = 8
    turn_length: Count | None = None
    call_seconds: Positive = 10.0
    call_bytes: Count = 2**16
    workers: Count = 2
    call_steps: Natural = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversing:
    """A run whose answers are conversations, where it is given tools or an environment.

    tools: functions that the model may call, FILE.py:NAME or package.module:NAME. environment: a class, named
    alike, one of whose objects each conversation has. conversation: their limits. See environments.
    """

    tools: tuple[Named, ...] = ()
    environment: Named | None = None
    conversation: ConversationSettings = ConversationSettings()

    @property
    def converses(self):
        """Whether answers are conversations."""
        return bool(self.tools) or self.environment is not None

    def most_turns(self):
        """The model's turns of a conversation; 0 where answers are single turns."""
        return self.conversation.turns if self.converses else 0

    def check_conversation(self, longest: int, field: str):
        """Raise ValueError, naming the field, for limits without conversations, and for a turn that may be
        longer than a whole conversation: `longest` tokens, of this field.
        """
        if not self.converses and self.conversation != ConversationSettings():
            raise ValueError(
                "conversation is given, but neither tools nor environment, so that each answer is one turn; "
                "give one of these, or leave conversation out"
            )
        length = self.conversation.turn_length
        if self.converses and length is not None and length > longest:
            raise ValueError(
                f"conversation.turn_length={length} is above {field}={longest}, the tokens of a whole "
                f"conversation; lower it, or raise {field}"
            )
