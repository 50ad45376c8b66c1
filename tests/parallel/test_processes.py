"""Two processes: the same update as one device's, whatever axis crosses; and how they wait and agree."""

import pickle
import re

import jax
import numpy as np
import pytest

from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.processes import is_due
from tests.parallel.updates import on_host, one_update, plain
from tests.processes import run_two

MESHES = {
    "data, expert": dict(data=2, expert=4),
    "slices": dict(slices=2, data=2, expert=2),
    "pipeline": dict(pipeline=2, data=2, expert=2),
}
CROSSING = {"data, expert": ("data", "expert"), "slices": ("slice",), "pipeline": ("pipeline",)}
SHARES = {"data, expert": 2, "slices": 2, "pipeline": 1}
HOW = dict(micro_batches=1, packed=True, remat="none", scan_layers=False)

ONE_OF_TWO = """
import pickle, sys
import jax
import numpy as np
process, port, wanted = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.shard import batch_share, put_share
from tests.parallel.test_processes import CROSSING, HOW, MESHES, SHARES, axes_that_cross
from tests.parallel.updates import check, one_update

with open(wanted, "rb") as file:
    wanted = pickle.load(file)
for name, sizes in MESHES.items():
    devices = jax.devices()
    if name == "data, expert":
        devices = [*devices[:2], *devices[4:], *devices[2:4]]  # else data alone would cross
    mesh = make_mesh(**sizes, devices=devices)
    assert axes_that_cross(mesh) == set(CROSSING[name]), axes_that_cross(mesh)
    share, shares = batch_share(mesh)
    assert shares == SHARES[name], (share, shares)
    rows = put_share(mesh, {"row": np.arange(16)})["row"]
    everywhere = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))
    np.testing.assert_array_equal(everywhere(rows), np.arange(16))  # each row once, in its place
    update = one_update(mesh, **HOW)
    check(*update, wanted["one device"])
    if name in wanted:
        check(*update, wanted[name], rtol=1e-6)
    print("equal", name, flush=True)
"""


def axes_that_cross(mesh):
    """The mesh axes along which devices of both processes lie."""
    owner = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return {
        axis
        for number, axis in enumerate(mesh.axis_names)
        if (owner.max(number) != owner.min(number)).any()
    }


@pytest.mark.slow
def test_two_processes_make_the_update_of_one_device(tmp_path):
    """Oracle: the plain path on one device, see updates.check. Where the exchange of experts and the sums
    over data cross between the processes, one process with the same mesh of eight devices is a second oracle.
    Two other meshes: one of two slices, and one whose pipeline crosses, where both processes hold all rows.
    """
    wanted = tmp_path / "wanted"
    in_one_process = one_update(make_mesh(**MESHES["data, expert"]), **HOW)
    oracles = {"one device": plain(), "data, expert": on_host(*in_one_process)}
    wanted.write_bytes(pickle.dumps(jax.tree.map(np.asarray, oracles)))
    codes, outputs = run_two(
        ONE_OF_TWO, wanted, xla_flags="--xla_force_host_platform_device_count=4"
    )
    assert codes == [0, 0], outputs
    for output in outputs:
        assert [line for line in output.splitlines() if line.startswith("equal")] == [
            f"equal {name}" for name in MESHES
        ]


WAITING = """
import sys, time
import jax
process, port, what = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.parallel.processes import StopTogether, barrier, from_each, say_mistake

if what == "late":
    for _ in range(2):
        barrier("both come")
    if process == 0:
        try:
            barrier("one comes", seconds=1)
        except RuntimeError as error:
            print(error, flush=True)
    else:
        time.sleep(3)
if what == "slow":
    barrier("both have their devices")
    time.sleep(4 * process)
    print("got", from_each(process, seconds=1), from_each(2, seconds=1), flush=True)
if what == "mistakes":
    print("same:", say_mistake("alpha"), flush=True)
if what == "another":
    print("says:", say_mistake(f"of {process}"), flush=True)
if what == "alone":
    print("says:", say_mistake("of 1", seconds=1), flush=True) if process else time.sleep(3)
if what.startswith("stop"):
    # Process 1 is asked in its sixth call; process 0 is slower, or is through before that
    calls, asked = 10 if what == "stop" else 6, 6
    counted = iter(range(1, 99))
    with StopTogether(lambda: process == 1 and next(counted) >= asked) as should_stop:
        for call in range(1, calls + 1):
            time.sleep(0.1 if process == 0 and what == "stop" else 0.02)
            if process == 1 and what == "stop after":
                time.sleep(0.3)
            if should_stop():
                break
        stop_call = should_stop.stop_call
        print("stopped at", call if stop_call is not None and call >= stop_call else None)
barrier("the end")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, wanted",
    [
        ("late", (r"barrier 'one comes': process 0 waited 1 s, .* 2 have not come: \[1\]", "")),
        # Said once, by the one that waits; what they exchange is whole
        (
            "slow",
            (
                r"process 0 has waited 1 s, .* 2 have not come: \[1\](?s:.*)got \[0, 1\] \[2, 2\]",
                r"got",
            ),
        ),
        ("mistakes", ("same: True", "same: False")),
        ("another", ("says: True", "says: True")),
        ("alone", ("", "says: True")),
        # At the first call that neither has passed: process 1 waits in its sixth until process 0 comes to it
        ("stop", ("stopped at 6", "stopped at 6")),
        # Process 0 made its last call before process 1 asked: both are through
        ("stop after", ("stopped at None", "stopped at None")),
    ],
)
def test_processes_wait_for_each_other_and_agree(what, wanted):
    """Oracle: by hand, from what each process does and when."""
    codes, outputs = run_two(WAITING, what)
    assert codes == [0, 0], outputs
    for output, words in zip(outputs, wanted, strict=True):
        assert re.search(words, output), output


def test_what_happens_often_is_said_at_doublings():
    """Oracle: by hand."""
    assert [count for count in range(1, 20) if is_due(count)] == [1, 2, 4, 8, 16]
    assert [count for count in range(1, 20) if is_due(count, 4)] == [4, 8, 16]
