"""Calls of tools and environments in workers: texts, errors, limits, and what a lost worker costs."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_jax.rewards.worker import WORKER_BYTES
from tests.environments.calls import act, begun, call, children, scored

HANG = "{} took more than call_seconds=0.5"
ELSEWHERE = "its environment ended with its worker: in another conversation {}"


def test_calls_of_a_turn_run_in_order_and_each_has_its_text():
    """Oracle: the functions, by hand: str() of what they return, as TRL passes it on."""
    with begun("multiply", "search") as made:
        calls = (
            call("multiply", a=2, b=3.5),
            call("search", text="a b c d"),
            call("multiply", a=1, b=1),
        )
        acted = act(made, 0, *calls)
    assert acted.texts == ["7.0", "['a', 'b', 'c']", "1"]
    assert (acted.errors, acted.ended, acted.failure) == (0, False, None)


def test_state_lives_as_long_as_its_conversation_and_no_other_sees_it():
    """Oracle: a sum by hand, for conversations that take turns in two workers."""
    with begun(environment="Counter", count=4, workers=2, columns={"first": 5}) as made:
        for round_ in range(3):
            for key in range(4):
                made.act(key, [call("add", number=key), call("above", number=7)])
            for key in range(4):
                count = 5 + key * (round_ + 1)
                assert made.acted(key).texts == [str(count), str(count > 7)]
        assert scored(made, 0) == 0.5


def test_what_reset_returns_comes_back_and_the_columns_reach_it():
    """Oracle: by hand."""
    with begun(environment="Counter", columns={"first": 1}) as made:
        texts = made.begin({5: ({"first": 2, "other": "x"}, 0), 7: ({"first": 3}, 0)})
    assert texts == {5: "The count is 2.", 7: "The count is 3."}
    with begun("multiply") as made:
        assert made.begin({3: ({"a": 1}, 0)}) == {3: None} and not made.has_state


@pytest.fixture(scope="module")
def failing():
    """Tools of which most raise."""
    with begun("multiply", "fail", "quit_python", "interrupt", "fail_oddly") as made:
        yield made


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("fail", {"text": "oh"}, "Error: KeyError: 'oh'"),
        ("fail", {"text": "o" * 900}, "Error: KeyError: '" + "o" * 482),
        ("quit_python", {}, "Error: SystemExit: bye"),
        ("interrupt", {}, "Error: KeyboardInterrupt: stop"),
        ("fail_oddly", {}, "Error: Unprintable"),
        ("nothing", {}, "Error: there is no tool nothing; there are: multiply, fail, quit_python"),
        ("multiply", {"a": 1}, "Error: multiply(a: float, b: float) -> float: missing a required"),
        ("multiply", {"a": 1, "b": 2, "c": 3}, "unexpected keyword argument 'c'"),
        ("multiply", {"a": None, "b": 2}, "Error: TypeError: unsupported operand type"),
    ],
)
def test_the_model_reads_what_was_wrong_with_its_call(failing, name, arguments, text):
    """Oracle: the texts; later calls of the turn run all the same."""
    acted = act(failing, 0, call(name, **arguments), call("multiply", a=2, b=2))
    assert text in acted.texts[0] and len(acted.texts[0]) <= 500
    assert acted.errors == 1 and acted.texts[1] == "4" and acted.failure is None


def test_a_call_that_hangs_ends_its_conversation_and_others_run_again():
    """Oracle: by hand: without an environment, only the conversation whose call it was has a failure."""
    with begun("multiply", "sleep", count=3, call_seconds=0.5) as made:
        made.act(0, [call("multiply", a=1, b=1)])
        made.act(1, [call("multiply", a=1, b=1), call("sleep", seconds=60)])
        made.act(2, [call("multiply", a=3, b=3)])
        first, second, third = (made.acted(key) for key in range(3))
        assert first.texts == ["1"] and third.texts == ["9"]
        assert (second.texts, second.errors, second.failure) == ([], 1, HANG.format("sleep"))
        assert second.seconds >= 0.5
        assert act(made, 0, call("multiply", a=2, b=2)).texts == ["4"]


def test_many_calls_that_end_their_process_lose_no_other():
    """Oracle: by hand: every tenth of 60 calls ends the one process, which waits for all of them."""
    with begun("multiply", "leave", count=60) as made:
        for key in range(60):
            made.act(key, [call("leave") if key % 10 == 5 else call("multiply", a=key, b=2)])
        for key in reversed(range(60)):
            acted, left = made.acted(key), key % 10 == 5
            assert acted.texts == ([] if left else [str(2 * key)])
            assert acted.failure == ("leave ended its process" if left else None)


def test_a_hang_costs_the_environments_of_its_worker_alone():
    """Oracle: by hand: the conversations of two workers are even and odd."""
    counter = dict(environment="Counter", columns={"first": 1}, workers=2, call_seconds=0.5)
    with begun(**counter, count=6) as made:
        made.act(1, [call("hang")])
        for key in (0, 2, 3, 4, 5):
            made.act(key, [call("add", number=1)])
        acted = {key: made.acted(key) for key in range(6)}
        assert acted[1].failure == HANG.format("hang") and acted[1].errors == 1
        for key in (3, 5):
            # A turn later, too
            for lost in (acted[key], act(made, key, call("add", number=1))):
                assert lost.failure == ELSEWHERE.format(HANG.format("hang"))
                assert (lost.texts, lost.errors) == ([], 0)
        assert all(acted[key].texts == ["2"] for key in (0, 2, 4))
        rewards = [scored(made, key) for key in range(6)]
        assert rewards[0::2] == [0.2, 0.2, 0.2]
        assert rewards[1] == f"there is no reward: {HANG.format('hang')}"
        assert rewards[3].endswith(ELSEWHERE.format(HANG.format("hang")))
        # The worker's next conversations have a process again
        assert made.begin({1: ({"first": 7}, 0)}) == {1: "The count is 7."}
        assert act(made, 1, call("add", number=1)).texts == ["8"]


def test_a_call_that_ends_its_process_costs_the_same():
    """Oracle: by hand; os._exit(3) in a tool and in an environment."""
    with begun("multiply", "leave", count=2) as made:
        made.act(0, [call("leave")])
        made.act(1, [call("multiply", a=2, b=2)])
        assert made.acted(0).failure == "leave ended its process"
        assert made.acted(1).texts == ["4"]
    with begun(environment="Counter", columns={"first": 1}, workers=2, count=4) as made:
        made.act(0, [call("add", number=1), call("leave")])
        assert made.acted(0).failure == "leave ended its process"
        acted = [act(made, key, call("add", number=1)) for key in (1, 2, 3)]
    assert acted[0].texts == acted[2].texts == ["2"]
    assert acted[1].failure == ELSEWHERE.format("leave ended its process")


def test_a_worker_that_dies_between_calls_loses_its_environments_and_no_run():
    """Oracle: SIGKILL to the process, whose id a tool tells, as a machine without memory sends it."""
    with begun("where", environment="Counter", columns={"first": 1}, count=2) as made:
        pid = int(act(made, 0, call("where")).texts[0].split()[0])
        os.kill(pid, 9)
        time.sleep(0.5)
        assert "its worker process ended" in act(made, 1, call("where")).failure
        assert "its worker process ended" in scored(made, 0)
        assert made.begin({0: ({"first": 7}, 0)}) == {0: "The count is 7."}
    with begun("where") as made:
        pid = int(act(made, 0, call("where")).texts[0].split()[0])
        os.kill(pid, 9)
        time.sleep(0.5)
        assert act(made, 0, call("where")).failure is None


def test_a_text_above_the_limit_ends_the_conversation_which_is_scored():
    """Oracle: by hand: bytes of UTF-8, not characters; calls after it do not run."""
    with begun("repeat", call_bytes=8) as made:
        assert act(made, 0, call("repeat", text="ö", times=4)).texts == ["öööö"]
        acted = act(made, 0, call("repeat", text="ö", times=5))
    assert acted.failure == "repeat returned 10 bytes, above call_bytes=8"
    assert (acted.texts, acted.errors) == ([], 1)
    counter = dict(environment="Counter", columns={"first": 1}, call_bytes=16)
    with begun("repeat", **counter) as made:
        acted = act(made, 0, call("repeat", text="a", times=99), call("add", number=5))
        assert "repeat returned 99 bytes" in acted.failure and scored(made, 0) == 0.1


def test_a_call_that_fills_the_memory_is_an_error():
    """Oracle: the limit of a worker."""
    with begun("repeat") as made:
        acted = act(made, 0, call("repeat", text="a", times=WORKER_BYTES))
    assert acted.texts == ["Error: MemoryError: "] and acted.errors == 1


def test_a_text_without_utf8_becomes_one_with_question_marks():
    """Oracle: by hand."""
    with begun("half_pair") as made:
        assert act(made, 0, call("half_pair")).texts == ["a?b"]


def test_workers_import_no_jax_and_print_nowhere(capfd):
    """Oracle: sys.modules of the worker, which a tool reads, and what this process has printed."""
    with begun("where") as made:
        pid, *heavy = act(made, 0, call("where")).texts[0].split()
    assert int(pid) != os.getpid() and heavy == ["[]"] and capfd.readouterr().out == ""


def test_user_code_is_not_imported_here():
    """Oracle: sys.modules of a process that has called a tool."""
    program = (
        "import sys\nfrom tests.environments.calls import begun, act, call\n"
        "if __name__ == '__main__':\n"
        "    with begun('multiply') as made: act(made, 0, call('multiply', a=1, b=1))\n"
        "    sys.exit(any(n in m for m in sys.modules for n in ('own_tools', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_512_conversations_take_as_many_processes_as_workers():
    """Oracle: the children of this process and their memory; each conversation has its own count."""
    others = children()
    with begun(environment="Counter", columns={"first": 1}, count=512, workers=2) as made:
        before = set(multiprocessing.active_children()) - others
        for key in range(512):
            made.act(key, [call("add", number=key)])
        assert all(made.acted(key).texts == [str(1 + key)] for key in range(512))
        assert len(before) == 2 and set(multiprocessing.active_children()) == before | others
        for child in before:
            fields = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            (kib,) = [int(line.split()[1]) for line in fields if line.startswith("VmRSS:")]
            assert kib < 100 * 1024
        assert scored(made, 511) == 51.2


def draws(order, workers=2):
    """{conversation: texts of two turns}, whose turns come in this order."""
    texts = {key: [] for key in order}
    with begun("draw_one", environment="Counter", columns={"first": 1}, workers=workers) as made:
        made.begin({key: ({"first": 1}, 100 + key) for key in order})
        for _ in range(2):
            for key in order:
                made.act(key, [call("draw_one"), call("draw")])
                texts[key] += made.acted(key).texts
    return texts


def test_random_numbers_are_those_of_the_conversation_in_every_run():
    """Oracle: the same conversations in another order, and in other workers. The draws of a turn, of turns
    and of conversations differ; texts are hashed alike.
    """
    first = draws(range(4))
    assert draws([3, 1, 0, 2]) == first == draws(range(4), workers=1)
    numbers = [text for texts in first.values() for text in texts]
    assert len(set(numbers)) == 16
