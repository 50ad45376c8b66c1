"""A step that hangs, in this process and in one that it ends, and the clock of steps."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from deepseek_jax.training.watchdog import Watchdog, _Watch
from tests import warm
from tests.training.test_loop import Numbers, train

ENDS = """
import sys
from pathlib import Path
from deepseek_jax.training.watchdog import Watchdog
from tests.training.test_watchdog import Hangs, train

watchdog = Watchdog(10.0, exit_status=75, floor_seconds=2.0)
train(Path(sys.argv[1]), Hangs(600.0), num_steps=11, save_every=99, watchdog=watchdog)
print("complete")
"""


def waits_for_a_lost_disk(seconds):
    time.sleep(seconds)


@contextmanager
def many_threads(count):
    """So many more threads, which wait."""
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait, name=f"waits {i}") for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


class Hangs(Numbers):
    """Numbers, of which step 9 waits."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def next(self, state, step):
        time.sleep(0.1)
        if step == 9:
            waits_for_a_lost_disk(self.seconds)
        return super().next(state, step)


@pytest.mark.slow
def test_a_step_that_hangs_prints_all_stacks_once_and_goes_on(tmp_path, capfd):
    """Oracle: by hand: the function that hangs, the process and the step, in a process of many threads; the
    run completes all the same.
    """
    # On a busy machine other steps may be reported too
    watchdog = Watchdog(1.0, floor_seconds=1.5)
    with many_threads(120):
        _, _, lines = train(tmp_path, Hangs(4.0), num_steps=11, watchdog=watchdog)
    assert lines[-1]["step"] == 10
    printed = capfd.readouterr().err
    assert "watchdog: process 0 of 1 on " in printed
    assert printed.count("pretrain step 9 has taken") == 1
    assert "in waits_for_a_lost_disk" in printed
    assert printed.count("Thread 'waits 119':") == 1


def test_a_step_that_hangs_ends_a_process_that_is_to_be_started_again(tmp_path):
    """Oracle: by hand: status 75, the stacks, and no word of completion after a wait of ten minutes."""
    done = warm.run("-c", ENDS, tmp_path)
    assert done.returncode == 75, done.stderr
    assert "complete" not in done.stdout
    assert "pretrain step 9 has taken" in done.stderr
    assert "in waits_for_a_lost_disk" in done.stderr


def clocked(rule, seconds):
    """A _Watch after steps of so many seconds, and the time."""
    watch, now = _Watch(rule), 100.0
    for step, took in enumerate(seconds):
        watch.begin(step, now)
        watch.dispatched([])
        now += took
        assert watch.look(now) is None
    watch.begin(len(seconds), now)
    return watch, now


def test_a_step_is_stuck_after_so_many_medians():
    """Oracle: by hand: the median of 2, 3, 4 and 50 s is 3.5 s, and ten of them are 35 s. The first step,
    which compiles, does not count.
    """
    watch, now = clocked(Watchdog(10.0, floor_seconds=1.0), [500.0, 2.0, 4.0, 50.0, 3.0])
    assert watch.look(now + 35) is None
    assert watch.look(now + 35.5) == (5, 35.5, 3.5)
    # Once for a step
    assert watch.look(now + 99) is None


def test_no_step_is_stuck_before_the_floor():
    """Oracle: by hand: ten medians are 1.25 s, the floor is 60 s."""
    watch, now = clocked(Watchdog(10.0, floor_seconds=60.0), [0.125] * 9)
    assert watch.look(now + 60) is None
    assert watch.look(now + 61) == (9, 61, 0.125)


def test_no_step_is_stuck_before_three_have_ended_after_the_first():
    """Oracle: by hand: two ended steps beside the first have no median yet."""
    watch, now = clocked(Watchdog(2.0, floor_seconds=0.0), [1.0] * 3)
    assert watch.look(now + 1e6) is None


def test_steps_that_the_devices_have_not_ended_count_as_under_way():
    """Oracle: by hand: the host is two steps ahead of a device that hangs in step 4, and then computes all
    three in 12 s. The next step's time begins there, and the median of 1, 1, 1, 4, 4 and 4 s is 2.5 s.
    """
    watch, now = clocked(Watchdog(10.0, floor_seconds=1.0), [1.0] * 4)
    loss = SimpleNamespace(is_ready=lambda: False)
    watch.dispatched({"loss": loss})
    for step in (5, 6):
        watch.begin(step, now)
        watch.dispatched([])
    assert watch.look(now + 10) is None
    assert watch.look(now + 11) == (4, 11, 1.0)
    loss.is_ready = lambda: True
    watch.begin(7, now + 12)
    assert watch.look(now + 12) is None
    assert watch.look(now + 12 + 25) is None
    assert watch.look(now + 12 + 26) == (7, 26, 2.5)


def test_a_factor_below_one_is_refused():
    """Oracle: the message; every second step takes more than the median."""
    with pytest.raises(ValueError, match="factor=0.5 must be at least 1"):
        Watchdog(0.5)
