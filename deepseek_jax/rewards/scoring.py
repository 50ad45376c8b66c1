"""Score a batch of completions by the weighted sum of named rewards, and count every failure."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deepseek_jax.errors import UnusableRewards, at, suggest
from deepseek_jax.named_code import BRING, is_code, named
from deepseek_jax.notebooks import plainly
from deepseek_jax.rewards.batch import Batch
from deepseek_jax.rewards.function import FunctionReward, gathered
from deepseek_jax.rewards.rule import Rule
from deepseek_jax.rewards.rules import RULES

MAX_MESSAGES = 5
# Longest completion that rules read, about 250,000 tokens: longer ones take seconds, and workers
# copy them
MAX_CHARS = 2**20


@dataclasses.dataclass
class Scores:
    """Rewards of a batch of completions.

    Attributes:
        total: float32[b], the weighted sum of the parts that scored. NaN if a part failed or none
            scored.
        rewards_by_name: name -> float32[b], unweighted. NaN where the part failed or did not score.
        errors: Number of completions with a NaN total.
        messages: Messages about the first failures.
        metrics: name -> number, logged by the user's functions.
        columns: name -> a value for each completion, logged by the user's functions.
        unread: bool[b], True where a rule scored 0 because it could not read what the completion
            states. None if no rule can say this.
    """

    total: np.ndarray
    rewards_by_name: dict[str, np.ndarray]
    errors: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    columns: dict[str, list] = dataclasses.field(default_factory=dict)
    unread: np.ndarray | None = None

    def as_wrong(self, name: str) -> np.ndarray:
        """Return a part with 0 for completions without a verdict, as in an accuracy: float32[b]."""
        return np.nan_to_num(self.rewards_by_name[name])

    def without_verdict(self, name: str) -> str | None:
        """Say how many completions as_wrong counts as 0, or return None if there are none."""
        num_missing = int(np.isnan(self.rewards_by_name[name]).sum())
        if num_missing:
            return f"{num_missing} of {len(self.total)} answers had no verdict by {name} and count as 0"
        return None

    def require_one(self):
        """Raise UnusableRewards, with the first message, if not one completion could be scored."""
        if len(self.total) and self.errors == len(self.total):
            first_message = "".join(self.messages[:1])
            raise UnusableRewards(
                f"none of {self.errors} completions could be scored. {first_message}"
            )


class Rewards:
    """Rewards by name, with weights: Rewards({"correct": 1.0, "my_rewards.py:brief": 0.2}).

    A part is the value of one reward. It fails on a completion if the reward raises an exception or
    returns anything but a finite number, and if a rule or function gets more than MAX_CHARS
    characters. The total is then NaN, "not scored", because a 0 would look like a wrong answer. A
    function may return None, "not scored by me": the other parts count without it.

    Args:
        weights: name -> weight. A name is a rule's, a model's, or a function's: FILE.py:NAME or
            package.module:NAME, see rewards.function. The function itself may stand in place of its
            name.
        models: Trained rewards by name: rewards.model.RewardModel, or any object with its method
            score(examples, completions). One that does not read the completions says so by
            reads_texts = False.
        rules: The rules that `weights` may name; RULES by default.

    Raises:
        ValueError: For no rewards, an unknown name, a model that has the name of another reward or
            no weight, a weight that is not finite, a verifier that lacks a package or a sandbox,
            and as FunctionReward does.
    """

    @plainly()
    def __init__(
        self,
        weights: Mapping[str, float] | Mapping[str | Callable, float],
        models: Mapping[str, Any] | None = None,
        rules: Mapping[str, Rule] | None = None,
    ):
        self._models, rules = dict(models or {}), RULES if rules is None else rules
        known_names = [*rules, *self._models]
        self.weights = named(weights)
        if not self.weights:
            raise ValueError(
                f"there are none; give NAME=WEIGHT, NAME one of {', '.join(known_names)}."
            )
        for name, weight in self.weights.items():
            if name not in known_names and not is_code(name):
                suggestion = suggest(name, known_names)
                raise ValueError(f"{name}={weight!r} is not of a reward; {suggestion}; {BRING}")
            if not _is_finite(weight):
                raise ValueError(f"{name}={weight!r} must be a finite number.")
        for name in self._models:
            if known_names.count(name) > 1:
                raise ValueError(f"the reward model {name!r} has a reward's name; choose another.")
            if name not in self.weights:
                raise ValueError(f"the reward model {name!r} is not used; give {name}=WEIGHT.")
        self._rules = {name: rules[name] for name in self.weights if name in rules}
        verifiers = {name: rule.verifier for name, rule in self._rules.items()}
        self._verifiers = {name: make() for name, make in verifiers.items() if make is not None}
        self._functions = {}
        for name in [name for name in self.weights if name not in known_names]:
            with at(name):
                self._functions[name] = FunctionReward(name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End the worker processes of verifiers and functions, if there are any."""
        for pool in (*self._verifiers.values(), *self._functions.values()):
            pool.close()

    def check(self, examples: Sequence[Mapping]):
        """Raise ValueError if a reward cannot score one of the examples.

        Call it before a run starts. The message names the reward, the question and the field that
        it lacks.
        """
        for name, rule in self._rules.items():
            if rule.check is None:
                continue
            for example in examples:
                with at(name):
                    rule.check(example)
        for name, function in self._functions.items():
            with at(name):
                function.check(examples)
        silent_names = [
            name for name, function in self._functions.items() if function.scores_nothing
        ]
        if silent_names and len(silent_names) == len(self.weights):
            with at(silent_names[0]):
                raise ValueError(
                    "returned None, not scored, for all own answers of the questions that it was tried on, "
                    "and no other reward scores them; return a number"
                )

    def best_share(self) -> str | None:
        """Return the name of the reward with the largest weight among shares, or None without any.

        A share is a reward with values from 0 to 1 and a weight of 0 or more. Rules are shares. A
        user's function is one if its values were from 0 to 1 when check tried it. The values of
        trained rewards are not known. Among equal weights the first reward counts.
        """
        function_shares = [name for name, function in self._functions.items() if function.is_share]
        share_names = [
            n
            for n, w in self.weights.items()
            if w >= 0 and (n in self._rules or n in function_shares)
        ]
        return max(share_names, key=self.weights.get, default=None)

    def score(
        self,
        examples: Sequence[Mapping],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> Scores:
        """Score completions[i] (str) against examples[i], a Mapping with "question" and "answer".

        Args:
            examples: One for each completion.
            completions: The texts to score.
            completion_ids: The completions' tokens, for functions that take them.

        Raises:
            ValueError: If the lists differ in length, or as check() does.
        """
        batch = Batch(examples, completions, completion_ids)
        return self._score(batch, lambda work, count: work(range(count)), lambda value: [value])

    def score_together(
        self,
        examples: Sequence[Mapping],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        owners: np.ndarray | None = None,
    ) -> Scores:
        """Score a batch as `score` does, with the work shared between all processes.

        All processes must call it with the same arguments, and get the same Scores. Each process
        reads and scores its own share of the completions. Models score all completions on each
        process, because their programs need all processes. An exception on one process is raised on
        all.

        Args:
            examples: As in `score`.
            completions: As in `score`.
            completion_ids: As in `score`.
            owners: int[b], the process that has each completion, where a process can read only its
                own. If a model reads completions, all processes receive their texts.
        """
        # Imported here because workers of the verifiers import this file, but must not import jax
        from deepseek_jax.parallel.processes import from_each, in_shares

        share = functools.partial(in_shares, owners=owners)
        batch = Batch(examples, completions, completion_ids)
        return self._score(batch, share, from_each, owned=owners is not None)

    def _score(self, batch, share, from_each, owned=False):
        examples, count = batch.examples, len(batch.completions)
        if len(examples) != count:
            raise ValueError(f"{len(examples)} examples for {count} completions.")
        self.check(examples)
        rewards_by_name, messages, unread = {}, [], None
        total, is_scored = np.zeros(count, np.float32), np.zeros(count, bool)
        for name, weight in self.weights.items():
            read_batch = batch
            # Read before the work is shared: a process that fails in its work reads no further
            if owned and name in self._models and _reads_texts(self._models[name]):
                texts = share(lambda rows: [batch.completions[row] for row in rows], count)
                read_batch = dataclasses.replace(batch, completions=texts)
            verdicts = share(functools.partial(self._verdicts, name, read_batch), count)
            values = [math.nan if value is None else value for value, _, _ in verdicts]
            rewards_by_name[name] = np.array(values, np.float32)
            messages += [message for _, message, _ in verdicts if message is not None]
            has_score = np.array([value is not None for value, _, _ in verdicts], bool)
            if name in self._rules and self._rules[name].unread is not None:
                reward_unread = np.array([not_read for _, _, not_read in verdicts], bool)
                unread = reward_unread if unread is None else unread | reward_unread
            total = np.where(has_score, total + weight * rewards_by_name[name], total)
            is_scored |= has_score
        if not is_scored.all():
            first_unscored = int(np.argmin(is_scored))
            previews = share(
                lambda rows: [batch.quoted(r) if r == first_unscored else "" for r in rows], count
            )
            messages.append(f"no reward scores {previews[first_unscored]}.")
        total = np.where(is_scored, total, np.nan).astype(np.float32)
        errors = int(np.isnan(total).sum())
        logged: tuple[dict, dict] = {}, {}
        if self._functions:
            function_logs = [function.logged for function in self._functions.values()]
            logged = gathered(from_each(function_logs), count)
        return Scores(total, rewards_by_name, errors, messages[:MAX_MESSAGES], *logged, unread)

    def _verdicts(self, name, batch, rows):
        """Score each of the rows by one reward.

        Returns:
            A list of (score, message, not_read). score is a float, None if the reward does not
            score, or NaN if it fails. message is a str for the first MAX_MESSAGES failures, else
            None. not_read is True if a rule scored 0 because it could not read the completion.
        """
        is_unread = self._rules[name].unread if name in self._rules else None
        verdicts, num_failures = [], 0
        for row, value in zip(rows, self._values(name, batch, rows), strict=True):
            message = None
            if value is not None and not _is_finite(value):
                num_failures += 1
                if num_failures <= MAX_MESSAGES:
                    message = f"reward {name!r} failed with {value!r} on {batch.quoted(row)}."
                value = math.nan
            not_read = False
            if is_unread is not None and value == 0:
                not_read = is_unread(batch.completions[row], batch.examples[row])
            verdicts.append((None if value is None else float(value), message, not_read))
        return verdicts

    def _values(self, name, batch, rows):
        """Return what one reward returned or raised for each of the rows."""
        examples, completions = batch.examples, batch.completions
        if name in self._models:
            values = self._models[name].score(examples, completions)
            return [values[row] for row in rows]
        texts = {row: completions[row] for row in rows}
        fitting_rows = [row for row, text in texts.items() if len(text) <= MAX_CHARS]
        if name in self._functions:
            values = self._functions[name].score(batch, fitting_rows)
        elif name in self._verifiers:
            first_field, *other_fields = (
                [examples[row].get(field) for row in fitting_rows]
                for field in self._rules[name].fields
            )
            values = self._verifiers[name].score(
                first_field, [texts[row] for row in fitting_rows], *other_fields
            )
        else:
            values = [
                _call(self._rules[name].score, texts[row], examples[row]) for row in fitting_rows
            ]
        values = dict(zip(fitting_rows, values, strict=True))
        return [values[row] if row in values else _too_long(texts[row]) for row in rows]


def _reads_texts(model):
    return getattr(model, "reads_texts", True)


def _too_long(text):
    return ValueError(f"{len(text)} characters; rules read at most {MAX_CHARS}")


def _call(reward, completion, example):
    """Return the reward, or the exception that it raised, which `_verdicts` counts and reports."""
    try:
        return reward(completion, example)
    except Exception as error:
        return error


def _is_finite(value):
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)
