"""Rewards that a user writes: a function in a file or module, run in worker processes.

A config names the function as FILE.py:NAME or package.module:NAME. It has one of two forms, which
its parameters distinguish:

- Our form gets one completion and its example.
- TRL's form (https://huggingface.co/docs/trl/grpo_trainer, reward functions) gets lists by keyword:
  prompts, completions, completion_ids and every column. It also gets log_extra and log_metric. If a
  prompt is a chat, prompt and completion are lists of messages. The completion of a conversation is
  always a list of messages.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deepseek_jax.data.columns import columns_of
from deepseek_jax.named_code import code_file, digest_of, import_unchanged, with_line
from deepseek_jax.rewards.batch import LARGEST_REWARD, TOO_LARGE, Batch
from deepseek_jax.rewards.workers import WorkerPool

# Limit of the import, and of a call: for one completion in our form, for a whole batch in TRL's
LIMIT_SECONDS = 60.0
# What TRL passes in addition to the columns
LISTS = ("prompts", "completions", "completion_ids")
LOGS = ("log_extra", "log_metric")
# Parameters of TRL's own trainer
REFUSED = {"trainer_state": "the state of TRL's trainer, which is not here"}
# Columns that TRL does not pass: it passes LISTS in their place
SINGLE = ("prompt", "completion", "completion_ids")
FORMS = "define it as NAME(completion, example), or in TRL's form as NAME(prompts, completions, **columns)"
# Number of examples on which a function is tried before a run starts. If it scores none of these,
# it is tried on the larger number
TRIED, TRIED_LONGER = 2, 64
# A function is tried on this text and on the answers of examples, so that two values differ
OTHER = "<think>I do not know.</think>\n<answer>?</answer>"
# Largest difference between two values of one completion, as a share of the largest value: a model
# computes a batch in another order
ROUNDING = 1e-2


class Form(NamedTuple):
    """The form of a user's function: what it takes.

    Attributes:
        lists: True for TRL's form, False for ours.
        required: Names of the columns that the function needs.
        accepted: Names of all its parameters.
        every: True if it takes any keyword.
        whole_batch: The function's attribute of this name. It says that a value depends on the
            other completions, or on chance.
    """

    lists: bool
    required: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    every: bool = False
    whole_batch: bool = False


class Logged(NamedTuple):
    """Metrics and columns that a function of TRL's form logged.

    Attributes:
        metrics: name -> number.
        columns: name -> [(row, value)], with rows of the batch.
    """

    metrics: dict
    columns: dict


class FunctionReward(WorkerPool):
    """Reward by a function that a config names, in workers with limits of memory and time.

    Args:
        name: The function's name, see named_code.

    Attributes:
        is_share: True if all values were from 0 to 1 when check tried the function.
        scores_nothing: True if the function returned None for everything on which check tried it.
        logged: The Logged of the latest call of score.

    Raises:
        ValueError: If the file or the function is missing, if the file cannot be imported, and for
            a function that has neither form, is async or has a parameter of REFUSED.
    """

    def __init__(self, name: str):
        self.name, self.file, self._tried, self.is_share = name, code_file(name), False, False
        self.scores_nothing = False
        # With the digest, a worker that starts later does not run a file that has changed
        self.source = self.file, name, digest_of(name)
        self.logged = Logged({}, {})
        # The start (int) does nothing. The first call imports the file, so that its error has a
        # message
        super().__init__(_call, int, num_workers=2, wall_limit_seconds=LIMIT_SECONDS)
        self.form = self.call(_form, *self.source)

    def check(self, examples: Sequence[Mapping]):
        """Raise ValueError if the function cannot score the examples.

        Every example must have the columns that the function takes. The first call also tries the
        function on the answers of the first examples. It must not fail on them, and must not mix up
        their values.
        """
        for example in examples:
            for column in self.form.required:
                if column not in example:
                    has = ", ".join(columns_of(example))
                    raise ValueError(
                        f"takes {column!r}, which the question {str(example.get('question'))[:80]!r} lacks; "
                        f"it has {has}; give the column, or the parameter a default"
                    )
        if not self._tried and examples:
            self._try(examples)
            self._tried = True

    def _try(self, examples):
        some = examples[:TRIED]
        answers = [_own_answer(example) for example in some]
        values = self._values(some, answers)
        for value in values:
            wrong = str(value) if isinstance(value, Exception) else None
            if isinstance(value, float) and abs(value) > LARGEST_REWARD:
                wrong = f"returned {value:g}; {TOO_LARGE}"
            if wrong is not None:
                raise ValueError(f"{wrong}; it was tried on the questions' own answers")
        self.is_share = _are_shares(values)
        if self.form.lists and not self.form.whole_batch and len(some) == TRIED:
            self._check_order(some, answers, values)
            mixed = [answers[0], OTHER]
            self._check_order(some, mixed, self._values(some, mixed))
        if values == [None] * len(values):
            self.scores_nothing = self._is_silent(examples[:TRIED_LONGER])

    def _check_order(self, some, texts, together):
        """Raise ValueError if two completions change their values with their order or separately.

        They are scored together, in reverse order, and each by itself.
        """
        # A function may fail on a text that it does not know: this is allowed in a run, too
        if any(isinstance(value, Exception) for value in together):
            return
        turned = self._values(some[::-1], texts[::-1])[::-1]
        alone = [self._values([e], [text])[0] for e, text in zip(some, texts, strict=True)]
        if _alike(together, turned) and _alike(together, alone):
            return
        function = self.name.rpartition(":")[2]
        raise ValueError(
            f"gives two completions {_shown(together)} together, {_shown(turned)} turned around and "
            f"{_shown(alone)} each alone: return one value for each completion, in their order; where it "
            f"compares completions, or is random, write {function}.whole_batch = True below it"
        )

    def _is_silent(self, examples):
        """Return True if the function scores none of these examples' answers, bare or in tags."""
        answers = [_own_answer(example) for example in examples]
        tagged = [OTHER.replace("?", answer) for answer in answers]
        values = self._values([*examples, *examples], [*answers, *tagged])
        return all(value is None for value in values)

    def _values(self, examples, texts):
        ids = [[0] * max(len(text), 1) for text in texts]
        return self.score(Batch(examples, texts, ids), range(len(texts)))

    def score(self, batch: Batch, rows: Sequence[int]) -> list:
        """Score these rows of a batch, and set `logged` to what this call logged.

        Returns:
            For each row a float, None if the function does not score it, or an exception.
        """
        self.logged = Logged({}, {})
        if self.form.lists:
            return self._score_lists(batch, rows) if rows else []
        jobs = {
            row: (_one, *self.source, batch.completions[row], columns_of(batch.examples[row]))
            for row in rows
        }
        results = self.run(jobs)
        return [results.get(row, RuntimeError(self.lost())) for row in rows]

    def _score_lists(self, batch, rows):
        examples = [batch.examples[row] for row in rows]
        prompts = [example.get("messages") or example.get("question") for example in examples]
        texts = [batch.completions[row] for row in rows]
        completions = [
            _completion(text, prompt, example.get("conversation"))
            for text, prompt, example in zip(texts, prompts, examples, strict=True)
        ]
        if batch.ids is None and "completion_ids" in self.form.accepted:
            return [ValueError("takes completion_ids, and nobody has them here")] * len(rows)
        ids = [list(batch.ids[row]) for row in rows] if batch.ids is not None else None
        given = dict(prompts=prompts, completions=completions)
        given |= {} if ids is None else {"completion_ids": ids}
        columns = dict.fromkeys(key for example in examples for key in columns_of(example))
        given |= {
            key: [example.get(key) for example in examples] for key in columns if key not in SINGLE
        }
        if not self.form.every:
            given = {key: value for key, value in given.items() if key in self.form.accepted}
        job = (_many, *self.source, given, self.form, len(rows))
        result = self.run({0: job}).get(0, RuntimeError(self.lost()))
        if isinstance(result, Exception):
            return [result] * len(rows)
        values, logged = result
        columns = {name: list(zip(rows, own, strict=True)) for name, own in logged.columns.items()}
        self.logged = Logged(logged.metrics, columns)
        return values


def _are_shares(values):
    """Return True if all scores are from 0 to 1, and there is at least one."""
    scored = [value for value in values if value is not None]
    return bool(scored) and all(0 <= value <= 1 for value in scored)


def _own_answer(example):
    return str(example.get("answer", ""))


def _alike(values, others):
    """Return True if two lists of values are equal except for rounding.

    A value is a float, None or an exception. An exception equals nothing.
    """
    numbers = [value for value in (*values, *others) if isinstance(value, float)]
    rounding = ROUNDING * max(map(abs, numbers), default=0.0)
    return all(
        abs(a - b) <= rounding if isinstance(a, float) and isinstance(b, float) else a is b is None
        for a, b in zip(values, others, strict=True)
    )


def _shown(values):
    return " and ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _completion(text, prompt, conversation):
    """Return a completion in TRL's form: a text, or the messages of a chat or a conversation."""
    if conversation is not None:
        return conversation.messages
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def gathered(logged: list, count: int):
    """Combine what all processes logged: the mean of a metric, the values of a column.

    Args:
        logged: For each process a list of Logged, or of what JSON makes of them.
        count: Number of rows of the batch.

    Returns:
        ({metric: mean}, {column: a list of a value for each row, None where there is none}).
    """
    metrics: dict[str, list[float]] = {}
    columns: dict[str, list] = {}
    for own_metrics, own_columns in (each for process in logged for each in process):
        for name, value in own_metrics.items():
            metrics.setdefault(name, []).append(value)
        for name, pairs in own_columns.items():
            column = columns.setdefault(name, [None] * count)
            for row, value in pairs:
                column[row] = value
    return {name: sum(values) / len(values) for name, values in metrics.items()}, columns


def _call(function, *args):
    """Return what work returns, or its error as a ValueError.

    A process that has not imported the user's code can read a ValueError, but perhaps not the
    error.
    """
    try:
        return function(*args)
    except (Exception, SystemExit) as error:
        return ValueError(str(error))


def _form(*source):
    """Return the Form of the function, or raise ValueError if it has none."""
    function = import_unchanged(*source)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    ):
        raise ValueError("is async, which is not supported; define it without async")
    parameters = inspect.signature(function).parameters
    for parameter, meaning in REFUSED.items():
        if parameter in parameters:
            raise ValueError(f"takes {parameter}, {meaning}; take the parameter out")
    kinds = {parameter.kind for parameter in parameters.values()}
    every = inspect.Parameter.VAR_KEYWORD in kinds
    if every or set(LISTS) & set(parameters):
        named = [
            p
            for p in parameters.values()
            if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        ]
        columns = (p.name for p in named if p.default is p.empty and p.name not in (*LISTS, *LOGS))
        whole_batch = bool(getattr(function, "whole_batch", False))
        return Form(True, tuple(columns), tuple(p.name for p in named), every, whole_batch)
    try:
        inspect.signature(function).bind("completion", {})
    except TypeError as error:
        raise ValueError(f"takes {', '.join(parameters) or 'nothing'}; {FORMS}") from error
    return Form(False)


def _one(file, name, digest, completion, example):
    """Return the value of a function of our form for one completion."""
    function = import_unchanged(file, name, digest)
    try:
        value = function(completion, example)
    except (Exception, SystemExit) as error:
        raise RuntimeError(with_line(error, file)) from error
    return _number(value)


def _many(file, name, digest, arguments, form, count):
    """Call a function of TRL's form and return (values, Logged)."""
    function, logged = import_unchanged(file, name, digest), Logged({}, {})
    logs = {
        "log_extra": lambda column, values: logged.columns.update({column: _plain(values)}),
        "log_metric": lambda metric, value: logged.metrics.update({metric: float(_item(value))}),
    }
    arguments |= {key: log for key, log in logs.items() if form.every or key in form.accepted}
    try:
        values = list(function(**arguments))
    except (Exception, SystemExit) as error:
        raise RuntimeError(with_line(error, file)) from error
    if len(values) != count:
        raise RuntimeError(
            f"returned {len(values)} values for {count} completions; return one for each"
        )
    for column, entries in logged.columns.items():
        if len(entries) != count:
            raise RuntimeError(
                f"log_extra({column!r}) got {len(entries)} values for {count} completions; give one for each"
            )
    return [_number(value) for value in values], logged


def _number(value):
    """Return a value as a float, or None if it is None: not scored."""
    value = _item(value)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"returned {value!r}; return a finite number, or None for not scored")
    return float(value)


def _plain(values):
    """Return the values as a list that JSON can store. Other objects become texts."""
    items = map(_item, values)
    return [v if isinstance(v, (str, int, float, type(None))) else str(v) for v in items]


def _item(value):
    """Return a number of numpy or torch as a Python number, and anything else as it is."""
    return value.item() if hasattr(value, "item") else value
