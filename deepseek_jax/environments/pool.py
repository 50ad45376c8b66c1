"""Environments: a user's tools and environments, in processes that may hang, crash or fill memory.

These are the costs of 512 conversations at once of a small environment
(tests/environments/files/basket.py), on two cores. workers=2 takes 2 processes of 31 MiB, and
workers=8 takes 8 of 31 MiB. Each process shares all but 20 MiB with the others. A reset of all
takes 0.2 s, and so does a turn of all with two calls each. Before that, one process reads the
schemas and ends: 1 s, and 70 MiB.

Tests: tests/environments/test_calls.py, tests/environments/test_steps.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_jax.environments import worker
from deepseek_jax.environments.code import Code, source_of
from deepseek_jax.environments.schemas import describe
from deepseek_jax.environments.worker import ActionResult, PaidReward
from deepseek_jax.errors import at
from deepseek_jax.rewards.batch import LARGEST_REWARD, TOO_LARGE
from deepseek_jax.rewards.worker import Job, LostJob
from deepseek_jax.rewards.workers import WorkerPool


@dataclasses.dataclass(eq=False)
class _Conversation:
    """A conversation under way.

    Attributes:
        seed: The seed for its calls.
        life: The life of the process that has its environment, see rewards.worker. None without one.
        count: Number of its jobs so far.
        job: The job that runs, or None.
    """

    seed: int
    life: int | None = None
    count: int = 0
    job: Job | None = None


class Environments:
    """The user's tools, and an environment for each conversation, in `workers` processes.

    Their form is the form of TRL's GRPOTrainer. Tools are functions with type hints and
    Google-style docstrings. An environment is a class without arguments. Its reset(**columns)
    begins a conversation. Its get_reward(), if there is one, scores the conversation. Its other
    public methods are tools. If step(text) is the only one of these and `tools` is empty, each text
    of the model is a call of step.

    Conversation `key` stays in one process, number key % workers, as long as it lasts. A call that
    takes longer than call_seconds ends its process, and its conversation gets a failure. Other
    conversations that have an environment in this process are lost. Conversations without one
    repeat their calls in a new process. Before each reset, turn and reward, `random` and, if
    imported, numpy.random get a seed that belongs to the conversation.

    Use it as a context manager, or call close().

    Args:
        tools: Names of functions, as named_code takes them.
        environment: Name of a class, as named_code takes it, or None.
        call_seconds: Longest time of one call.
        call_bytes: Most bytes of the text that a call returns.
        workers: Number of processes.

    Attributes:
        has_state: True if there is an environment.
        schemas, takes_steps, reward_name: See schemas.Description.

    Raises:
        ValueError: If the code has another form. The message names the argument.
    """

    def __init__(
        self,
        tools: Sequence[str],
        environment: str | None,
        *,
        call_seconds: float = 10.0,
        call_bytes: int = 2**16,
        workers: int = 2,
    ):
        with at("tools"):
            sources = tuple(map(source_of, tools))
        with at("environment"):
            code = Code(sources, None if environment is None else source_of(environment))
        self.has_state = environment is not None
        self.schemas, self.takes_steps, self.reward_name = describe(code)
        self._call_seconds = call_seconds
        limits = code, call_seconds, call_bytes
        self._pool = WorkerPool(
            worker.run, worker.start, *limits, num_workers=workers, wall_limit_seconds=None
        )
        self._conversations: dict[int, _Conversation] = {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def check(self, columns: dict, text: str):
        """Try one conversation: begin it, take a step with this text, and end it.

        A step may raise: in a run the model would read why.

        Args:
            columns: The columns of one question.
            text: The text for the step, if the environment takes steps.

        Raises:
            ValueError: As begin does, and for a step or a reward that has another form, fails or
                exceeds a limit.
        """
        if not self.has_state:
            return
        self.begin({0: (columns, 0)})
        wrong = self._wrong_step(text) if self.takes_steps else None
        self.end(0)
        wrong = wrong or _wrong_reward(self.reward(0))
        if wrong is not None:
            with at("environment"):
                raise ValueError(wrong)

    def _wrong_step(self, text):
        """Return what is wrong with a step of conversation 0, in words, or None."""
        self.act(0, text)
        acted = self.acted(0)
        return acted.failure or acted.misformed

    def begin(self, jobs: Mapping[int, tuple[dict, int]]) -> dict[int, str | None]:
        """Begin conversations, and return the texts of their resets.

        Args:
            jobs: key -> (columns of its row, seed).

        Returns:
            key -> the text that reset returned, or None.

        Raises:
            ValueError: If reset raises, exceeds a limit, or returns neither None nor a text.
        """
        for key, (columns, seed) in jobs.items():
            conversation = self._conversations[key] = _Conversation(seed)
            if self.has_state:
                self._send(conversation, key, ["reset"], worker.reset, columns)
        return {key: self._begun(key) for key in jobs}

    def _begun(self, key):
        conversation = self._conversations[key]
        if not self.has_state:
            return None
        job = conversation.job
        # begin() has sent it
        assert job is not None
        text = self._pool.wait(job)
        if isinstance(text, (LostJob, Exception)):
            self.stop()
            with at("environment"):
                raise ValueError(self._why(text) if isinstance(text, LostJob) else str(text))
        conversation.life, conversation.job = job.life, None
        return text

    def act(self, key: int, action: list[Any] | str):
        """Start the calls of a turn, or a step. acted() waits for their result.

        Args:
            key: The conversation.
            action: The calls, each with .name and .arguments, or the text of a step.
        """
        conversation = self._conversations[key]
        assert conversation.job is None and isinstance(action, str) == self.takes_steps
        if isinstance(action, str):
            self._send(conversation, key, ["step"], worker.step, action)
        else:
            calls = [(call.name, call.arguments) for call in action]
            self._send(conversation, key, [name for name, _ in calls], worker.turn, calls)

    def acted(self, key: int) -> ActionResult:
        """Wait for what act() started, and return its result.

        Raises:
            ValueError: If a file has changed since the run began.
        """
        conversation = self._conversations[key]
        assert conversation.job is not None
        result = self._pool.wait(conversation.job)
        conversation.job = None
        if isinstance(result, Exception):
            with at("environment" if self.has_state else "tools"):
                raise result
        if not isinstance(result, LostJob):
            return result
        is_own = result.job is not None and result.job.key == key
        seconds = result.seconds if is_own else 0.0
        return ActionResult([], int(is_own), seconds, failure=self._failure(result, key))

    def end(self, key: int):
        """Start get_reward, if there is one, and forget the environment."""
        conversation = self._conversations[key]
        assert conversation.job is None
        if self.reward_name is not None:
            self._send(conversation, key, ["get_reward"], worker.reward)
            return
        del self._conversations[key]
        if self.has_state:
            self._pool.tell(key, worker.forget, key)

    def reward(self, key: int) -> PaidReward | None:
        """Wait for the reward that end() started, and return it, or None without get_reward."""
        if self.reward_name is None:
            return None
        job = self._conversations.pop(key).job
        # end() has sent it
        assert job is not None
        result = self._pool.wait(job)
        if isinstance(result, LostJob):
            return PaidReward(key, f"there is no reward: {self._failure(result, key)}")
        return PaidReward(key, str(result)) if isinstance(result, Exception) else result

    def stop(self):
        """Forget all conversations under way."""
        self._conversations.clear()
        self._pool.stop(worker.forget)

    def close(self):
        """End the processes. The next begin() starts new ones."""
        self._conversations.clear()
        self._pool.close()

    def _send(self, conversation, key, calls, function, *args):
        args = function, key, *args, conversation.seed, conversation.count
        conversation.count += 1
        conversation.job = Job(key, args, calls, conversation.life)
        self._pool.send(conversation.job)

    def _failure(self, lost, key):
        """Say, for a conversation, why it lost its job."""
        if lost.job is None or lost.job.key == key:
            return self._why(lost)
        return f"its environment ended with its worker: in another conversation {self._why(lost)}"

    def _why(self, lost):
        """Say why a worker ended."""
        if lost.closed:
            return "the conversations were stopped"
        if lost.job is None:
            return "its worker process ended, perhaps because the machine had no memory left"
        if lost.call == worker.IMPORT:
            limit = f"{worker.IMPORT_SECONDS:.0f} s"
            return f"the import of its file ended its process, or took more than {limit}"
        name = lost.job.calls[lost.call]
        if lost.seconds < self._call_seconds:
            return f"{name} ended its process"
        return f"{name} took more than call_seconds={self._call_seconds:g}"


def _wrong_reward(paid):
    """Return what is wrong with a result of Environments.reward, in words, or None."""
    if paid is None or isinstance(paid.reward, str):
        return paid and paid.reward
    if abs(paid.reward) <= LARGEST_REWARD:
        return None
    return f"get_reward returned {paid.reward:g}; {TOO_LARGE}"
