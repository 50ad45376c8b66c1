"""What leaves the devices, of two processes that each hold a part, and what a Rollout says of itself."""

import math

import jax
import numpy as np
import pytest

from deepseek_jax.errors import NotFinite
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout.completions import (
    RolloutLog,
    check_finite,
    copy_completions,
    empty_rollout,
    fill,
    of_slots,
    padded,
)
from deepseek_jax.rollout.slots import Slots, Turns
from deepseek_jax.rollout.speculative import Drafting
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
    assert not (log.done or log.keeps_routing or log.keeps_candidates)
    assert log.weight_sync_seconds == 0 and log.kept is log.conversations is None


def test_numbers_are_filled_up_to_a_power_of_two_by_the_last():
    """Oracle: by hand."""
    for given, wanted in (([3], [3]), ([3, 5], [3, 5]), ([3, 5, 6], [3, 5, 6, 6])):
        np.testing.assert_array_equal(padded(np.array(given)), wanted)
    assert len(padded(np.arange(5))) == 8


def ended_slots(**more):
    """Three slots of up to four tokens: four, one and two, of which the last ended for want of room; what
    stands past their lengths is of earlier requests.
    """
    fields = dict.fromkeys(Slots._fields) | dict(
        length=np.array([4, 1, 2]),
        stopped=np.array([True, True, False]),
        tokens=np.arange(10, 22).reshape(3, 4),
        logprobs=-np.arange(1, 13, dtype=np.float32).reshape(3, 4),
    )
    return Slots(**fields | more)


def test_completions_are_copied_to_their_rows_without_what_stands_past_their_ends():
    """Oracle: by hand."""
    rollout = empty_rollout(4, 4)
    drafting = Drafting(None, None, None, drafted=np.array([5, 6, 7]), accepted=np.array([1, 2, 3]))
    copy_completions(rollout, np.array([2, 0]), ended_slots(drafting=drafting), np.array([0, 2]))
    none = [0] * 4
    np.testing.assert_array_equal(
        rollout.completion_ids, [[18, 19, 0, 0], none, [10, 11, 12, 13], none]
    )
    np.testing.assert_array_equal(
        rollout.sampler_logprobs, [[-9, -10, 0, 0], none, [-1, -2, -3, -4], none]
    )
    np.testing.assert_array_equal(rollout.completion_mask, [[1, 1, 0, 0], none, [1] * 4, none])
    np.testing.assert_array_equal(rollout.truncated, [True, False, False, False])
    np.testing.assert_array_equal(rollout.drafted, [7, 0, 5, 0])
    np.testing.assert_array_equal(rollout.accepted, [3, 0, 1, 0])


def test_only_what_a_rollout_needs_of_a_slot_leaves_the_devices():
    """Oracle: by hand: the rows of two slots, and nothing of caches, hidden states and limits."""
    hidden, numbers = np.zeros((3, 2, 8)), np.arange(3)
    state = ended_slots(
        drafting=Drafting(hidden, np.zeros((3, 2)), numbers, numbers, 2 * numbers),
        turns=Turns(np.eye(3, 4, dtype=bool), numbers, np.int32(9)),
        caches=[{"k": hidden}],
        last_token=numbers,
    )
    found = of_slots(state, np.array([2, 0]))
    assert found.caches is found.last_token is found.turns.limit is found.turns.longest is None
    assert found.drafting[:3] == (None, None, None)
    np.testing.assert_array_equal(found.drafting.accepted, [4, 0])
    np.testing.assert_array_equal(found.turns.observed, [[0, 0, 1, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(found.length, [2, 4])


def test_what_a_conversation_read_is_copied_and_is_not_sampled():
    """Oracle: by hand: the second and the last token of four were read; those past an end count for none. A
    log fills the row alike.
    """
    observed = np.array([[0, 1, 0, 1], [1] * 4, [0, 0, 1, 1]], bool)
    rollout = empty_rollout(2, 4, converses=True)
    state = ended_slots(turns=Turns(observed, None, None))
    copy_completions(rollout, np.array([1, 0]), state, np.array([0, 2]))
    np.testing.assert_array_equal(rollout.completion_mask, [[1, 1, 0, 0], [1, 0, 1, 0]])
    np.testing.assert_array_equal(rollout.observed_mask, [[0] * 4, [0, 1, 0, 1]])
    np.testing.assert_array_equal(rollout.completion_ids, [[18, 19, 0, 0], [10, 11, 12, 13]])
    log, filled = RolloutLog(), empty_rollout(2, 4, converses=True)
    first = {"ids": [18, 19], "logprobs": [-9.0, -10.0], "finished": False}
    line = {"ids": [10, 11, 12, 13], "logprobs": [-1.0, -2.0, -3.0, -4.0], "finished": True}
    read = {"observed": [False, True, False, True]}
    log.done = {0: first | {"observed": [False, False]}, 1: line | read}
    fill(filled, log)
    for own, other in zip(filled, rollout, strict=True):
        np.testing.assert_array_equal(own, other)


def test_a_logprob_that_is_not_finite_is_named_with_its_device():
    """Oracle: by hand: eight slots on eight devices; the second token of the row in slot 6."""
    rollout = empty_rollout(3, 4)
    mesh = make_mesh()
    place = jax.NamedSharding(mesh, jax.P("data"))
    logprobs = jax.device_put(np.zeros((8, 4), np.float32), place)
    state = ended_slots(logprobs=logprobs, ended=np.ones(8, bool))
    rows, slots = np.array([2, 1]), np.array([3, 6])
    check_finite(rollout, rows, state, slots)
    rollout.sampler_logprobs[0] = np.nan
    check_finite(rollout, rows, state, slots)
    rollout.sampler_logprobs[1, 1:] = -np.inf
    words = (
        f"^token 1 of completion 1 has .* -inf, sampled in slot 6 on {mesh.devices.flat[6]}: the"
    )
    with pytest.raises(NotFinite, match=words):
        check_finite(rollout, rows, state, slots)


def test_what_a_row_read_is_among_its_tokens():
    """Oracle: by hand: of single turns those that were sampled, of conversations those that were read too."""
    for converses, ids in ((False, [5, 7]), (True, [5, 6, 7])):
        rollout = empty_rollout(2, 4, converses) if converses else empty_rollout(2, 4)
        assert (rollout.observed_mask is None) != converses
        rollout.completion_ids[1] = 5, 6, 7, 8
        rollout.completion_mask[1] = True, False, True, False
        if converses:
            rollout.observed_mask[1, 1] = True
        assert rollout.ids_of(1) == ids and list(rollout.tokens()) == [[], ids]
