"""No completion runs in our process, exceeds a limit, or earns what it did not answer."""

import functools
import math
import sys

import numpy as np
import pytest

from deepseek_jax.rewards import MathVerifier
from deepseek_jax.rewards.program import ProgramVerifier
from deepseek_jax.worlds.registry import all_rules, open_rewards
from tests.quick import others_slow
from tests.reliability.hostile import PROGRAMS, TEXTS, texts
from tests.rewards.programs import fenced, works

EXAMPLE = {"question": "What is 1 + 2?", "answer": "3", "language": "en", "key": "3"}
EXAMPLE |= {"kind": "lookup"}
# A rule of a verifier scores in other processes
OWN = {name: rule.score for name, rule in all_rules().items() if rule.verifier is None}
# These pay for the answer; the others pay for a form, or for a language
PAY_ANSWERS = ("exact_answer", "correct", "correct_reasoning", "correct_working", "puzzle_answer")
FORMS = ("%s", r"\boxed{%s}", "<answer>%s</answer>", "#### %s")
# Beginnings of the names of Python's audit events; ast.parse, which runs nothing, raises "compile"
RUNS = ("exec", "import", "open", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.")
PRINTS_42 = [{"input": "", "output": "42"}]
seen = None


@pytest.fixture(scope="module", autouse=True)
def audit():
    """Collect in `seen`, where it is a list, every event of RUNS in this process."""

    def hook(event, arguments):
        if seen is not None and event.startswith(RUNS):
            seen.append((event, arguments))

    # Hooks cannot be removed: this one stays, and does nothing while seen is None
    sys.addaudithook(hook)
    for rule in OWN.values():
        rule("<think>3</think>3", EXAMPLE)  # what they import, they have imported


def watched(call):
    """(what call() returns, the events of RUNS during it)."""
    global seen
    seen = []
    try:
        return call(), seen
    finally:
        seen = None


def test_the_watch_sees_what_runs(tmp_path):
    """Oracle: by hand: without it the tests below would pass whatever happened."""
    assert [event for event, _ in watched(lambda: eval("1 + 2"))[1]] == ["exec"]
    assert watched(lambda: open(tmp_path / "x", "w").close())[1]


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_texts_run_nothing_and_earn_nothing(name, tmp_path):
    """Oracle: Python's audit events, of which there are none, and by hand: 0, or, for a form or a language, a
    share. A pattern that backtracks would take for ever.
    """
    text = texts(tmp_path / "was_here")[name]
    for rule, score in OWN.items():
        for form in FORMS if rule in PAY_ANSWERS else FORMS[:1]:
            value, events = watched(functools.partial(score, form % text, EXAMPLE))
            assert events == [], (rule, form)
            assert value == 0 if rule in PAY_ANSWERS else 0 <= value <= 1, (rule, form)
    assert not list(tmp_path.iterdir())


def test_math_verify_pays_no_hostile_text_and_keeps_its_limits(tmp_path):
    """Oracle: by hand: 0 or no verdict, which is counted; the file that some would make; and a verdict
    afterwards.
    """
    completions = [form % text for text in texts(tmp_path / "was_here").values() for form in FORMS]
    limits = dict(time_limit_seconds=0.2, batch_limit_seconds=5.0)
    with MathVerifier(num_workers=2, **limits) as verifier:
        scores = verifier.score(["3"] * len(completions), completions)
        unscored = sum(map(math.isnan, scores))
        assert unscored == verifier.timeouts > 0
        assert all(score == 0 or math.isnan(score) for score in scores)
        assert verifier.score(["3"], [r"\boxed{\sqrt{9}}"]) == [1.0]
    assert not list(tmp_path.iterdir())


def test_ten_megabytes_are_not_scored_and_counted():
    """Oracle: by hand: no reward is paid, its neighbour is, and the message says why."""
    names = ("exact_answer", "correct", "correct_working", "true_equations", "math_verify")
    with open_rewards(dict.fromkeys(names, 1.0)) as rewards:
        for text in ("so ", "\\boxed{3}"):
            completions = [text * (10 * 2**20 // len(text)), "1 + 2 = 3"]
            scores = rewards.score([EXAMPLE] * 2, completions)
            np.testing.assert_array_equal(scores.total, np.float32([np.nan, 5]))
            assert scores.errors == 1 and "rules read at most 1048576" in scores.messages[0]


@pytest.fixture(scope="module", params=["pydantic-monty", "bubblewrap"])
def sandboxed(request):
    if request.param == "bubblewrap" and not works("bubblewrap"):
        pytest.skip("bubblewrap does not work here")
    with ProgramVerifier(sandbox=request.param, num_workers=2, time_limit_seconds=2.0) as verifier:
        verifier.score([PRINTS_42], [fenced("print(42)")])  # starts the workers
        yield verifier


# What uses its time up: tests/rewards/test_program.py has one such program, and the others here do so too
HUNG = ("endless_loop", "big_integer", "endless_print")


@pytest.mark.parametrize("name", others_slow(PROGRAMS, *(PROGRAMS.keys() - HUNG)))
def test_hostile_programs_earn_nothing_and_leave_the_sandbox_whole(sandboxed, name):
    """Oracle: by hand: 0, or no verdict where monty has not what the attack needs; a right program
    beside it and one after it pass.
    """
    right = fenced("print(6 * 7)")
    scores = sandboxed.score([PRINTS_42] * 2, [fenced(PROGRAMS[name]), right])
    assert scores[0] == 0.0 or sandboxed.sandbox == "pydantic-monty"
    assert scores[0] == 0.0 or "is not all of Python" in str(scores[0])
    assert scores[1:] + sandboxed.score([PRINTS_42], [right]) == [1.0, 1.0]
