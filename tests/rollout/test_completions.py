"""What leaves the devices, of two processes that each hold a part, and what a Rollout says of itself."""

import math

from deepseek_jax.rollout.completions import RolloutLog, empty_rollout
from tests.processes import run_two

FETCHING = """
import sys
import jax
import numpy as np
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout.completions import on_host
from tests.compilations import compilations

mesh = make_mesh()
wanted = {"ids": np.arange(16).reshape(8, 2), "lengths": np.arange(8), "step": np.array(3)}

def put(array):
    place = jax.NamedSharding(mesh, jax.P("data") if array.ndim else jax.P())
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])

for factor in range(1, 4):
    scaled = {name: np.asarray(factor * array) for name, array in wanted.items()}
    tree = {name: put(array) for name, array in scaled.items()}
    assert not tree["ids"].is_fully_addressable
    with compilations() as requests:
        found = on_host(tree)
    for name, array in scaled.items():
        np.testing.assert_array_equal(found[name], array)
        assert isinstance(found[name], np.ndarray)
    print("compiled", len(requests), flush=True)
"""


def test_processes_fetch_what_the_others_hold_by_one_program_for_all_calls():
    """Oracle: the whole arrays, by hand; one compilation, in the first of three calls."""
    flags = "--xla_force_host_platform_device_count=4"
    codes, outputs = run_two(FETCHING, xla_flags=flags)
    assert codes == [0, 0], outputs
    for output in outputs:
        counts = [line for line in output.splitlines() if line.startswith("compiled")]
        assert counts == ["compiled 1", "compiled 0", "compiled 0"], output


def test_drafts_are_measured_by_what_they_saved():
    """Oracle: by hand: completions of four and two tokens, of which the first of each is no step; three of
    five drafts accepted; none drafted.
    """
    rollout = empty_rollout(2, 5)
    assert math.isnan(rollout.acceptance_rate) and math.isnan(rollout.tokens_per_step)
    rollout.completion_mask[0, :4] = rollout.completion_mask[1, :2] = True
    rollout.drafted[:], rollout.accepted[:] = (3, 2), (2, 1)
    assert rollout.acceptance_rate == 3 / 5 and rollout.tokens_per_step == (3 + 1) / 5


def test_a_log_keeps_nothing_by_itself():
    """Oracle: by hand."""
    log = RolloutLog()
    assert not (log.done or log.begun or log.keeps_routing or log.keeps_candidates)
    assert log.weight_sync_seconds == 0 and log.kept is log.enough is log.conversations is None
