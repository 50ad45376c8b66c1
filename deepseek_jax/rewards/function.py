"""A reward that a user brings: a function named FILE.py:NAME or package.module:NAME, run in worker processes.

It has one of two forms, which its parameters tell apart. Ours gets one completion and its example. TRL's
(https://huggingface.co/docs/trl/grpo_trainer, reward functions) gets lists by keyword: prompts, completions,
completion_ids, every column, log_extra and log_metric; where a prompt is a chat, prompt and completion are
lists of messages; the completion of a conversation always is.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deepseek_jax.data.columns import columns_of
from deepseek_jax.named_code import code_file, digest_of, import_unchanged, with_line
from deepseek_jax.rewards.batch import LARGEST_REWARD, TOO_LARGE, Batch
from deepseek_jax.rewards.workers import WorkerPool

# For the import, and for a call: one completion of ours, a whole batch of TRL's
LIMIT_SECONDS = 60.0
# What TRL passes besides the columns
LISTS = ("prompts", "completions", "completion_ids")
LOGS = ("log_extra", "log_metric")
# Parameters of TRL's own trainer
REFUSED = {"trainer_state": "the state of TRL's trainer, which is not here"}
# Columns that TRL does not pass: it passes lists of their plurals
SINGLE = ("prompt", "completion", "completion_ids")
FORMS = "define it as NAME(completion, example), or in TRL's form as NAME(prompts, completions, **columns)"
# Examples that a function is tried on before a run starts, and, where it scores none of them, so many
TRIED, TRIED_LONGER = 2, 64
# What it is tried on beside own answers, so that two values differ
OTHER = "<think>I do not know.</think>\n<answer>?</answer>"
# Between two values of one completion, of the largest value: a model computes a batch in another order
ROUNDING = 1e-2


class Form(NamedTuple):
    """What a function takes. lists: whether it has TRL's form. required, accepted: names of its parameters.
    every: whether it takes any keyword. whole_batch: its own attribute, by which it says that a value depends
    on the other completions, or on chance.
    """

    lists: bool
    required: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    every: bool = False
    whole_batch: bool = False


class Logged(NamedTuple):
    """What a function of TRL's form logged. metrics: name -> number. columns: name -> [(row, value)], by
    rows of the batch.
    """

    metrics: dict
    columns: dict


class FunctionReward(WorkerPool):
    """Scores completions by a function that a config names, in workers with limits of memory and time.

    name: see named_code. is_share: whether all values were from 0 to 1 when check tried it. Raises ValueError
    where the file or the function is missing, where the file cannot be imported, and for a function of
    neither form, an async one, and one with a parameter of REFUSED.
    """

    def __init__(self, name: str):
        self.name, self.file, self._tried, self.is_share = name, code_file(name), False, False
        # Whether it gave None for all that it was tried on
        self.scores_nothing = False
        # A worker that starts later must not read another text than the run has recorded
        self.source = self.file, name, digest_of(name)
        self.logged = Logged({}, {})
        # The first call imports the file, so that its error has a message
        super().__init__(_call, int, num_workers=2, wall_limit_seconds=LIMIT_SECONDS)
        self.form = self.ask(_form, *self.source)
        # TRL's form gets all completions in one call
        if self.form.lists:
            self.num_workers = 1
            self.close()

    def check(self, examples: Sequence[Mapping]):
        """Raise ValueError where an example lacks a column that the function takes, and where the function
        fails on the first examples' own answers, on which it is tried once, or mixes up their values.
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
        """Raise ValueError unless the values of two completions stay with them, turned around and alone."""
        # A text that it does not know may fail in a run, too
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
        """Whether it scores none of these examples' own answers, bare or in tags."""
        answers = [_own_answer(example) for example in examples]
        tagged = [OTHER.replace("?", answer) for answer in answers]
        values = self._values([*examples, *examples], [*answers, *tagged])
        return all(value is None for value in values)

    def _values(self, examples, texts):
        ids = [[0] * max(len(text), 1) for text in texts]
        return self.score(Batch(examples, texts, ids), range(len(texts)))

    def score(self, batch: Batch, rows: Sequence[int]) -> list:
        """A float, None for not scored, or an exception for each of these rows. self.logged: of this call."""
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
    """Whether all that was scored is within 0 to 1, and anything was."""
    scored = [value for value in values if value is not None]
    return bool(scored) and all(0 <= value <= 1 for value in scored)


def _own_answer(example):
    return str(example.get("answer", ""))


def _alike(values, others):
    """Whether two lists of values, None or an exception are equal but for rounding."""
    numbers = [value for value in (*values, *others) if isinstance(value, float)]
    rounding = ROUNDING * max(map(abs, numbers), default=0.0)
    return all(
        abs(a - b) <= rounding if isinstance(a, float) and isinstance(b, float) else a is b is None
        for a, b in zip(values, others, strict=True)
    )


def _shown(values):
    return " and ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _completion(text, prompt, conversation):
    """A completion as TRL's form has it: a text, or the messages of a chat, or of a conversation."""
    if conversation is not None:
        return conversation.messages
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def gathered(logged: list, count: int):
    """({metric: mean}, {column: a value for each of count rows}) of what all processes logged.

    logged: a list of Logged, or of what JSON makes of them, for each process.
    """
    metrics, columns = {}, {}
    for own_metrics, own_columns in (each for process in logged for each in process):
        for name, value in own_metrics.items():
            metrics.setdefault(name, []).append(value)
        for name, pairs in own_columns.items():
            column = columns.setdefault(name, [None] * count)
            for row, value in pairs:
                column[row] = value
    return {name: sum(values) / len(values) for name, values in metrics.items()}, columns


def _call(work, *args):
    """What work returns, or its error as one that a process without the user's code can read."""
    try:
        return work(*args)
    except (Exception, SystemExit) as error:
        return ValueError(str(error))


def _form(*source):
    """The Form of the function."""
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
    """The value of a function of our form."""
    function = import_unchanged(file, name, digest)
    try:
        value = function(completion, example)
    except (Exception, SystemExit) as error:
        raise RuntimeError(with_line(error, file)) from error
    return _number(value)


def _many(file, name, digest, given, form, count):
    """(values, Logged) of a function of TRL's form."""
    function, logged = import_unchanged(file, name, digest), Logged({}, {})
    logs = {
        "log_extra": lambda column, values: logged.columns.update({column: _plain(values)}),
        "log_metric": lambda metric, value: logged.metrics.update({metric: float(_item(value))}),
    }
    given |= {key: log for key, log in logs.items() if form.every or key in form.accepted}
    try:
        values = list(function(**given))
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
    """A float, or None for not scored."""
    value = _item(value)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"returned {value!r}; return a finite number, or None for not scored")
    return float(value)


def _plain(values):
    """A list of values that JSON can hold; others as texts."""
    items = map(_item, values)
    return [v if isinstance(v, (str, int, float, type(None))) else str(v) for v in items]


def _item(value):
    """A number of numpy or torch as one of Python; anything else as it is."""
    return value.item() if hasattr(value, "item") else value
