"""Talk: a person's conversation with a policy, in prompts of the form that it was trained on."""

from collections.abc import Iterator

from deepseek_jax.data.chat import render_question
from deepseek_jax.rollout.answers import opened_thought
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.stream import stream, text_pieces


def sampled_tokens(
    policy: Policy, prompt: list[int], sampling: Sampling, max_tokens: int, seed: int
) -> Iterator[int]:
    """Return the tokens of an answer to a prompt, as `stream` yields them.

    Args:
        prompt: Token ids.
        sampling: How tokens are drawn.
        max_tokens: The most tokens of the answer.
    """
    return stream(
        policy.config,
        policy.params,
        prompt,
        sampling,
        max_completion_length=max_tokens,
        eos_ids=policy.eos_ids,
        seed=seed,
    )


class Talk:
    """A person's conversation with a policy.

    If the template has a place for only one question, each question is asked without the turns
    before it.

    Args:
        sampling: How tokens are drawn.
        max_tokens: The most tokens of an answer.

    Attributes:
        messages: The turns so far, in OpenAI's form.
    """

    def __init__(self, policy: Policy, sampling: Sampling, max_tokens: int):
        self.policy, self.sampling, self.max_tokens = policy, sampling, max_tokens
        self.messages: list[dict] = []

    @property
    def holds_turns(self) -> bool:
        """True if a prompt has the turns before the last one."""
        return self.policy.template == "chat"

    def reset(self):
        """Forget all turns."""
        self.messages = []

    def answer(self, text: str, seed: int = 0) -> Iterator[str]:
        """Yield the answer to a user's text, one piece for each token; a piece may be "".

        If the caller stops reading early, the part that it read stays in the conversation.

        Raises:
            ValueError: Before the first piece, and the text is forgotten: the tokenizer or the
                template cannot represent the text, or the model has no position left.
        """
        policy, messages = self.policy, [*self.messages, {"role": "user", "content": text}]
        prompt = render_question(policy.tokenizer, {"messages": messages}, template=policy.template)
        check_positions(policy, prompt)
        tokens = sampled_tokens(policy, prompt, self.sampling, self.max_tokens, seed)
        reply = opened_thought(policy.tokenizer, prompt)
        try:
            yield reply
            for piece in text_pieces(policy.tokenizer, tokens):
                reply += piece
                yield piece
        finally:
            if self.holds_turns and reply:
                self.messages = [*messages, {"role": "assistant", "content": reply}]


def check_positions(policy: Policy, prompt: list[int]):
    """Raise ValueError if the model has no position left after a prompt."""
    limit = policy.config.max_position_embeddings
    if len(prompt) >= limit:
        raise ValueError(
            f"this prompt has {len(prompt)} tokens, and the model max_position_embeddings={limit}: "
            "begin a new conversation by /reset, or ask in fewer words"
        )
