r"""Mathematical equality of answers, LaTeX and symbols included: math-verify in worker processes.

math-verify stops a long calculation with a signal, which works in no thread, and hands an answer
such as 9^{9^{9^9}} to sympy: hence processes, which import no jax and can be lost without loss.
"""

import faulthandler
import importlib.util
import logging
import math
import multiprocessing
import os
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from deepseek_jax.rewards.answer import gold_answer, marked_answer, same_answer

WORKER_BYTES = 4 * 2**30


class MathVerifier:
    """Scores answers in `num_workers` processes, with a time limit for each answer.

    Use it as a context manager, or call close(). `timeouts` counts the answers without a verdict:
    past time_limit_seconds, or its worker died, or math-verify raised. The processes start by
    "spawn", which imports the main script again: keep that behind `if __name__ == "__main__"`.
    Raises ValueError where the math-verify package is not installed.
    """

    def __init__(self, *, num_workers=2, time_limit_seconds=5.0):
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "the reward 'math_verify' needs a package: pip install math-verify, or take it out "
                "of config.rewards."
            )
        self.num_workers, self.time_limit_seconds = num_workers, time_limit_seconds
        self.timeouts = 0
        self._pool = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End the worker processes. The next score() starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def score(self, golds, completions):
        r"""Compare each completion's answer with its gold answer.

        golds, completions: lists of str. A completion's answer is the one it marks (\boxed{...},
        <answer>, ####), else whatever math-verify finds in its text.
        Returns a list of float: 1.0 equal, 0.0 not, NaN without a verdict (see `timeouts`).
        """
        scores, pairs = {}, {}
        for i, (gold, completion) in enumerate(zip(golds, completions, strict=True)):
            gold, answer = gold_answer(dict(answer=gold)), marked_answer(completion)
            if answer is not None and same_answer(answer, gold):
                scores[i] = 1.0  # also what math-verify cannot read, such as the option A
            else:
                pairs[i] = (_as_math(gold), completion if answer is None else _as_math(answer))
        scores |= self._verify(pairs)
        for i in pairs.keys() - scores.keys():  # lost with a worker: alone, a culprit names itself
            scores |= {i: math.nan} | self._verify({i: pairs[i]})
        self.timeouts += sum(map(math.isnan, scores.values()))
        return [scores[i] for i in range(len(scores))]

    def _verify(self, pairs):
        """Scores of `pairs`, without those that were under way or waiting when a worker died."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num_workers, spawn, _start_worker)
        scores, futures = {}, {}
        try:
            for i, pair in pairs.items():
                futures[i] = self._pool.submit(_verify_one, *pair, self.time_limit_seconds)
            for i, future in futures.items():
                scores[i] = future.result()
        except BrokenProcessPool:
            done = [i for i, f in futures.items() if f.done() and not f.exception()]
            scores |= {i: futures[i].result() for i in done}
            self.close()
        return scores


class _TimeLimit(BaseException):
    """Not an Exception: sympy and math-verify catch those on the way."""


def _start_worker():
    import math_verify  # noqa: F401  (a second, which no answer's time limit should pay for)

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we keep the time
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    signal.signal(signal.SIGALRM, _raise_time_limit)


def _raise_time_limit(signum, frame):
    raise _TimeLimit


def _verify_one(gold, answer, time_limit_seconds):
    """1.0, 0.0, or NaN without a verdict. Runs in a worker."""
    with open(os.devnull, "w") as nowhere:
        # A signal waits for the end of one long step in C; this watchdog ends the worker instead.
        faulthandler.dump_traceback_later(2 * time_limit_seconds + 1, exit=True, file=nowhere)
        try:
            return _compare(gold, answer, time_limit_seconds)
        except (_TimeLimit, Exception) as error:  # what sympy raises has no narrower type
            logging.warning("math-verify has no verdict on %.80r: %r", answer, error)
            return math.nan
        finally:
            faulthandler.cancel_dump_traceback_later()


def _compare(gold, answer, time_limit_seconds):
    from math_verify import parse, verify

    signal.setitimer(signal.ITIMER_REAL, time_limit_seconds)
    try:
        gold, answer = (parse(x, parsing_timeout=None, raise_on_error=True) for x in (gold, answer))
        if not gold:
            raise ValueError("the gold answer is not one that math-verify can read")
        return float(verify(gold, answer, timeout_seconds=None, raise_on_error=True))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _as_math(text):
    return text if "$" in text else f"${text}$"
