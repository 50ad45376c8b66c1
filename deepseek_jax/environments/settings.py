"""Limits of conversations with tools or an environment: config.conversation."""

import dataclasses

from deepseek_jax.settings import Count, Natural, Positive


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
