"""Conversations of a rollout: run what the model's turns call, and return what it reads next.

A turn may call tools, or be a step of an environment. Each process runs the conversations of its
share of the examples, and `after` gives the results to all processes.
"""

import dataclasses
import zlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from deepseek_jax.data.chat import asked_messages, with_reset_text
from deepseek_jax.data.columns import columns_of
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.parallel.processes import is_due, results_of_each, say
from deepseek_jax.rollout.answers import opened_thought
from deepseek_jax.rollout.tool_use import Conversation, ToolUse

# Stands for the reward, which a conversation waits for at its end. It is an object, because a step
# of the model may be any text
REWARD = object()


class Turn(NamedTuple):
    """A turn of the model that has ended.

    Attributes:
        row: The row of its conversation in the rollout.
        ids: The sampled tokens, including the end token if there is one.
        stopped: True if the turn has an end token.
        length: Tokens of its conversation so far, after the prompt.
    """

    row: int
    ids: list[int]
    stopped: bool
    length: int


class _Waits(NamedTuple):
    """Placeholder for what follows a turn, while a conversation waits for the user's code.

    Attributes:
        action: The calls of the turn, the text of a step, or REWARD.
    """

    action: Any


class Conversations:
    """The conversations of one rollout: n for each example, by their rows in the rollout.

    Use it as a context manager.

    Args:
        n: Conversations of each example.
        longest: The most tokens of a conversation after its prompt.

    Attributes:
        of: {row: Conversation}.
        prompts: The ids of each example's prompt. The caller sets them after `begin`, because the
            texts that it returns are part of them.
    """

    def __init__(
        self,
        use: ToolUse,
        tokenizer: Tokenizer,
        examples: Sequence[Mapping],
        n: int,
        longest: int,
    ):
        self.use, self.tokenizer, self.examples, self.n = use, tokenizer, examples, n
        self.longest = longest
        self.of: dict[int, Conversation] = {}
        self.prompts: list[list[int]] = []
        # By row, for the rows of this process: the tokens so far, the texts of the turns as they
        # were sampled, the ids that the model read last, and what follows the latest turn (ids,
        # None for the end, or _Waits)
        self.lengths: dict[int, int] = {}
        self.texts: dict[int, list[str]] = {}
        self.read: dict[int, list[int]] = {}
        self.pending: dict[int, list[int] | _Waits | None] = {}

    def begin(self, seed: int, done: Mapping[int, dict] = MappingProxyType({})) -> list[str | None]:
        """Begin the conversations, and return the text of each example's reset.

        Args:
            seed: The seed of the environments. Conversations of one example have the same seed.
            done: {row: its line of a RolloutLog} for the conversations that ended in earlier calls.

        Returns:
            A list with a text, or None, for each example.

        Raises:
            ValueError: The completions of one example get different texts; or as Environments.begin
                does.
        """
        rows = range(self.n * len(self.examples))
        self.of = {row: Conversation(**done[row]["conversation"]) for row in rows if row in done}
        new_rows = [row for row in rows if row not in done and self._is_own(row)]

        def begin_new():
            jobs = {
                row: (columns_of(self._example(row)), self._seed(row, seed)) for row in new_rows
            }
            texts = self.use.environments.begin({self._key(row): jobs[row] for row in new_rows})
            return [[row, texts[self._key(row)]] for row in new_rows]

        for row, text in (
            pair for process_pairs in results_of_each(begin_new) for pair in process_pairs
        ):
            self.of[row] = Conversation(number=row, reset_text=text)
        return [self._reset_text(i) for i in range(len(self.examples))]

    def _reset_text(self, index):
        """Return the text of an example's reset, the same for all its completions."""
        texts = {self.of[row].reset_text for row in range(index * self.n, (index + 1) * self.n)}
        if len(texts) > 1:
            first_text, second_text = (repr(text)[:80] for text in list(texts)[:2])
            question = str(self.examples[index].get("question"))[:80]
            raise ValueError(
                f"environment: reset returned {first_text} and {second_text} for one question, {question!r}; "
                "its completions share a prompt: let the text depend on the columns alone"
            )
        return texts.pop()

    def _example(self, row):
        return self.examples[row // self.n]

    def _is_own(self, row):
        return row // self.n % jax.process_count() == jax.process_index()

    def _key(self, row):
        # Keys have no gaps, so that adjacent conversations go to different workers
        return row // self.n // jax.process_count() * self.n + row % self.n

    def _seed(self, row, seed):
        # All completions of an example get the same seed, so that their environments begin in the
        # same state
        columns_text = repr(sorted(columns_of(self._example(row)).items()))
        return zlib.crc32(columns_text.encode(), seed)

    def _take(self, turn: Turn):
        """Record a turn and start what it calls; return what follows it, see `pending`."""
        row, conversation = turn.row, self.of[turn.row]
        sampled_text = self.tokenizer.decode(turn.ids)
        self.texts.setdefault(row, []).append(sampled_text)
        # The prompt, or the text that the model read last, may end in <think>
        ids_before = self.read.get(row, self.prompts[row // self.n])
        text = opened_thought(self.tokenizer, ids_before) + sampled_text
        conversation.turns += 1
        conversation.add_sampled(turn.ids)
        self.lengths[row] = turn.length
        message = {"role": "assistant", "content": text}
        conversation.messages.append(message)
        if not turn.stopped:
            return self._cut(row, self._too_long(len(turn.ids)))
        if self.use.environments.takes_steps:
            return self._act(row, text)
        return self._called(row, message)

    def _too_long(self, tokens):
        """Name the limit that ended a turn of this many tokens."""
        if tokens == self.use.limits.turn_length:
            return f"conversation.turn_length={tokens}"
        return f"max_completion_length={self.longest}"

    def _called(self, row, message):
        """Start the calls of a turn, if it has any; return what follows the turn, see `pending`."""
        schemas = self.use.environments.schemas
        try:
            content, calls = self.use.form.parse(message["content"], schemas)
        except ValueError as error:
            self.of[row].tool_errors += 1
            return self._answered(row, str(error))
        if not calls:
            return self._end(row)
        tool_calls = [{"type": "function", "function": call._asdict()} for call in calls]
        message |= {"content": content, "tool_calls": tool_calls}
        return self._act(row, calls)

    def _act(self, row, action):
        self.use.environments.act(self._key(row), action)
        return _Waits(action)

    def _finished(self, row, awaited):
        """Fetch the result of the calls, the step or the reward that a row waited for.

        Return what follows it, see `pending`.
        """
        conversation, key = self.of[row], self._key(row)
        if awaited is REWARD:
            paid = self.use.environments.reward(key)
            assert paid is not None, "only a conversation with get_reward waits for its reward"
            number, reward = paid
            # `number` is a key, and keys count only the rows of this process. It equals `key`
            # unless rewards are mixed up
            conversation.rewarded = row + number - key
            field = "unscored" if isinstance(reward, str) else "reward"
            setattr(conversation, field, reward)
            return None
        result = self.use.environments.acted(key)
        conversation.tool_calls += 1 if isinstance(awaited, str) else len(awaited)
        conversation.tool_errors += result.errors
        conversation.tool_seconds += result.seconds
        if result.failure is not None:
            conversation.at_fault = True
            return self._cut(row, result.failure)
        if result.ended:
            return self._end(row)
        if isinstance(awaited, str):
            return self._answered(row, *result.texts)
        conversation.messages += [
            {"role": "tool", "name": call.name, "content": text}
            for call, text in zip(awaited, result.texts, strict=True)
        ]
        return self._fitting(row, self.use.form.results(awaited, result.texts))

    def _answered(self, row, text):
        """Add a message of the user to a conversation; return what follows it, see `pending`."""
        self.of[row].messages.append({"role": "user", "content": text})
        return self._fitting(row, self.use.form.user(text))

    def _fitting(self, row, ids):
        """Return the ids if another turn may follow them; otherwise end the conversation."""
        turns = self.use.limits.turns
        if self.of[row].turns >= turns:
            return self._cut(row, f"conversation.turns={turns}")
        # Leave at least one token for the next turn
        if self.lengths[row] + len(ids) < self.longest:
            self.read[row] = ids
            return ids
        self.of[row].at_fault = len(ids) >= self.longest
        return self._cut(
            row,
            f"after {self.lengths[row]} tokens a text of {len(ids)} leaves no room for a turn within "
            f"max_completion_length={self.longest}",
        )

    def _cut(self, row, limit):
        self.of[row].cut = limit
        return self._end(row)

    def _end(self, row):
        """End a conversation: return _Waits if the environment will give a reward, else None."""
        conversation = self.of[row]
        prompt_messages = [
            *asked_messages(with_reset_text(self._example(row), conversation.reset_text))
        ]
        num_rewritten = self.use.form.rewritten(
            [*prompt_messages, *conversation.messages], self.texts.pop(row)
        )
        conversation.rewritten = num_rewritten
        self.use.environments.end(self._key(row))
        return None if self.use.environments.reward_name is None else _Waits(REWARD)

    def after(
        self, turned: Sequence[Turn], due_rows: Collection[int]
    ) -> dict[int, list[int] | None]:
        """Start what turns call, and return what the model reads next in each row.

        Every process calls it with the same arguments.

        Args:
            turned: The turns that have just ended.
            due_rows: Rows that wait and must get their results in this call. The call waits for the
                user's code.

        Returns:
            {row: the ids that its model reads next, or None if the conversation is over}. Rows that
            wait longer are not in it.

        Raises:
            ValueError: On all processes, if a file of the user's code has changed.
        """
        rows = [*due_rows, *(turn.row for turn in turned)]

        def outcomes() -> list[list[list]]:
            for turn in turned:
                if self._is_own(turn.row):
                    self.pending[turn.row] = self._take(turn)
            for row in filter(self._is_own, due_rows):
                waits = self.pending[row]
                assert isinstance(waits, _Waits)
                self.pending[row] = self._finished(row, waits.action)
            ready_rows = [
                r for r in filter(self._is_own, rows) if not isinstance(self.pending[r], _Waits)
            ]
            ended_records = [
                [row, dataclasses.asdict(self.of[row])]
                for row in ready_rows
                if self.pending[row] is None
            ]
            return [[[row, self.pending.pop(row)] for row in ready_rows], ended_records]

        ids_by_row: dict[int, list[int] | None] = {}
        for pairs, ended_records in results_of_each(outcomes):
            ids_by_row |= dict(pairs)
            for row, record in ended_records:
                self.of[row] = Conversation(**record)
                self._say(self.of[row])
        return ids_by_row

    def _say(self, conversation: Conversation):
        """Report what a person should know and metrics do not show.

        Conversations that the user's code ended are reported at doublings of their number,
        rewritten turns only once.
        """
        said_counts = self.use.said
        said_counts["at_fault"] += conversation.at_fault
        if conversation.at_fault and is_due(said_counts["at_fault"]):
            say(
                f"{said_counts['at_fault']} conversations were ended by their tools or environment, "
                f"truncated; the latest after {conversation.turns} turns: {conversation.cut}"
            )
        said_counts["rewritten"] += conversation.rewritten > 0
        if conversation.rewritten and said_counts["rewritten"] == 1:
            say(
                f"the chat template ({self.use.form.name}) would write earlier turns of a conversation "
                "otherwise than the model sampled them; they stay as sampled, and rewritten_turns counts them"
            )

    def forget(self, rows: Collection[int]):
        """Drop the messages of conversations that other processes own."""
        for row in rows:
            self.of[row].messages.clear()

    def records(self) -> list[Conversation]:
        """Return the Conversation of each row, as a list in the order of rows."""
        return [self.of[row] for row in sorted(self.of)]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # Forget the conversations that an exception interrupted
        self.use.environments.stop()
