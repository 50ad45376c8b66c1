"""Mathematical equality of answers, LaTeX and symbols included: math-verify in worker processes.

math-verify stops a long calculation with a signal, which works only in a main thread, and passes an
answer such as 9^{9^{9^9}} to sympy. So it runs in processes that import no jax and may be killed.
"""

import importlib.util
import logging
import math
import re
import signal
from collections.abc import Sequence

from deepseek_jax.rewards.answer import (
    extract_answer,
    final_text,
    gold_answer,
    is_part,
    last_number,
    marked_answer,
    same_answer,
    stated_answers,
)
from deepseek_jax.rewards.latex import readable
from deepseek_jax.rewards.workers import WorkerPool

# $...$, \(...\) and \[...\], each without another opening mark of its kind: the search is linear
FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\(((?:(?!\\\().)+?)\\\)|\\\[((?:(?!\\\[).)+?)\\\]", re.S)
DIGIT = re.compile(r"\d")
# Answers to which batch_limit_seconds applies
BATCH = 256


class MathVerifier(WorkerPool):
    """Scores answers in `num_workers` processes, with a time limit for each answer and one for all of them.

    batch_limit_seconds: for every 256 answers of a batch, or the rest of that, which are not equal as they
    stand. A policy that has learned to write 9^{9^{9^9}} would else take time_limit_seconds with each answer.
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
            # The signal stops a calculation in Python; this limit ends a process that stays in C code
            wall_limit_seconds=2 * time_limit_seconds + 1,
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
                pairs[i] = (_as_math(gold), answer, self.time_limit_seconds)
        verdicts = self.run(pairs, self.batch_limit_seconds * math.ceil(len(pairs) / BATCH))
        scores |= {i: verdicts.get(i, math.nan) for i in pairs}
        self.timeouts += sum(map(math.isnan, scores.values()))
        return [scores[i] for i in range(len(scores))]


def _first_look(completion, gold, question):
    """(1.0 or 0.0, None) where no mathematics is needed, else (None, the formula for math-verify)."""
    answer = marked_answer(completion) or _unmarked_answer(completion, gold)
    if answer is None:
        return 0.0, None
    # Also for answers that math-verify cannot read, such as the option A
    if same_answer(answer, gold, question):
        return 1.0, None
    formula = readable(answer, gold, question)
    return (0.0, None) if formula is None else (None, _as_math(formula))


def _unmarked_answer(completion, gold):
    r"""The last formula, such as $\frac{\sqrt{3}}{2}$, if no number follows it; else as extract_answer."""
    text = final_text(completion)
    last, formula = last_number(text), None
    for formula in FORMULA.finditer(text):  # noqa: B007
        pass
    if stated_answers(text) or not formula or (last and last.end() > formula.end()):
        return extract_answer(completion)
    content = next(filter(None, formula.groups()))
    # "5 toys in $x$ hours"
    if DIGIT.search(gold) and not DIGIT.search(content):
        return extract_answer(completion)
    return None if is_part(text, formula.start()) else content


class _TimeLimit(BaseException):
    """Not an Exception: sympy and math-verify catch every Exception on the way."""


def _start_worker():
    # The import takes a second; here it does not count against an answer's time limit
    import math_verify  # noqa: F401

    # Without its own time limit math-verify warns; the limit is the signal's, below
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    signal.signal(signal.SIGALRM, _raise_time_limit)


def _raise_time_limit(signum, frame):
    raise _TimeLimit


def _verify_one(gold, answer, time_limit_seconds):
    """1.0, 0.0, or NaN without a verdict. Runs in a worker."""
    try:
        return _compare(gold, answer, time_limit_seconds)
    # sympy's exceptions have no narrower base class
    except (_TimeLimit, Exception) as error:
        logging.warning("math-verify has no verdict on %.80r: %r", answer, error)
        return math.nan


def _compare(gold, answer, time_limit_seconds):
    from math_verify import parse, verify

    signal.setitimer(signal.ITIMER_REAL, time_limit_seconds)
    try:
        gold, answer = (parse(x, parsing_timeout=None, raise_on_error=True) for x in (gold, answer))
        if not gold:
            raise ValueError("the gold answer is not one that math-verify can read")
        # verify is not symmetric: the gold answer comes first
        return float(verify(gold, answer, timeout_seconds=None, raise_on_error=True))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _as_math(text):
    # math-verify reads LaTeX only between dollar signs or in another environment
    return text if "$" in text else f"${text}$"
