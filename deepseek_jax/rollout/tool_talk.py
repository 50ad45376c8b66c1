"""A conversation with a policy that calls tools, or that an environment answers, as it was trained."""

import json
from collections.abc import Iterator
from itertools import islice

from deepseek_jax.data.chat import end_of_turn
from deepseek_jax.rollout.answers import opened_thought
from deepseek_jax.rollout.conversations import Conversations, Turn
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.stream import text_pieces
from deepseek_jax.rollout.talk import check_positions, sampled_tokens
from deepseek_jax.training.completions import CONTINUED, line_text, spoken_lines


class ToolTalk:
    """A Talk with a policy that has tools: its answer to a text is a conversation, under the same limits.

    With tools alone and a chat template a text follows the earlier answers, whose ids stay as sampled. Other
    texts begin anew. One for an environment may be a row of data, {"question": ..., ...}, as JSON: reset gets
    its columns, or else the text as the question alone. max_tokens: of an answer, with what it reads.
    """

    def __init__(self, policy: Policy, sampling: Sampling, max_tokens: int):
        self.policy, self.sampling, self.max_tokens = policy, sampling, max_tokens
        # Those of the conversation so far
        self.ids: list[int] = []

    @property
    def holds_turns(self) -> bool:
        """Whether a prompt has the turns before the last one."""
        return self.policy.template == "chat" and not self.policy.tools.environments.has_state

    def reset(self):
        """Forget all turns."""
        self.ids = []

    def answer(self, text: str, seed: int = 0) -> Iterator[str]:
        """Yield a text's answer by pieces: lines as those of training.completions.shown_text, with turns as
        sampled, then the limit that ended it, if one did, and the environment's reward.

        Raises ValueError before the first piece, as Talk.answer does, and where reset refuses the text.
        """
        policy, example = self.policy, self._example(text)
        arguments = policy.tools, policy.tokenizer, [example], 1, self.max_tokens
        with Conversations(*arguments) as conversations:
            (reset_text,) = conversations.begin(seed)
            prompt = self._prompt(example, reset_text)
            conversations.prompts = [prompt]
            check_positions(policy, prompt)
            room = policy.config.max_position_embeddings - len(prompt)
            conversations.longest = min(self.max_tokens, room)
            yield from self._turns(conversations, prompt, seed)
            yield _end_of(conversations.of[0])

    def _example(self, text):
        if not (self.policy.tools.environments.has_state and text.startswith("{")):
            return {"question": text}
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"a text that begins with {{ is a row of data, as JSON: {error}"
            ) from error
        if not isinstance(row.get("question"), str):
            raise ValueError('this row has no text "question"; give it one')
        return row

    def _prompt(self, example, reset_text):
        tools = self.policy.tools
        if self.ids:
            return [*self.ids, *tools.form.user(example["question"])]
        return tools.prompt(example, self.policy.opening, reset_text)

    def _turns(self, conversations: Conversations, prompt, seed):
        """The pieces of all turns of the model, and of what it reads between them."""
        policy, ids, shown = self.policy, [], 0

        def news():
            nonlocal shown
            messages = conversations.of[0].messages[shown:]
            shown += len(messages)
            # The model's turns are there already
            lines = [line_text(*line) for line in spoken_lines(messages) if line[0] != "model"]
            return "".join(f"\n{line}" for line in lines)

        yield line_text("model", opened_thought(policy.tokenizer, prompt))
        while True:
            turn = []
            try:
                yield from self._turn(conversations, prompt + ids, len(ids), turn, seed)
            finally:
                ids = ids + turn
                if turn and self.holds_turns:
                    self._keep(prompt + ids)
            found = conversations.after([Turn(0, turn, turn[-1] in policy.eos_ids, len(ids))], ())
            yield news()
            # Its calls, then the reward
            while not found:
                found = conversations.after((), [0])
            read = found[0]
            yield news()
            if read is None:
                return
            ids += read
            yield "\n" + line_text("model", "")

    def _turn(self, conversations, prompt, length, turn, seed):
        """The pieces of a turn, whose ids are added to `turn`. length: of the conversation so far."""
        policy, longest = self.policy, conversations.longest
        # max_tokens for all turns, which then share their programs
        tokens = sampled_tokens(policy, prompt, self.sampling, self.max_tokens, seed)
        most = min(conversations.use.limits.turn_length or longest, longest - length)
        for piece in text_pieces(policy.tokenizer, _noted(islice(tokens, most), turn)):
            yield piece.replace("\n", CONTINUED)

    def _keep(self, ids):
        """Remember a conversation, whose latest turn ends by then."""
        end = end_of_turn(self.policy.tokenizer, self.policy.template)
        self.ids = ids if ids[-1] in self.policy.eos_ids else [*ids, end]


def _noted(tokens, turn):
    for token in tokens:
        turn.append(token)
        yield token


def _end_of(conversation):
    """The lines about the end of a conversation."""
    lines = []
    if conversation.cut is not None:
        # The length of an answer is a field of ToolTalk
        limit = conversation.cut.replace("max_completion_length", "max_tokens")
        lines.append(f"\nended by {limit}")
    if conversation.unscored is not None:
        lines.append(f"\nno reward: {conversation.unscored}")
    elif conversation.reward is not None:
        lines.append(f"\nreward {conversation.reward:.4g}")
    return "".join(lines)
