"""ToolTalk: a person's conversation with a policy that calls tools or acts in an environment."""

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
from deepseek_jax.rollout.tool_use import Conversation
from deepseek_jax.training.completions import CONTINUED, line_text, spoken_lines


class ToolTalk:
    """A Talk with a policy that has tools: its answer to a text is a whole conversation.

    The conversation has the same limits as in training. With tools, no environment and a chat
    template, a text follows the earlier answers, and their ids stay as they were sampled. Otherwise
    each text begins a new conversation.

    A text for an environment may be a row of data as JSON, {"question": ..., ...}: reset gets its
    columns. Any other text is the question, the only column that reset gets.

    Args:
        sampling: How tokens are drawn.
        max_tokens: The most tokens of an answer, including what it reads.
    """

    def __init__(self, policy: Policy, sampling: Sampling, max_tokens: int):
        # Without tools, a policy has a Talk
        assert policy.tools is not None
        self.policy, self.tools = policy, policy.tools
        self.sampling, self.max_tokens = sampling, max_tokens
        # The ids of the conversation so far
        self.ids: list[int] = []

    @property
    def holds_turns(self) -> bool:
        """True if a prompt has the turns before the last one."""
        return self.policy.template == "chat" and not self.tools.environments.has_state

    def reset(self):
        """Forget all turns."""
        self.ids = []

    def answer(self, text: str, seed: int = 0) -> Iterator[str]:
        """Yield the answer to a text in pieces.

        The pieces form lines like training.completions.shown_text, with the model's turns as they
        were sampled. The last piece has the limit that ended the answer, if one did, and the
        environment's reward.

        Raises:
            ValueError: Before the first piece: as Talk.answer does, and if reset refuses the text.
        """
        policy, example = self.policy, self._example(text)
        arguments = self.tools, policy.tokenizer, [example], 1, self.max_tokens
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
        if not (self.tools.environments.has_state and text.startswith("{")):
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
        if self.ids:
            return [*self.ids, *self.tools.form.user(example["question"])]
        return self.tools.prompt(example, self.policy.opening, reset_text)

    def _turns(self, conversations: Conversations, prompt, seed):
        """Yield the text of all turns in pieces: the model's, and the answers that it reads."""
        policy, num_shown = self.policy, 0
        ids: list[int] = []

        def new_lines():
            """Return the lines of the messages that were not shown yet."""
            nonlocal num_shown
            messages = conversations.of[0].messages[num_shown:]
            num_shown += len(messages)
            # The model's turns were shown while they were sampled
            lines = [line_text(*line) for line in spoken_lines(messages) if line[0] != "model"]
            return "".join(f"\n{line}" for line in lines)

        yield line_text("model", opened_thought(policy.tokenizer, prompt))
        while True:
            turn_ids: list[int] = []
            try:
                yield from self._turn(conversations, prompt + ids, len(ids), turn_ids, seed)
            finally:
                ids = ids + turn_ids
                if turn_ids and self.holds_turns:
                    self._keep(prompt + ids)
            ids_by_row = conversations.after(
                [Turn(0, turn_ids, turn_ids[-1] in policy.eos_ids, len(ids))], ()
            )
            yield new_lines()
            # First the results of its calls are due, then the reward
            while not ids_by_row:
                ids_by_row = conversations.after((), [0])
            read_ids = ids_by_row[0]
            yield new_lines()
            if read_ids is None:
                return
            ids += read_ids
            yield "\n" + line_text("model", "")

    def _turn(self, conversations, prompt, length, turn_ids, seed):
        """Yield the pieces of one turn, and add its ids to a list.

        Args:
            conversations: The Conversations, of one row.
            prompt: The ids before the turn.
            length: Tokens of the conversation so far.
            turn_ids: The list that gets the ids.
        """
        policy, longest = self.policy, conversations.longest
        # All turns pass max_tokens, so that they share their programs
        tokens = sampled_tokens(policy, prompt, self.sampling, self.max_tokens, seed)
        max_turn_tokens = min(conversations.use.limits.turn_length or longest, longest - length)
        for piece in text_pieces(
            policy.tokenizer, _noted(islice(tokens, max_turn_tokens), turn_ids)
        ):
            yield piece.replace("\n", CONTINUED)

    def _keep(self, ids):
        """Remember the ids of a conversation; its latest turn gets an end token if it has none."""
        end_id = end_of_turn(self.policy.tokenizer, self.policy.template)
        self.ids = ids if ids[-1] in self.policy.eos_ids else [*ids, end_id]


def _noted(tokens, turn_ids):
    for token in tokens:
        turn_ids.append(token)
        yield token


def _end_of(conversation: Conversation) -> str:
    """Return the lines about the end of a conversation."""
    lines = []
    if conversation.cut is not None:
        # Here the field for the length of an answer is ToolTalk's max_tokens
        limit = conversation.cut.replace("max_completion_length", "max_tokens")
        lines.append(f"\nended by {limit}")
    if conversation.unscored is not None:
        lines.append(f"\nno reward: {conversation.unscored}")
    elif conversation.reward is not None:
        lines.append(f"\nreward {conversation.reward:.4g}")
    return "".join(lines)
