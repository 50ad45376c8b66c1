"""Mathematical equality of answers, LaTeX and symbols included: math-verify in worker processes.

math-verify stops a long calculation with a signal, which works only in a main thread, and passes an
answer such as 9^{9^{9^9}} to sympy. So it runs in processes that import no jax and may be killed.
"""

import importlib.util
import logging
import math
import re
import resource
import signal
import time
from collections.abc import Mapping, Sequence

from deepseek_jax.rewards.answer import (
    Answer,
    contradicts,
    exact_answer,
    gold_answer,
    read_answer,
    same_answer,
    stated_answers,
)
from deepseek_jax.rewards.latex import canonical, readable
from deepseek_jax.rewards.marks import final_text
from deepseek_jax.rewards.quantity import last_quantity, read_quantity
from deepseek_jax.rewards.workers import WorkerPool

# $...$, \(...\) and \[...\], each without another opening mark of its kind: the search is linear
FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\(((?:(?!\\\().)+?)\\\)|\\\[((?:(?!\\\[).)+?)\\\]", re.S)
DIGIT = re.compile(r"\d")
# Answers to which batch_limit_seconds applies
BATCH = 256
# Answers that are begun before the CPU time of those before them is known
WAVE = 8
WALL_LIMIT_SECONDS = 600.0


class MathVerifier(WorkerPool):
    """Scores answers in `num_workers` processes, with a time limit for each answer and one for all of them.

    Limits are of CPU time, so that a busy machine gives the same verdicts. batch_limit_seconds: for every 256
    answers of a batch, or the rest of that, which are not equal as they stand. A policy that has learned to
    write 9^{9^{9^9}} would else take time_limit_seconds with each answer.
    `timeouts` counts the answers without a verdict: past a limit, a worker that died, or an exception in
    math-verify. Raises ValueError if the math-verify package is not installed.
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        time_limit_seconds: float = 5.0,
        batch_limit_seconds: float = 60.0,
    ):
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "the reward 'math_verify' needs a package: pip install math-verify, or leave this "
                "reward out."
            )
        super().__init__(
            _verify_one,
            _start_worker,
            num_workers=num_workers,
            # For a worker that waits and computes nothing
            wall_limit_seconds=WALL_LIMIT_SECONDS,
        )
        self.time_limit_seconds = time_limit_seconds
        self.batch_limit_seconds = batch_limit_seconds
        self.timeouts = 0

    def score(
        self,
        golds: Sequence[str],
        completions: Sequence[str],
        questions: Sequence[str | None] | None = None,
    ):
        r"""Compare each completion's answer with its gold answer.

        golds, completions: lists of str. questions: where one asks for a percentage, a % after a number does
        not count. A completion's answer is the one it marks (\boxed{...}, <answer>, ####), else its last
        formula or number, see answer.extract_answer. Only what math-verify reads in full is compared, see
        latex.readable: the rest is wrong, and so are two answers that differ.
        Returns a list of float: 1.0 equal, 0.0 not, NaN without a verdict (see `timeouts`).
        """
        scores, pairs = {}, {}
        rows = zip(golds, completions, questions or [None] * len(golds), strict=True)
        for i, (gold, completion, question) in enumerate(rows):
            gold = gold_answer(dict(answer=gold))
            verdict, answer = _first_look(completion, gold, question)
            if answer is None:
                scores[i] = verdict
            else:
                pairs[i] = (_as_math(canonical(gold)), answer, self.time_limit_seconds)
        scores |= self._verdicts(pairs)
        self.timeouts += sum(map(math.isnan, scores.values()))
        return [scores[i] for i in range(len(scores))]

    def _verdicts(self, pairs):
        """i -> verdict of math-verify, or NaN. In waves, so that all machines stop at the same answer."""
        limit = self.batch_limit_seconds * math.ceil(len(pairs) / BATCH)
        verdicts, used, order = dict.fromkeys(pairs, math.nan), 0.0, list(pairs)
        for start in range(0, len(order), WAVE):
            if used > limit:
                break
            wave = {i: pairs[i] for i in order[start : start + WAVE]}
            results = self.run(wave)
            verdicts |= {i: verdict for i, (verdict, _) in results.items()}
            lost = len(wave) - len(results)
            used += sum(seconds for _, seconds in results.values()) + lost * self.time_limit_seconds
        return verdicts


def is_unread(completion: str, example: Mapping):
    """True if `completion` states something that neither the rules nor math-verify read: it is wrong."""
    gold, question = gold_answer(example), example.get("question")
    if contradicts(completion, question):
        return False
    answer = _stated(completion, gold, question)
    if answer is None:
        return bool(DIGIT.search(final_text(completion)))
    compared = same_answer(answer.text, gold, question) or _is_compared(answer, gold, question)
    return not compared and readable(answer.text, gold, question) is None


def _first_look(completion, gold, question):
    """(1.0 or 0.0, None) where no mathematics is needed, else (None, the formula for math-verify)."""
    # Also answers that math-verify cannot read, such as the option A
    if exact_answer(completion, dict(answer=gold, question=question)):
        return 1.0, None
    answer = _stated(completion, gold, question)
    if answer is None:
        return 0.0, None
    if same_answer(answer.text, gold, question):
        return 1.0, None
    if _is_compared(answer, gold, question):
        return 0.0, None
    formula = readable(answer.text, gold, question)
    return (0.0, None) if formula is None else (None, _as_math(formula))


def _is_compared(answer, gold, question):
    """True if both are numbers, which the rules compare exactly: math-verify takes 0.10000001 for 0.1."""
    right = read_quantity(gold, question, lead=False)
    if answer.quantity is None or right is None:
        return False
    return "%" not in (answer.quantity.unit, right.unit)


def _stated(completion, gold, question):
    r"""The Answer of a completion. Where nothing marks one it is the last formula, as $\frac{\sqrt{3}}{2}$,
    if no number follows. None where there is none, or where it is a part of something else.
    """
    text, formula = final_text(completion), None
    for formula in FORMULA.finditer(text):  # noqa: B007
        pass
    if not formula or stated_answers(text, question) or DIGIT.search(text, formula.end()):
        return read_answer(completion, question)
    content = next(filter(None, formula.groups()))
    # "5 toys in $x$ hours"
    if (DIGIT.search(gold) and not DIGIT.search(content)) or read_quantity(content) is not None:
        return read_answer(completion, question)
    # Does what surrounds the formula leave it whole? As it would a number
    as_number = last_quantity(f"{text[: formula.start()]} 2 {text[formula.end() :]}")
    whole = as_number is not None and as_number.amounts() == {2}
    return Answer(content, None, None) if whole else None


class _TimeLimit(BaseException):
    """Not an Exception: sympy and math-verify catch every Exception on the way."""


def _start_worker():
    # The import takes a second; here it does not count against an answer's time limit
    import math_verify  # noqa: F401

    # Without its own time limit math-verify warns; the limit is the signal's, below
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    signal.signal(signal.SIGPROF, _raise_time_limit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _raise_time_limit(signum, frame):
    raise _TimeLimit


def _verify_one(gold, answer, time_limit_seconds):
    """(1.0, 0.0, or NaN without a verdict; the CPU seconds that it took). Runs in a worker."""
    began = time.process_time()
    try:
        verdict = _compare(gold, answer, time_limit_seconds)
    # sympy's exceptions have no narrower base class
    except (_TimeLimit, Exception) as error:
        logging.warning("math-verify has no verdict on %.80r: %r", answer, error)
        verdict = math.nan
    return verdict, time.process_time() - began


def _compare(gold, answer, time_limit_seconds):
    from math_verify import parse, verify

    signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
    # The signal stops a calculation in Python; this limit ends a process that stays in C code
    most = math.ceil(time.process_time() + 2 * time_limit_seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        gold, answer = (parse(x, parsing_timeout=None, raise_on_error=True) for x in (gold, answer))
        if not gold:
            raise ValueError("the gold answer is not one that math-verify can read")
        # verify is not symmetric: the gold answer comes first
        return float(verify(gold, answer, timeout_seconds=None, raise_on_error=True))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _as_math(text):
    # math-verify reads LaTeX only between dollar signs or in another environment
    return text if "$" in text else f"${text}$"
