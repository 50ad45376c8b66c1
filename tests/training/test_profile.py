"""Traces of steps, read back as Perfetto and TensorBoard read them."""

import gzip
import itertools
import json
import time

import jax
import pytest

from deepseek_jax.training.profile import Profile
from tests.processes import run_two
from tests.training.test_loop import train


def folders_of(folder):
    """The folders of the traces below a folder, as TensorBoard's plugin finds them, oldest first."""
    return sorted(folder.glob("plugins/profile/*"))


def perfetto(folder):
    """The events of a trace for Perfetto, in order."""
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    return sorted((e for e in events if e.get("ph") == "X"), key=lambda e: e["ts"])


def steps_of(events, phase):
    return [int(e["args"]["step_num"]) for e in events if e["name"] == phase]


def test_a_trace_has_the_steps_that_were_asked_for_and_no_others(tmp_path, capsys):
    """Oracle: names and numbers by hand, in the JSON for Perfetto and in the file of TensorBoard's plugin."""
    profile = Profile(2, 3, tmp_path / "profile")
    train(tmp_path, profile=profile)
    (folder,) = folders_of(tmp_path / "profile" / "pretrain")
    events = perfetto(folder)
    assert steps_of(events, "pretrain") == [2, 3, 4]
    steps = [e for e in events if e["name"] == "pretrain"]
    updates = [e for e in events if e["name"] == "update"]
    assert len(updates) == 3
    for step, update in zip(steps, updates, strict=True):
        assert step["ts"] <= update["ts"]
        assert update["ts"] + update["dur"] <= step["ts"] + step["dur"]

    (path,) = folder.glob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    found = [e for plane in planes for line in plane.lines for e in line.events]
    found = [dict(e.stats) for e in found if e.name == "pretrain"]
    # _r marks a step for TensorBoard's table of steps
    assert sorted((stats["step_num"], stats["_r"]) for stats in found) == [(2, 1), (3, 1), (4, 1)]
    profile.report()
    assert f"pretrain, steps 2 to 4, traced in {tmp_path}" in capsys.readouterr().out


def test_a_run_that_stops_on_the_way_leaves_what_it_traced_and_traces_the_rest_when_it_resumes(
    tmp_path,
):
    """Oracle: steps 1 to 4 by hand, stopped after step 2."""
    asked = itertools.count()
    with pytest.raises(SystemExit):
        profile = Profile(1, 4, tmp_path / "profile")
        train(tmp_path, profile=profile, should_stop=lambda: next(asked) == 2)
    # A trace's folder is named by the second
    time.sleep(1)
    train(tmp_path, profile=Profile(1, 4, tmp_path / "profile"))
    folders = folders_of(tmp_path / "profile" / "pretrain")
    assert [steps_of(perfetto(folder), "pretrain") for folder in folders] == [[1, 2], [3, 4]]


def test_a_run_without_these_steps_says_that_nothing_was_traced(tmp_path, capsys):
    """Oracle: six steps by hand, and none is number 6 or 7; nothing is written."""
    profile = Profile(6, 2, tmp_path / "profile")
    train(tmp_path, profile=profile)
    profile.report()
    assert "nothing was traced: this run took no step from 6 to 7" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


TWO_PROCESSES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
process, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.training.profile import Profile
profile, arrays = Profile(1, 1, folder), []
for step in profile.over(range(3), "grpo", lambda: arrays):
    with jax.profiler.TraceAnnotation(f"by_process_{process}"):
        arrays.append(jnp.arange(step + 1.0).sum())
profile.report()
"""


@pytest.mark.slow
def test_each_process_traces_itself(tmp_path):
    """Oracle: a name of its own in each process's trace; process 0 alone says where."""
    codes, outputs = run_two(TWO_PROCESSES, tmp_path)
    assert codes == [0, 0], outputs
    for process in range(2):
        (folder,) = folders_of(tmp_path / "grpo" / f"process_{process}")
        events = perfetto(folder)
        assert steps_of(events, "grpo") == [1]
        own = {event["name"] for event in events if event["name"].startswith("by_process_")}
        assert own == {f"by_process_{process}"}
    assert ["traced in" in output for output in outputs] == [True, False]
