"""The conversations of a rollout: what a turn of the model asks of tools or an environment, and what it reads
next.

Each process runs those of its share of the examples, and `after` tells all processes what came of them.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax

from deepseek_jax.data.chat import asked_messages
from deepseek_jax.data.columns import columns_of
from deepseek_jax.data.tools import ToolForm, tool_form
from deepseek_jax.environments import Environments
from deepseek_jax.parallel.processes import from_each, is_due, say
from deepseek_jax.rollout.settings import ConversationLimits

# What a conversation waits for at its end
REWARD = "the reward"


class _Waits(NamedTuple):
    """What a conversation waits for: the calls of a turn, the text of a step, or REWARD."""

    given: list | str


@dataclasses.dataclass
class Conversation:
    """What is known of a conversation beside its tokens, as JSON holds it.

    opening: the text of reset. messages: those after the prompt, in OpenAI's form. turns: of the model.
    tool_calls: calls of tools, or steps of an environment; tool_errors: those that raised or could not be
    read; tool_seconds: those spent in the user's code. cut: which limit ended it, or None; at_fault: whether
    the user's code went over it, and not the model. rewritten: the earlier turns that the template would have
    encoded otherwise. reward: that of get_reward, or None; unscored: why there is none.
    """

    opening: str | None = None
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


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """What the conversations of a policy can call: tools and an environment in their processes, the form in
    which its template writes calls, and the limits. said: how often there was something to say.
    """

    environments: Environments
    form: ToolForm
    limits: ConversationLimits
    said: Counter = dataclasses.field(default_factory=Counter, compare=False)

    def prompt(self, example: Mapping, opening: str = "", text: str | None = None):
        """The ids of an example's prompt. text: that of reset, or None."""
        return self.form.prompt(opened(example, text), self.environments.schemas, opening)

    def rewards(self):
        """{name: EnvironmentReward} of an environment with get_reward, else {}."""
        name = self.environments.reward_name
        return {} if name is None else {name: EnvironmentReward()}

    def conversations(self, tokenizer, examples: Sequence[Mapping], n: int, longest: int):
        """The Conversations of a rollout."""
        return Conversations(self, tokenizer, examples, n, longest)


class Conversations:
    """The conversations of one rollout, by their rows in it: n for each example.

    tokenizer: the policy's. longest: tokens of a conversation after its prompt. of: row -> Conversation.
    """

    def __init__(self, use: ToolUse, tokenizer, examples: Sequence[Mapping], n: int, longest: int):
        self.use, self.tokenizer, self.examples, self.n = use, tokenizer, examples, n
        self.longest, self.of = longest, {}
        # Of this process's rows: their tokens, the texts of their turns, and what follows the latest one,
        # ids, None for the end, or _Waits
        self.lengths, self.texts, self.pending = {}, {}, {}

    def begin(self, seed: int, done: Mapping = MappingProxyType({})):
        """Begin the conversations: -> the text of each example's reset, or None.

        done: row -> its line of a RolloutLog, for those that ended before. Raises ValueError where
        completions of one example get different texts, and as Environments.begin does.
        """
        rows = range(self.n * len(self.examples))
        self.of = {row: Conversation(**done[row]["conversation"]) for row in rows if row in done}
        new = [row for row in rows if row not in done and self._is_own(row)]
        texts = self.use.environments.begin(
            {self._key(row): (columns_of(self._example(row)), self._seed(row, seed)) for row in new}
        )
        begun = [[row, texts[self._key(row)]] for row in new]
        for row, text in (pair for process in from_each(begun) for pair in process):
            self.of[row] = Conversation(opening=text)
        return [self._opening(i) for i in range(len(self.examples))]

    def _opening(self, index):
        """The text of an example's reset."""
        texts = {self.of[row].opening for row in range(index * self.n, (index + 1) * self.n)}
        if len(texts) > 1:
            first, second = (repr(text)[:80] for text in list(texts)[:2])
            asked = str(self.examples[index].get("question"))[:80]
            raise ValueError(
                f"environment: reset returned {first} and {second} for one question, {asked!r}; its "
                "completions share a prompt: let the text depend on the columns alone"
            )
        return texts.pop()

    def _example(self, row):
        return self.examples[row // self.n]

    def _is_own(self, row):
        return row // self.n % jax.process_count() == jax.process_index()

    def _key(self, row):
        # Without gaps, so that neighbours go to different workers
        return row // self.n // jax.process_count() * self.n + row % self.n

    def _seed(self, row, seed):
        # Completions of an example begin alike
        asked = repr(sorted(columns_of(self._example(row)).items()))
        return zlib.crc32(asked.encode(), seed)

    def take(self, row: int, ids: list[int], stopped: bool, length: int):
        """Take a turn that has ended, with its end token if it stopped, and start what it asks for. length:
        the tokens of the conversation.
        """
        if not self._is_own(row):
            return
        conversation, text = self.of[row], self.tokenizer.decode(ids)
        conversation.turns += 1
        self.lengths[row] = length
        self.texts.setdefault(row, []).append(text)
        message = {"role": "assistant", "content": text}
        conversation.messages.append(message)
        if not stopped:
            self.pending[row] = self._cut(row, self._too_long(len(ids)))
        elif self.use.environments.takes_steps:
            self.pending[row] = self._act(row, text)
        else:
            self.pending[row] = self._called(row, message)

    def _too_long(self, tokens):
        """In words, which limit ended a turn of so many tokens."""
        if tokens == self.use.limits.turn_length:
            return f"conversation.turn_length={tokens}"
        return f"rollout.max_completion_length={self.longest}"

    def _called(self, row, message):
        """What follows a turn that may have calls."""
        schemas = self.use.environments.schemas
        try:
            content, calls = self.use.form.parse(message["content"], schemas)
        except ValueError as error:
            self.of[row].tool_errors += 1
            return self._answered(row, str(error))
        if not calls:
            return self._end(row)
        functions = [{"type": "function", "function": call._asdict()} for call in calls]
        message |= {"content": content, "tool_calls": functions}
        return self._act(row, calls)

    def _act(self, row, given):
        self.use.environments.act(self._key(row), given)
        return _Waits(given)

    def _finished(self, row, given):
        """What follows the calls, the step or the reward for which a row waited."""
        conversation, key = self.of[row], self._key(row)
        if given == REWARD:
            reward = self.use.environments.reward(key)
            name = "unscored" if isinstance(reward, str) else "reward"
            setattr(conversation, name, reward)
            return None
        acted = self.use.environments.acted(key)
        conversation.tool_calls += 1 if isinstance(given, str) else len(given)
        conversation.tool_errors += acted.errors
        conversation.tool_seconds += acted.seconds
        if acted.failure is not None:
            conversation.at_fault = True
            return self._cut(row, acted.failure)
        if acted.ended:
            return self._end(row)
        if isinstance(given, str):
            return self._answered(row, *acted.texts)
        conversation.messages += [
            {"role": "tool", "name": call.name, "content": text}
            for call, text in zip(given, acted.texts, strict=True)
        ]
        return self._fitting(row, self.use.form.results(given, acted.texts))

    def _answered(self, row, text):
        """What the model reads of a user's message."""
        self.of[row].messages.append({"role": "user", "content": text})
        return self._fitting(row, self.use.form.user(text))

    def _fitting(self, row, ids):
        """The ids, if another turn is allowed after them."""
        turns = self.use.limits.turns
        if self.of[row].turns >= turns:
            return self._cut(row, f"conversation.turns={turns}")
        # One token at least is the next turn's
        if self.lengths[row] + len(ids) < self.longest:
            return ids
        self.of[row].at_fault = len(ids) >= self.longest
        return self._cut(
            row,
            f"after {self.lengths[row]} tokens a text of {len(ids)} leaves no room for a turn within "
            f"rollout.max_completion_length={self.longest}",
        )

    def _cut(self, row, limit):
        self.of[row].cut = limit
        return self._end(row)

    def _end(self, row):
        """None, or _Waits where the environment has a reward to give."""
        conversation = self.of[row]
        asked = [*asked_messages(opened(self._example(row), conversation.opening))]
        rewritten = self.use.form.rewritten([*asked, *conversation.messages], self.texts.pop(row))
        conversation.rewritten = rewritten
        self.use.environments.end(self._key(row))
        return None if self.use.environments.reward_name is None else _Waits(REWARD)

    def after(self, rows: list[int], due: set[int]):
        """{row: what its model reads next: ids, or None where the conversation is over}; rows that wait
        longer are not there.

        rows: whose turn has ended. due: those of them whose calls have to be answered by now.
        """
        own, over = [], []
        for row in filter(self._is_own, rows):
            if isinstance(self.pending[row], _Waits) and row in due:
                self.pending[row] = self._finished(row, self.pending[row].given)
            if not isinstance(self.pending[row], _Waits):
                own.append([row, self.pending.pop(row)])
                if own[-1][1] is None:
                    over.append([row, dataclasses.asdict(self.of[row])])
        found = {}
        for outcomes, records in from_each([own, over]):
            found |= dict(outcomes)
            for row, record in records:
                self.of[row] = Conversation(**record)
                self._say(self.of[row])
        return found

    def _say(self, conversation):
        """Say, at doublings of their number, what a person should know and metrics do not tell."""
        said = self.use.said
        said["at_fault"] += conversation.at_fault
        if conversation.at_fault and is_due(said["at_fault"]):
            say(
                f"{said['at_fault']} conversations were ended by their tools or environment, truncated; the "
                f"latest after {conversation.turns} turns: {conversation.cut}"
            )
        said["rewritten"] += conversation.rewritten > 0
        if conversation.rewritten and said["rewritten"] == 1:
            say(
                f"the chat template ({self.use.form.name}) would write earlier turns of a conversation "
                "otherwise than the model sampled them; they stay as sampled, and rewritten_turns counts them"
            )

    def records(self):
        """The Conversation of each row, a list."""
        return [self.of[row] for row in sorted(self.of)]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # Those that an exception left under way
        self.use.environments.stop()


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


def tool_use(settings, policy, opened) -> ToolUse:
    """The ToolUse of a policy. settings: has tools, environment and conversation. opened: an ExitStack, which
    ends the processes. Raises ValueError, naming the field, as Environments and tool_form do.
    """
    environments = opened.enter_context(environments_of(settings))
    form, limits = tool_form(policy.tokenizer, policy.template), settings.conversation
    return ToolUse(environments, form, limits)


def opened(example: Mapping, text: str | None):
    """An example whose last message ends with the text of an environment's reset, if there is any."""
    if not text:
        return example
    *before, last = asked_messages(example)
    last = last | {"content": last["content"] + text}
    return dict(example) | {"question": last["content"], "messages": [*before, last]}
