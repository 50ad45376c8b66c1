"""Reward for programs: run the last program in a completion on its test cases, in a sandbox.

example["test_cases"] is a list of these:

- {"input": str, "output": str}: the program's output on that standard input. It is compared line by
  line, without white space at the ends of lines and of the text. The outputs never enter the
  sandbox.
- str: assert statements about the program's definitions. They run after it in the same process,
  where an object that equals everything passes. Prefer inputs and outputs where you have them.
"""

import ast
import atexit
import os
import secrets
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deepseek_jax.rewards.bubblewrap import BubblewrapSandbox
from deepseek_jax.rewards.marks import final_text
from deepseek_jax.rewards.monty import MontySandbox
from deepseek_jax.rewards.sandbox import TIME_LIMIT, SandboxError
from deepseek_jax.rewards.workers import WorkerPool

PASSED, WRONG, NO_PROGRAM, ERROR = "passed", "wrong", "no_program", "error"
# Tried in this order: bubblewrap runs all of Python, monty runs wherever its wheel installs
SANDBOXES = {sandbox.name: sandbox for sandbox in (BubblewrapSandbox, MontySandbox)}
LABELS = ("python", "python3", "py")


class ProgramVerifier(WorkerPool):
    """Pool of processes that score programs, each process with a sandbox.

    Args:
        sandbox: A name of SANDBOXES, or None for the first one that works.
        num_workers: Number of processes, or None for one per CPU.
        time_limit_seconds: Limit for all cases of a completion together.

    Attributes:
        outcomes: A Counter of the results: passed, wrong, crashed, time_limit, no_program, and
            error where the sandbox failed.

    Raises:
        ValueError: If no sandbox works, see `find_sandbox`.
    """

    def __init__(
        self,
        *,
        sandbox: str | None = None,
        num_workers: int | None = None,
        time_limit_seconds: float = 10.0,
    ):
        self.sandbox = find_sandbox() if sandbox is None else find_sandbox([sandbox])
        super().__init__(
            _judge,
            _start_worker,
            self.sandbox,
            num_workers=num_workers or os.cpu_count() or 1,
            wall_limit_seconds=2 * time_limit_seconds + 5,
        )
        self.time_limit_seconds = time_limit_seconds
        self.outcomes: Counter[str] = Counter()

    def score(self, test_cases: Sequence, completions: Sequence[str]):
        """Run the program of each completion on its test cases.

        Args:
            test_cases: For each completion a list, see check_test_cases.
            completions: The completions (str).

        Returns:
            A list: 1.0 if every case passes; 0.0 if a case fails, or if there is no program, or it
            crashed or hung; the exception if the sandbox failed, so that there is no verdict.
        """
        outcomes, jobs = {}, {}
        for i, (cases, completion) in enumerate(zip(test_cases, completions, strict=True)):
            program = extract_program(completion)
            if program is None:
                outcomes[i] = NO_PROGRAM
            else:
                jobs[i] = (program, cases, self.time_limit_seconds)
        lost_error = SandboxError("the process that ran the sandbox died, or hung")
        # `run` has no result for a call that killed its worker
        outcomes |= dict.fromkeys(jobs, lost_error) | self.run(jobs)
        error_flags = [isinstance(outcomes[i], BaseException) for i in range(len(outcomes))]
        self.outcomes.update(
            ERROR if is_error else outcomes[i] for i, is_error in enumerate(error_flags)
        )
        return [
            outcomes[i] if is_error else float(outcomes[i] == PASSED)
            for i, is_error in enumerate(error_flags)
        ]


def find_sandbox(names: Iterable[str] = tuple(SANDBOXES)) -> str:
    """Return the first of `names` that names a sandbox in which a program can run here.

    Raises:
        ValueError: If there is none, with the reason for each name.
    """
    reasons = []
    for name in names:
        try:
            sandbox = SANDBOXES[name]()
            try:
                # An installed sandbox may still fail, as bwrap does where it cannot make namespaces
                printed, failure = sandbox.run("print(int(input()) + 1)", "41\n", 10.0)
            finally:
                sandbox.close()
            if (printed.strip(), failure) == ("42", None):
                return name
            reasons.append(f"{name}: a program that prints 42 printed {printed!r} ({failure})")
        except (SandboxError, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise ValueError(
        "the reward 'program' runs a model's programs and needs a sandbox: pip install "
        f"pydantic-monty, or leave this reward out. {'; '.join(reasons)}."
    )


def extract_program(completion: str) -> str | None:
    """Return the last closed ```python block after the last </think>, or None."""
    text = final_text(completion)
    # Tags become line breaks, so a fence right after a tag still begins its line
    text = text.replace("<answer>", "\n").replace("</answer>", "\n")
    program, label = None, None
    block: list[str] = []
    for line in text.split("\n"):
        stripped_line = line.strip()
        if label is not None and stripped_line == "```":
            if label in LABELS:
                # A block in a list is indented as a whole
                program = textwrap.dedent("\n".join(block))
            label = None
        elif stripped_line.startswith("```"):
            label, block = stripped_line.removeprefix("```").strip().lower(), []
        else:
            block.append(line)
    return program


def check_test_cases(example: Mapping):
    """Raise ValueError unless example["test_cases"] can tell a right program from an empty one."""
    cases = example.get("test_cases")
    if not isinstance(cases, (list, tuple)) or not cases or not all(map(_is_case, cases)):
        problem = f"has {cases!r:.200}"
    elif not any(isinstance(case, str) or case["output"].strip() for case in cases):
        problem = "expects no output in any case, which an empty program gives"
    else:
        return
    raise ValueError(
        "every question needs 'test_cases', a list of "
        '{"input": str, "output": str} or of assert statements; '
        f"{example.get('question')!r} {problem}. Correct the data, or leave this reward out."
    )


def _is_case(case):
    if not isinstance(case, str):
        return isinstance(case, dict) and all(
            isinstance(case.get(k), str) for k in ("input", "output")
        )
    try:
        return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(case)))
    except (SyntaxError, ValueError):
        return False


# Set in each worker process
_sandbox: BubblewrapSandbox | MontySandbox


def _start_worker(name):
    global _sandbox
    _sandbox = SANDBOXES[name]()
    atexit.register(_sandbox.close)


def _judge(program, cases, time_limit_seconds):
    """Run the program on the cases, in a worker, and return the outcome.

    It stops at the first case that fails.
    """
    deadline = time.monotonic() + time_limit_seconds
    runs = [(program, case["input"], case["output"]) for case in cases if not isinstance(case, str)]
    asserts = [case for case in cases if isinstance(case, str)]
    values: list = []
    # The program cannot guess the word, so the word in the output shows that the asserts passed.
    # Only a program that reads the file of the asserts can print it all the same
    if asserts:
        word = secrets.token_hex(16)
        rewritten = [_without_literals(case, word) for case in asserts]
        asserts = [code for code, _ in rewritten]
        values = [value for _, own_values in rewritten for value in own_values]
        runs.append(("\n".join([program, "", *asserts, "print()", f"print({word!r})"]), "", word))
    for source, stdin, expected in runs:
        remaining_seconds = deadline - time.monotonic()
        printed, failure = (
            _sandbox.run(source, stdin, remaining_seconds)
            if remaining_seconds > 0
            else ("", TIME_LIMIT)
        )
        if failure is not None:
            return failure
        lines = _lines(printed)
        if asserts and expected == word:
            # The program may print before the asserts, so only the values and the last line count
            if not _are([x for x in lines if x.startswith(word)][:-1], word, values):
                return WRONG
            lines = lines[-1:]
        if lines != _lines(expected):
            return WRONG
    return PASSED


def _without_literals(case, word):
    """Rewrite a case so that its literals are compared outside of the sandbox.

    `assert LEFT == LITERAL` becomes code that prints the word and LEFT. In the sandbox an object
    that equals everything would pass, and a program could read the literal.

    A Counter and other kinds of dict count as dicts. Other objects that equal a literal, such as a
    Decimal, do not pass. Asserts of other forms are decided in the sandbox, where a hostile program
    can pass them.

    Returns:
        (code of the case, list of the literals' values).
    """
    tree, values = ast.parse(case), []
    for index, node in enumerate(tree.body):
        match node:
            case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
                try:
                    values.append(ast.literal_eval(right))
                except ValueError:
                    continue
                left_code = (
                    f"(lambda x: dict(x) if isinstance(x, dict) else x)({ast.unparse(left)})"
                )
                print_code = f"print({chr(10) + word!r} + repr({left_code}))"
                tree.body[index] = ast.parse(print_code).body[0]
    return ast.unparse(tree), values


def _are(lines, word, values):
    """Return True if the lines show these values. A line that is no literal shows none."""
    try:
        return [ast.literal_eval(line.removeprefix(word)) for line in lines] == values
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _lines(text):
    return [line.rstrip() for line in text.rstrip().split("\n")]
