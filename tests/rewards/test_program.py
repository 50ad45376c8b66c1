"""Programs in real sandboxes: right and wrong ones, and sandboxes that fail."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from deepseek_jax.rewards import Rewards
from deepseek_jax.rewards.bubblewrap import BubblewrapSandbox
from deepseek_jax.rewards.program import (
    ProgramVerifier,
    check_test_cases,
    extract_program,
    find_sandbox,
)
from deepseek_jax.rewards.sandbox import SandboxError
from tests.reliability.hostile import PROGRAMS as HOSTILE
from tests.rewards.programs import ONLY_IN_PYTHON, PROGRAMS, WRONG, fenced, works

NEXT = [{"input": f"{n}\n", "output": f"{n + 1}\n"} for n in (1, 10, -1)]
PRINTS_42 = [{"input": "", "output": "42"}]


@pytest.fixture(scope="module", params=["pydantic-monty", "bubblewrap"])
def verifier(request):
    if request.param == "bubblewrap" and not works("bubblewrap"):
        pytest.skip("bubblewrap does not work here")
    with ProgramVerifier(sandbox=request.param, num_workers=2, time_limit_seconds=3.0) as verifier:
        verifier.score([NEXT], [fenced("print(int(input()) + 1)")])  # starts the workers
        yield verifier


def plain_python(program, stdin):
    """What the program prints under this interpreter, with no sandbox."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", program],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def in_plain_python(programs):
    return [
        [{"input": stdin, "output": plain_python(program, stdin)} for stdin in inputs]
        for program, inputs in programs
    ]


def test_each_cpu_gets_a_process_unless_it_is_said_otherwise(monkeypatch):
    """Oracle: by hand."""
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert [ProgramVerifier(num_workers=given).num_workers for given in (None, 2)] == [3, 2]


def test_right_programs_pass_on_what_plain_python_prints(verifier):
    """Oracle: a plain subprocess. Against another program's cases each of them fails."""
    programs = list(PROGRAMS.values())
    cases = in_plain_python(programs)
    completions = [fenced(program) for program, _ in programs]
    assert verifier.score(cases, completions) == [1.0] * len(programs)
    assert verifier.score(cases[1:] + cases[:1], completions) == [0.0] * len(programs)


def test_what_monty_has_not_is_no_wrong_program(verifier):
    """Oracle: a plain subprocess; the reason names the sandbox that can run it."""
    programs = list(ONLY_IN_PYTHON.values())
    scores = verifier.score(in_plain_python(programs), [fenced(p) for p, _ in programs])
    if verifier.sandbox == "bubblewrap":
        assert scores == [1.0] * len(programs)
    else:
        assert all(isinstance(score, SandboxError) for score in scores)
        assert all("install bubblewrap" in str(score) for score in scores)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_score_0(verifier, name):
    """Oracle: by hand."""
    program, outcome = WRONG[name]
    before = verifier.outcomes[outcome]
    assert verifier.score([NEXT], [fenced(program)]) == [0.0]
    assert verifier.outcomes[outcome] == before + 1


def test_hung_programs_are_counted(verifier):
    """Oracle: by hand."""
    before = verifier.outcomes["time_limit"]
    assert verifier.score([PRINTS_42], [fenced(HOSTILE["endless_loop"])]) == [0.0]
    assert verifier.outcomes["time_limit"] == before + 1


def test_the_time_limit_is_for_all_cases_together(verifier):
    """Oracle: by hand: 100 cases, each right after 0.5 s, do not pass within a limit of 3 s."""
    program = (
        "import time\nstart = time.time()\nwhile time.time() < start + 0.5:\n    pass\nprint(42)"
    )
    before = verifier.outcomes["time_limit"]
    assert verifier.score([PRINTS_42 * 100], [fenced(program)]) == [0.0]
    assert verifier.outcomes["time_limit"] == before + 1


ASSERTS = ["assert add(2, 3) == 5", "x = add(1, 1)\nassert x == 2, 'one and one'"]


@pytest.mark.parametrize(
    "program, score",
    [
        ("def add(a, b):\n    return a + b", 1.0),
        ("def add(a, b):\n    print('adding', end='')\n    return a + b", 1.0),
        ("def add(a, b):\n    return a * b", 0.0),
        ("def add(a, b):\n    return 5", 0.0),
        ("def plus(a, b):\n    return a + b", 0.0),
        ("raise SystemExit", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("def add(a, b):\n    raise SystemExit", 0.0),
        ("x = '''", 0.0),
        ("if True:\n    pass\nelse:", 0.0),
        ("import sys\nprint(sys.stdin.read())\nexit()", 0.0),
    ],
)
def test_assert_statements_are_test_cases(verifier, program, score):
    """Oracle: by hand. A program that ends before the asserts are reached does not pass."""
    assert verifier.score([ASSERTS], [fenced(program)]) == [score]
    assert verifier.score([ASSERTS + PRINTS_42], [fenced(program + "\nprint(42)")])[0] in (
        0.0,
        score,
    )


READS_ITSELF = """
import os, re, sys
try:
    text = open(__file__).read() + open('/proc/self/cmdline').read()
except Exception:
    text = repr(sys._getframe().f_code.co_consts)
for word in re.findall("[0-9a-f]{32}", text)[-1:]:
    print()
    print(word, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    "program",
    [
        "class E:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return E()",
        READS_ITSELF,
        "import sys, os\nw = [c for c in sys._getframe().f_code.co_consts if len(str(c)) == 32]\n"
        "print()\nprint(w[-1], flush=True)\nos._exit(0)",
    ],
)
def test_an_assert_pays_no_object_that_equals_everything_and_no_word_read_from_the_file(
    verifier, program
):
    """Oracle: by hand: 0, or no verdict where monty has not what the attack needs."""
    (score,) = verifier.score([ASSERTS[:1]], [fenced(program)])
    assert score == 0.0 or "is not all of Python" in str(score)


def test_white_space_at_the_ends_of_lines_is_no_difference(verifier):
    """Oracle: by hand; within a line, and at its start, it is one."""
    cases = [
        [{"input": "", "output": output}]
        for output in ("1 2\n3", "1 2 \n3\n\n", "1  2\n3", " 1 2\n3")
    ]
    completions = [fenced("print(1, 2)\nprint(3, '')")] * 4
    assert verifier.score(cases, completions) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "completion, program",
    [
        ("```python\na\n```", "a"),
        ("```py\na\nb\n```\n", "a\nb"),
        ("```python\na\n```\nor\n```python\nb\n```", "b"),
        ("```python\na\n```\ngives\n```\n5\n```", "a"),
        ("<think>```python\na\n```</think> none", None),
        ("<think>\n```python\na\n```\n</think>\n<answer>```python\nb\n```</answer>", "b"),
        ("1. so\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b"),
        ("```python\na", None),
        ("```python\na\n```\n```python\nb", "a"),
        ("```\na\n```", None),
        ("```text\na\n```", None),
        ("print(42)", None),
        ("", None),
    ],
)
def test_the_program_is_the_last_closed_python_block_of_the_answer(completion, program):
    """Oracle: by hand."""
    assert extract_program(completion) == program


def test_a_completion_without_a_program_scores_0_and_is_counted(verifier):
    """Oracle: by hand."""
    before = verifier.outcomes["no_program"]
    assert verifier.score([NEXT, NEXT], ["42", ""]) == [0.0, 0.0]
    assert verifier.outcomes["no_program"] == before + 2


def test_workers_killed_at_work_cost_no_verdict_of_others():
    """Oracle: by hand. All workers die at the endless program, which is then tried again alone."""
    others = set(multiprocessing.active_children())

    def kill():
        for process in set(multiprocessing.active_children()) - others:
            os.kill(process.pid, signal.SIGKILL)

    with ProgramVerifier(
        sandbox="pydantic-monty", num_workers=1, time_limit_seconds=1.5
    ) as verifier:
        verifier.score([PRINTS_42], [fenced("print(42)")])
        killer = threading.Timer(0.5, kill)
        killer.start()
        programs = [HOSTILE["endless_loop"], "print(42)", "print(41)"]
        assert verifier.score([PRINTS_42] * 3, map(fenced, programs)) == [0.0, 1.0, 0.0]
        killer.join()


@pytest.fixture
def fake_bwrap(monkeypatch):
    """A function that puts a `bwrap` with a given script first in the PATH."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # for the user that the sandbox runs as
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

        def make(script):
            path = Path(folder) / "bwrap"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

        yield make


@pytest.mark.parametrize(
    "script, message",
    [
        ("echo broken >&2; exit 1", "did not run: 'broken"),
        ("exit 0", "did not run"),
        ("sleep 60", "start"),
    ],
)
def test_a_broken_bubblewrap_is_an_error_and_no_0(fake_bwrap, script, message):
    """Oracle: by hand; a `bwrap` that fails, does nothing, or hangs, first in the PATH."""
    fake_bwrap(script)
    with pytest.raises(SandboxError, match=message):
        BubblewrapSandbox().run("print(42)", "", 1.0)


def test_where_bubblewrap_is_broken_monty_takes_over(fake_bwrap):
    """Oracle: by hand."""
    fake_bwrap("exit 1")
    assert find_sandbox() == "pydantic-monty"


def test_a_sandbox_that_breaks_during_a_run_is_counted_and_not_scored(fake_bwrap):
    """Oracle: by hand; bwrap works when the verifier starts, and later fails."""
    if not works("bubblewrap"):
        pytest.skip("bubblewrap does not work here")
    with ProgramVerifier(sandbox="bubblewrap", num_workers=1) as verifier:
        fake_bwrap("exit 1")
        scores = verifier.score([PRINTS_42], [fenced("print(42)")])
    assert isinstance(scores[0], SandboxError) and verifier.outcomes == {"error": 1}


def test_without_any_sandbox_there_is_no_run(monkeypatch):
    """Oracle: the message; a PATH without bwrap, and an import system without pydantic_monty."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(ValueError, match="needs a sandbox: pip install pydantic-monty.*no bwrap"):
        Rewards({"program": 1.0})


@pytest.mark.parametrize(
    "cases",
    [
        None,
        [],
        "assert True",
        [{"input": "1"}],
        [{"input": "1", "output": 2}],
        ["add(2, 3) == 5"],
        ["assert add(2, 3 == 5"],
        [{"input": "1", "output": " \n"}],
    ],
)
def test_test_cases_that_test_nothing_are_an_error(cases):
    """Oracle: the message."""
    with pytest.raises(ValueError, match="every question needs 'test_cases'.*'Add'"):
        check_test_cases({"question": "Add", "test_cases": cases})


def test_good_test_cases_are_no_error():
    """Oracle: by hand; one case with an output is enough."""
    check_test_cases({"test_cases": [*NEXT, {"input": "", "output": ""}, *ASSERTS]})


WORKERS = """
import sys
import deepseek_jax.rewards
assert not {"jax", "pydantic_monty"} & {*sys.modules}
import deepseek_jax.rewards.math_verify, deepseek_jax.rewards.program
assert "jax" not in sys.modules
"""


def test_the_modules_that_workers_import_bring_no_jax_and_the_room_no_monty():
    """Oracle: sys.modules of a fresh interpreter."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert subprocess.run([sys.executable, "-c", WORKERS], cwd=root).returncode == 0
