"""Compare answers as mathematics, LaTeX and symbols included: math-verify in worker processes.

math-verify stops a long calculation with a signal, which works only in a main thread, and it passes
an answer such as 9^{9^{9^9}} to sympy. So it runs in processes that import no jax and may be
killed.
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

# $...$, \(...\) and \[...\]. A match has no other opening mark of its kind, so the search takes
# linear time
FORMULA = re.compile(r"\$\$?([^$]+)\$|\\\(((?:(?!\\\().)+?)\\\)|\\\[((?:(?!\\\[).)+?)\\\]", re.S)
DIGIT = re.compile(r"\d")
# Number of answers that may take batch_limit_seconds together
BATCH = 256
# Number of answers that start together, before the CPU time of any of them is known
WAVE = 8
WALL_LIMIT_SECONDS = 600.0


class MathVerifier(WorkerPool):
    """Pool of processes that score answers with math-verify, under limits of time.

    The limits are CPU time, so that a busy machine gives the same verdicts.

    Args:
        num_workers: Number of processes.
        time_limit_seconds: Limit for one answer.
        batch_limit_seconds: Limit for each 256 answers of a batch, or for fewer at its end. Answers
            that are equal as they stand do not count. Without this limit, a policy that has learned
            to write 9^{9^{9^9}} would take time_limit_seconds with each answer.

    Attributes:
        timeouts: Number of answers without a verdict: a limit was exceeded, a worker died, or
            math-verify raised an exception.

    Raises:
        ValueError: If the math-verify package is not installed.
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
            # Ends a worker that waits and computes nothing
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

        A completion's answer is the one that it marks (\boxed{...}, <answer>, ####), or else its
        last formula or number; see answer.extract_answer. It is compared only if math-verify reads
        all of it, see latex.readable. Other answers are wrong, and so are two answers that differ.

        Args:
            golds: The right answers (str).
            completions: One completion (str) for each gold answer.
            questions: One question (str) or None for each gold answer. If it asks for a percentage,
                a % after a number does not count.

        Returns:
            A list of float: 1.0 for equal, 0.0 for not equal, NaN without a verdict (see
            `timeouts`).

        Raises:
            ValueError: As answer.gold_answer does, and if the lists differ in length.
        """
        scores, jobs = {}, {}
        rows = zip(golds, completions, questions or [None] * len(golds), strict=True)
        for i, (gold, completion, question) in enumerate(rows):
            gold = gold_answer(dict(answer=gold))
            verdict, answer = _first_look(completion, gold, question)
            if answer is None:
                scores[i] = verdict
            else:
                jobs[i] = (_as_math(canonical(gold)), answer, self.time_limit_seconds)
        scores |= self._verdicts(jobs)
        self.timeouts += sum(map(math.isnan, scores.values()))
        return [scores[i] for i in range(len(scores))]

    def _verdicts(self, jobs):
        """Return i -> verdict of math-verify, or NaN without one.

        It works in waves, so that all machines stop at the same answer.
        """
        limit_seconds = self.batch_limit_seconds * math.ceil(len(jobs) / BATCH)
        verdicts, used_seconds, order = dict.fromkeys(jobs, math.nan), 0.0, list(jobs)
        for start in range(0, len(order), WAVE):
            if used_seconds > limit_seconds:
                break
            wave = {i: jobs[i] for i in order[start : start + WAVE]}
            results = self.run(wave)
            verdicts |= {i: verdict for i, (verdict, _) in results.items()}
            num_lost = len(wave) - len(results)
            used_seconds += (
                sum(seconds for _, seconds in results.values()) + num_lost * self.time_limit_seconds
            )
        return verdicts


def is_unread(completion: str, example: Mapping):
    """Return True if `completion` states something that neither the rules nor math-verify read.

    Such a completion is wrong.
    """
    gold, question = gold_answer(example), example.get("question")
    if contradicts(completion, question):
        return False
    answer = _stated(completion, gold, question)
    if answer is None:
        return bool(DIGIT.search(final_text(completion)))
    is_compared = same_answer(answer.text, gold, question) or _is_compared(answer, gold, question)
    return not is_compared and readable(answer.text, gold, question) is None


def _first_look(completion, gold, question):
    """Return (score, None) if no mathematics is needed, else (None, formula for math-verify).

    The score is 1.0 or 0.0.
    """
    # This also finds answers that math-verify cannot read, such as the option A
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
    """Return True if both are numbers without a %, which the rules compare exactly.

    math-verify takes 0.10000001 for 0.1.
    """
    gold_quantity = read_quantity(gold, question, lead=False)
    if answer.quantity is None or gold_quantity is None:
        return False
    return "%" not in (answer.quantity.unit, gold_quantity.unit)


def _stated(completion, gold, question):
    r"""Return the Answer of a completion, or None.

    If nothing marks an answer, it is the last formula, such as $\frac{\sqrt{3}}{2}$, if no number
    follows. None means that there is no answer, or that it is a part of something else.
    """
    text, formula = final_text(completion), None
    for formula in FORMULA.finditer(text):  # noqa: B007
        pass
    if not formula or stated_answers(text, question) or DIGIT.search(text, formula.end()):
        return read_answer(completion, question)
    content = next(filter(None, formula.groups()))
    # In "5 toys in $x$ hours" the formula is not the answer
    if (DIGIT.search(gold) and not DIGIT.search(content)) or read_quantity(content) is not None:
        return read_answer(completion, question)
    # Put a number in the formula's place, to see if the words around it leave it whole
    quantity = last_quantity(f"{text[: formula.start()]} 2 {text[formula.end() :]}")
    is_whole = quantity is not None and quantity.amounts() == {2}
    return Answer(content, None, None) if is_whole else None


class _TimeLimit(BaseException):
    """Time limit of an answer. Not an Exception: sympy and math-verify catch every Exception."""


def _start_worker():
    # The import takes a second; here it does not count against an answer's time limit
    import math_verify  # noqa: F401

    # math-verify warns because it gets no time limit; the signal below sets the limit
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    signal.signal(signal.SIGPROF, _raise_time_limit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _raise_time_limit(signum, frame):
    raise _TimeLimit


def _verify_one(gold, answer, time_limit_seconds):
    """Compare two formulas, in a worker.

    Returns:
        (1.0, 0.0, or NaN without a verdict; the CPU seconds that it took).
    """
    began = time.process_time()
    try:
        verdict = _compare(gold, answer, time_limit_seconds)
    # Exceptions of sympy have no narrower base class
    except (_TimeLimit, Exception) as error:
        logging.warning("math-verify has no verdict on %.80r: %r", answer, error)
        verdict = math.nan
    return verdict, time.process_time() - began


def _compare(gold, answer, time_limit_seconds):
    from math_verify import parse, verify

    signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
    # The signal stops a calculation in Python; this limit ends a process that stays in C code
    cpu_limit = math.ceil(time.process_time() + 2 * time_limit_seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
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
