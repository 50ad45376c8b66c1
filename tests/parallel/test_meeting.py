"""How processes wait and agree, where threads stand for them; test_processes.py has real ones."""

import threading

import jax
import numpy as np
import pytest

from deepseek_jax.parallel import make_mesh, processes
from deepseek_jax.parallel.led import Led
from deepseek_jax.parallel.processes import (
    StopTogether,
    agreed,
    any_on,
    barrier,
    from_each,
    from_first,
    in_shares,
    results_of_each,
    say_mistake,
    total,
    total_on,
)
from tests.parallel.threads import SECONDS, Group


@pytest.fixture
def two(monkeypatch):
    return Group(monkeypatch)


def test_a_barrier_opens_once_all_have_come_and_again_by_the_same_name(two):
    """Oracle: by hand: the store takes each place once; half an hour is allowed."""
    assert two.each(lambda process: [barrier("both"), barrier("both")]) == [[None] * 2] * 2
    assert two.store.waits == {"barrier/both/1": 1_800_000, "barrier/both/2": 1_800_000}


def test_a_barrier_names_those_that_do_not_come(two):
    """Oracle: the message, of process 0, which alone came."""
    two.store.absent = True
    with pytest.raises(RuntimeError, match=r"waited 3 s, .* of 2 have not come: \[1\];"):
        barrier("one", seconds=3)
    assert two.store.waits == {"barrier/one/1": 3000}


@pytest.mark.parametrize(
    "messages, says", [(("same", "same"), [True, False]), (("one", "other"), [True, True])]
)
def test_a_mistake_that_all_make_is_said_once(two, messages, says):
    """Oracle: by hand: process 0 says it, and another one whose message differs; ten seconds are allowed."""
    assert two.each(lambda process: say_mistake(messages[process])) == says
    assert two.store.waits == {"mistake": 10_000}


def test_a_mistake_of_one_process_is_said_by_it(two):
    """Oracle: by hand: the others never come."""
    two.store.absent = True
    assert say_mistake("of 0") is True
    del two.store.values["mistake/0"]
    found = two.each(lambda process: process and say_mistake("of 1"))
    assert found == [0, True]


@pytest.mark.parametrize(
    "calls, at, first",
    [
        # Process 1 is asked in its sixth call, and all stop in the first call that nobody has passed
        (3, [6, 6], 3 * [False]),
        (8, [9, 9], 8 * [False]),
        # Process 0 has left after three calls
        (None, [None, 6], 3 * [False]),
    ],
)
def test_processes_stop_at_the_same_call(two, calls, at, first):
    """Oracle: by hand: process 0 makes so many calls before process 1 is asked, and then the rest."""
    ready, asked = threading.Event(), threading.Event()

    def work(process):
        turns = iter(range(1, 99))
        with StopTogether(lambda: process == 1 and next(turns) >= 6) as stops:
            listening = [t for t in threading.enumerate() if "_listen" in t.name]
            assert listening and all(thread.daemon for thread in listening)
            if process == 0:
                assert [stops() for _ in range(calls or 3)] == first
                if calls is None:
                    return None
                ready.set()
                assert asked.wait(SECONDS)
                return next(n for n in range(calls + 1, 99) if stops())
            assert ready.wait(SECONDS if calls else 0.05) == bool(calls)
            for call in range(1, 99):
                stopped = stops()
                if call == 6:
                    asked.set()
                if stopped:
                    return call

    assert two.each(work) == at
    assert set(two.store.waits.values()) == {1_800_000}


def test_one_process_stops_by_itself():
    """Oracle: by hand; nobody listens."""
    before = threading.active_count()
    with StopTogether(iter([False, True]).__next__) as stops:
        assert [stops(), stops()] == [False, True]
        assert threading.active_count() == before


@pytest.mark.parametrize("values, length", [(["abc", "abcdefg"], 16), (["abcdef", [1]], 8)])
def test_values_of_all_processes_come_to_each(two, values, length):
    """Oracle: the values; by hand, the length that texts of 5 and 9, and of 8 and 3, bytes are padded to."""
    assert two.each(lambda process: from_each(values[process])) == [values] * 2
    assert two.gathered == [(), (), (length,), (length,)]
    again = two.each(lambda process: from_each(process))
    assert again == [[0, 1]] * 2


def test_who_has_not_come_to_an_exchange_is_named(two, monkeypatch, capsys):
    """Oracle: by hand: the first exchange, to which process 1 comes late; in the second nobody is missing."""

    class AtOnce(threading.Timer):
        def start(self):
            assert self.daemon and self.interval == 5
            self.function()

    monkeypatch.setattr(processes.threading, "Timer", AtOnce)
    for number, missing in ((1, [1]), (2, [])):
        if number == 2:
            two.store.values["exchange/1"] = "2"
        with processes._naming_who_is_missing(5):
            pass
        assert f"of 2 have not come: {missing}; look" in capsys.readouterr().err
    assert two.store.values["exchange/0"] == "2"


def test_work_is_shared_and_its_results_come_in_order(two):
    """Oracle: the squares; by hand, whose rows are whose."""
    own = {}

    def work(process):
        def square(rows):
            own[process] = list(rows)
            return [row**2 for row in rows]

        return in_shares(square, 5)

    assert two.each(work) == [[0, 1, 4, 9, 16]] * 2
    assert own == {0: [0, 2, 4], 1: [1, 3]}


def test_a_failure_of_one_is_raised_by_all(two):
    """Oracle: by hand: the process itself raises what it met, and the others say so."""
    found = two.each(lambda process: in_shares(lambda rows: [1 // (1 - process)], 2))
    assert isinstance(found[1], ZeroDivisionError) and isinstance(found[0], RuntimeError)
    assert "process 1 failed: ZeroDivisionError" in str(found[0])


def refuse(process):
    if process == 1:
        raise ValueError("no")
    return process


def test_results_of_each_process_come_to_all_and_so_does_a_refusal(two):
    """Oracle: by hand."""
    assert two.each(lambda process: results_of_each(lambda: process + 5)) == [[5, 6]] * 2
    found = two.each(lambda process: results_of_each(lambda: refuse(process)))
    assert [(type(each), str(each)) for each in found] == [
        (ValueError, "process 1: no"),
        (ValueError, "no"),
    ]


def test_what_all_must_read_alike_is_compared(two):
    """Oracle: by hand: each keeps its own first result; the second differs, or does not."""
    assert two.each(lambda process: agreed(lambda: (process, "same"), "it")) == [0, 1]
    found = two.each(lambda process: agreed(lambda: (0, process), "it"))
    assert all(
        str(each).startswith("it differs between processes: 0 on process 0, 1 on") for each in found
    )


def test_numbers_are_added_and_arrays_come_from_the_first_process(two):
    """Oracle: by hand."""
    assert two.each(lambda process: total(process + 2)) == [5, 5]
    found = two.each(lambda process: from_first({"x": np.arange(3) + process})["x"])
    np.testing.assert_array_equal(found, [np.arange(3)] * 2)


def test_calls_of_the_first_process_are_computed_by_all(two):
    """Oracle: the calls that process 0 makes, in order."""
    seen = [[], []]

    def work(process):
        led = Led(lambda x: seen[process].append(int(x)) or int(x) + 1, (np.int64(0),))
        with led:
            return [led(np.int64(5)), led(np.int64(7))] if process == 0 else "no more"

    assert two.each(work) == [[6, 8], "no more"]
    assert seen == [[5, 7]] * 2


def test_a_flag_and_numbers_are_joined_on_the_mesh(two):
    """Oracle: by hand, on the devices of one process: its own flag, and its numbers once."""
    mesh = make_mesh()
    assert any_on(mesh, True) is True and any_on(mesh, False) is False
    totals = total_on(mesh, np.float32([1, 2, 3]))
    np.testing.assert_array_equal(totals, [1, 2, 3])
    assert totals.sharding.is_fully_replicated


def test_a_single_process_waits_for_nobody(monkeypatch):
    """Oracle: by hand; a store would fail."""
    monkeypatch.setattr(processes, "_store", None)
    monkeypatch.setattr(jax, "jit", None)
    assert barrier("alone") is None and say_mistake("it") is True
    assert from_each([1]) == [[1]] and from_first("tree") == "tree" and total(3) == 3
    assert any_on(None, True) is True and any_on(None, False) is False
    assert in_shares(lambda rows: [row + 1 for row in rows], 3) == [1, 2, 3]
    led = Led(lambda x: x + 1, (0,))
    with led:
        assert led(1) == 2
