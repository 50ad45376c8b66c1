"""The weighted sum of named rewards over a batch of completions; it counts every failure."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepseek_jax.errors import UnusableRewards, at, suggest
from deepseek_jax.lazy import LazyTable
from deepseek_jax.rewards.rule import Rule

# THE rules, by their name in config.rewards; worlds add more, see worlds.registry
RULES = LazyTable(
    {
        "exact_answer": "deepseek_jax.rewards.rules:EXACT_ANSWER",
        "math_verify": "deepseek_jax.rewards.rules:MATH_VERIFY",
        "correct": "deepseek_jax.rewards.rules:CORRECT",
        "correct_reasoning": "deepseek_jax.rewards.rules:CORRECT_REASONING",
        "correct_working": "deepseek_jax.rewards.rules:CORRECT_WORKING",
        "true_equations": "deepseek_jax.rewards.rules:TRUE_EQUATIONS",
        "program": "deepseek_jax.rewards.rules:PROGRAM",
        "think_answer_format": "deepseek_jax.rewards.rules:THINK_ANSWER_FORMAT",
        "language_consistency": "deepseek_jax.rewards.rules:LANGUAGE_CONSISTENCY",
        "language_consistency_en": "deepseek_jax.rewards.rules:LANGUAGE_CONSISTENCY_EN",
        "language_consistency_zh": "deepseek_jax.rewards.rules:LANGUAGE_CONSISTENCY_ZH",
    }
)
MAX_MESSAGES = 5
# Longest completion that rules read, about 250,000 tokens: longer ones take seconds, and workers copy them
MAX_CHARS = 2**20


@dataclass
class Scores:
    """The rewards of a batch of completions.

    total: float32[b], the weighted sum; NaN where a part failed. parts: name -> float32[b], unweighted; NaN
    where it failed. errors: the number of completions whose total is NaN. messages: of the first failures.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]
    errors: int = 0
    messages: list[str] = field(default_factory=list)

    def as_wrong(self, name: str):
        """A part in which completions without a verdict count as 0, as in an accuracy: float32[b]."""
        return np.nan_to_num(self.parts[name])

    def without_verdict(self, name: str):
        """In words how many completions as_wrong counts as 0; None where there are none."""
        missing = int(np.isnan(self.parts[name]).sum())
        if missing:
            return f"{missing} of {len(self.total)} answers had no verdict by {name} and count as 0"
        return None

    def require_one(self):
        """Raise UnusableRewards, with the first message, if not a single completion could be scored."""
        if len(self.total) and self.errors == len(self.total):
            first = "".join(self.messages[:1])
            raise UnusableRewards(f"none of {self.errors} completions could be scored. {first}")


class Rewards:
    """Rewards by name, with weights: Rewards({"correct": 1.0, "correct_reasoning": 1.0}).

    A part fails on a completion if it raises or returns anything but a finite number, and each does on one of
    more than MAX_CHARS characters. The total is then NaN, "not scored": a 0 would look like a wrong answer.
    models: trained rewards by name, rewards.model.RewardModel or any object with its
    score(examples, completions). rules: the rules that weights may name.
    Raises ValueError for no rewards, an unknown name, a model with the name of another reward or
    without a weight, a weight that is not finite, or where a verifier lacks a package or a sandbox.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        models: Mapping[str, Any] | None = None,
        rules: Mapping[str, Rule] | None = None,
    ):
        self._models, rules = dict(models or {}), RULES if rules is None else rules
        known = [*rules, *self._models]
        self.weights = dict(weights)
        if not self.weights:
            raise ValueError(f"there are none; give NAME=WEIGHT, NAME one of {', '.join(known)}.")
        for name, weight in self.weights.items():
            if name not in known:
                raise ValueError(f"{name}={weight!r} is not of a reward; {suggest(name, known)}")
            if not _is_finite(weight):
                raise ValueError(f"{name}={weight!r} must be a finite number.")
        for name in self._models:
            if known.count(name) > 1:
                raise ValueError(f"the reward model {name!r} has a reward's name; choose another.")
            if name not in self.weights:
                raise ValueError(f"the reward model {name!r} is not used; give {name}=WEIGHT.")
        self._rules = {name: rules[name] for name in self.weights if name in rules}
        verifiers = {name: rule.verifier for name, rule in self._rules.items()}
        self._verifiers = {name: make() for name, make in verifiers.items() if make is not None}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End the worker processes of the verifiers, if there are any."""
        for verifier in self._verifiers.values():
            verifier.close()

    def check(self, examples: Sequence[Mapping]):
        """Raise ValueError if a reward cannot score one of the examples; called before a run starts.

        The message names the reward, the question and the field that it lacks.
        """
        for name, rule in self._rules.items():
            for example in () if rule.check is None else examples:
                with at(name):
                    rule.check(example)

    def score(self, examples: Sequence[Mapping], completions: Sequence[str]):
        """Score completions[i] (str) against examples[i], a Mapping with "question" and "answer".

        Returns Scores. Raises ValueError if the lists differ in length, or as check() does.
        """
        return self._score(examples, completions, lambda work, count: work(range(count)))

    def score_together(self, examples: Sequence[Mapping], completions: Sequence[str]):
        """score, shared between all processes, which call it with the same arguments and get the same Scores.

        Each process reads and scores its own share of the completions; but models, whose programs take all
        processes, score all completions on each. An exception on one process is raised on all.
        """
        # Workers of the verifiers, which import no jax, import this file
        from deepseek_jax.parallel.processes import in_shares

        return self._score(examples, completions, in_shares)

    def _score(self, examples, completions, share):
        if len(examples) != len(completions):
            raise ValueError(f"{len(examples)} examples for {len(completions)} completions.")
        self.check(examples)
        parts, messages = {}, []
        for name in self.weights:
            work = functools.partial(self._verdicts, name, examples, completions)
            verdicts = share(work, len(completions))
            parts[name] = np.array([value for value, _ in verdicts], np.float32)
            messages += [message for _, message in verdicts if message is not None]
        total = sum(weight * parts[name] for name, weight in self.weights.items())
        errors = int(np.isnan(total).sum())
        return Scores(total.astype(np.float32), parts, errors, messages[:MAX_MESSAGES])

    def _verdicts(self, name, examples, completions, rows):
        """(float, message) for each of the rows, by one reward. Where it fails: NaN, and a message, which is
        None after MAX_MESSAGES others, as it is without a failure.
        """
        verdicts, failures = [], 0
        for row, value in zip(rows, self._values(name, examples, completions, rows), strict=True):
            message = None
            if not _is_finite(value):
                failures += 1
                if failures <= MAX_MESSAGES:
                    asked = str(examples[row].get("question"))[:80]
                    what = f"{completions[row][:80]!r} for {asked!r}"
                    message = f"reward {name!r} failed with {value!r} on {what}."
                value = math.nan
            verdicts.append((float(value), message))
        return verdicts

    def _values(self, name, examples, completions, rows):
        """What one reward returns, or raised, for each of the rows."""
        if name in self._models:
            values = self._models[name].score(examples, list(completions))
            return [values[row] for row in rows]
        texts = {row: completions[row] for row in rows}
        fit = [row for row, text in texts.items() if len(text) <= MAX_CHARS]
        if name in self._verifiers:
            first, *more = (
                [examples[row].get(field) for row in fit] for field in self._rules[name].fields
            )
            values = self._verifiers[name].score(first, [texts[row] for row in fit], *more)
        else:
            values = [_call(self._rules[name].score, texts[row], examples[row]) for row in fit]
        values = dict(zip(fit, values, strict=True))
        return [values[row] if row in values else _too_long(texts[row]) for row in rows]


def _too_long(text):
    return ValueError(f"{len(text)} characters; rules read at most {MAX_CHARS}")


def _call(reward, completion, example):
    """The reward, or the exception that it raised, for `_verdicts` to count and report."""
    try:
        return reward(completion, example)
    except Exception as error:
        return error


def _is_finite(value):
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)
