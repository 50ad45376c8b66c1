"""A conversation with a policy, in the prompts that it was trained on."""

from collections.abc import Iterator

from deepseek_jax.data.chat import render_question
from deepseek_jax.rollout.answers import opened_thought
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.stream import stream, text_pieces


def sampled_tokens(policy: Policy, prompt, sampling: Sampling, max_tokens: int, seed: int):
    """The tokens of an answer to a prompt, as stream yields them."""
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
    """The turns so far. Where the template has a place for one question alone, each is asked by itself."""

    def __init__(self, policy: Policy, sampling: Sampling, max_tokens: int):
        self.policy, self.sampling, self.max_tokens = policy, sampling, max_tokens
        self.messages: list[dict] = []

    @property
    def holds_turns(self) -> bool:
        """Whether a prompt has the turns before the last one."""
        return self.policy.template == "chat"

    def reset(self):
        """Forget all turns."""
        self.messages = []

    def answer(self, text: str, seed: int = 0) -> Iterator[str]:
        """Yield the answer to a user's text, a piece a token; a piece may be "". What was read of an answer
        that is left early stays in the conversation.

        Raises ValueError before the first piece, and forgets the text: for one that the tokenizer or the
        template cannot hold, and where the model has no position left.
        """
        policy, asked = self.policy, [*self.messages, {"role": "user", "content": text}]
        prompt = render_question(policy.tokenizer, {"messages": asked}, template=policy.template)
        check_positions(policy, prompt)
        tokens = sampled_tokens(policy, prompt, self.sampling, self.max_tokens, seed)
        said = opened_thought(policy.tokenizer, prompt)
        try:
            yield said
            for piece in text_pieces(policy.tokenizer, tokens):
                said += piece
                yield piece
        finally:
            if self.holds_turns and said:
                self.messages = [*asked, {"role": "assistant", "content": said}]


def check_positions(policy: Policy, prompt: list[int]):
    """Raise ValueError where the model has no position left after a prompt."""
    limit = policy.config.max_position_embeddings
    if len(prompt) >= limit:
        raise ValueError(
            f"this prompt has {len(prompt)} tokens, and the model max_position_embeddings={limit}: "
            "begin a new conversation by /reset, or ask in fewer words"
        )
