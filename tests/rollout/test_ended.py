"""What leaves the devices of completions that have ended: with one process, and with two that own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import NotFinite
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout.completions import RolloutLog, empty_rollout, fill
from deepseek_jax.rollout.ended import copy_completions, fetch, padded
from deepseek_jax.rollout.generation import generate
from deepseek_jax.rollout.slots import Decoding, Slots, Turns
from deepseek_jax.rollout.speculative import Drafting
from tests.processes import run_two
from tests.tiny import CONFIGS, tiny_model

FETCHING = """
import sys
import jax
import numpy as np
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout.ended import on_host
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


def test_numbers_are_filled_up_to_a_power_of_two_by_the_last():
    """Oracle: by hand."""
    for given, wanted in (([3], [3]), ([3, 5], [3, 5]), ([3, 5, 6], [3, 5, 6, 6])):
        np.testing.assert_array_equal(padded(np.array(given)), wanted)
    assert len(padded(np.arange(5))) == 8


HOW = Decoding(CONFIGS["mla_moe"])


def ended_slots(**more):
    """Three slots of up to four tokens: four, one and two, of which the last ended for want of room; what
    stands past their lengths is of earlier requests.
    """
    fields = dict(
        length=np.array([4, 1, 2]),
        stopped=np.array([True, True, False]),
        tokens=np.arange(10, 22).reshape(3, 4),
        logprobs=-np.arange(1, 13, dtype=np.float32).reshape(3, 4),
        last_token=np.array([13, 14, 19]),
        rounds=np.zeros(1, np.int32),
    )
    return Slots(**dict.fromkeys(Slots._fields) | jax.tree.map(jnp.asarray, fields | more))


def copied(rollout, rows, state, slots):
    """copy_completions, of what leaves the devices."""
    copy_completions(rollout, np.array(rows), fetch(HOW, state, np.array(slots)))
    return rollout


def test_completions_are_copied_to_their_rows_without_what_stands_past_their_ends():
    """Oracle: by hand."""
    numbers = np.zeros(3)
    drafting = Drafting(numbers, numbers, numbers, np.array([5, 6, 7]), np.array([1, 2, 3]))
    rollout = copied(empty_rollout(4, 4), [2, 0], ended_slots(drafting=drafting), [0, 2])
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


def test_what_a_conversation_read_is_copied_and_is_not_sampled():
    """Oracle: by hand: the second and the last token of four were read; those past an end count for none. A
    log fills the row alike.
    """
    observed = np.array([[0, 1, 0, 1], [1] * 4, [0, 0, 1, 1]], bool)
    numbers = np.zeros(3)
    state = ended_slots(turns=Turns(observed, numbers, np.int32(9)))
    ended = fetch(HOW, state, np.array([0, 2]))
    np.testing.assert_array_equal(ended.numbers.sampled, [2, 2])
    np.testing.assert_array_equal(ended.numbers.read, [2, 0])
    np.testing.assert_array_equal(ended.numbers.last, [13, 19])
    rollout = copied(empty_rollout(2, 4, converses=True), [1, 0], state, [0, 2])
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


def eight_slots(logprobs):
    """Eight slots of four tokens, one on each of eight devices, and their mesh."""
    mesh = make_mesh()
    split = jax.NamedSharding(mesh, jax.P("data"))
    fields = dict(
        length=np.full(8, 4),
        stopped=np.ones(8, bool),
        tokens=np.arange(32).reshape(8, 4),
        logprobs=logprobs,
        last_token=np.arange(3, 32, 4),
        rounds=np.zeros(8, np.int32),
    )
    placed = {name: jax.device_put(array, split) for name, array in fields.items()}
    return mesh, Slots(**dict.fromkeys(Slots._fields) | placed)


def test_a_logprob_that_is_not_finite_is_named_with_its_device():
    """Oracle: by hand: eight slots on eight devices; the second token of the row in slot 6."""
    logprobs = np.zeros((8, 4), np.float32)
    logprobs[2], logprobs[6, 1:] = np.nan, -np.inf
    mesh, state = eight_slots(logprobs)
    with jax.set_mesh(mesh):
        copied(empty_rollout(3, 4), [2], state, [3])
        words = f"^token 1 of completion 1 has .* -inf, sampled in slot 6 on {mesh.devices.flat[6]}: the"
        with pytest.raises(NotFinite, match=words):
            copied(empty_rollout(3, 4), [2, 1], state, [3, 6])


def test_devices_take_from_their_own_slots():
    """Oracle: by hand: slots in any order, several of one device and none of others."""
    for parts, slots in ((8, [7, 0, 3]), (4, [5, 1, 4, 0]), (1, [2, 7, 4])):
        mesh, state = eight_slots(np.zeros((8, 4), np.float32))
        mesh = make_mesh(devices=jax.devices()[:parts])
        place = jax.NamedSharding(mesh, jax.P("data"))
        state = jax.tree.map(lambda array, place=place: jax.device_put(array, place), state)
        with jax.set_mesh(mesh):
            ended = fetch(HOW, state._replace(rounds=jnp.zeros(parts, jnp.int32)), np.array(slots))
        np.testing.assert_array_equal(ended.tokens.ids, np.arange(32).reshape(8, 4)[slots])
        np.testing.assert_array_equal(ended.numbers.last, np.arange(3, 32, 4)[slots])
        assert ended.devices == [mesh.devices.flat[slot * parts // 8] for slot in slots]


OWNING = """
import sys
import jax
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from tests.rollout.test_ended import check_own_rows
check_own_rows()
print("owns", flush=True)
"""


class Added(RolloutLog):
    """A log that notes which rows it receives."""

    def __init__(self, own_rows):
        self.own_rows, self.rows = own_rows, []

    def add(self, rows, rollout):
        self.rows += rows.tolist()


def check_own_rows():
    """Assert that a process has the completions that its devices sampled, and the numbers of all."""
    config, params = tiny_model("gqa")
    params = jax.device_get(params)
    mesh = make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
        logs = [Added(own_rows) for own_rows in (False, True)]
        whole, own = (
            generate(
                config,
                params,
                [[1, 2, 3], [4, 5], [6]],
                n=6,
                max_completion_length=7,
                eos_ids=(3, 5),
                slots=8,
                log=log,
            )
            for log in logs
        )
    here, count = own.is_here, jax.process_count()
    assert sorted(logs[0].rows) == list(range(18)) and whole.owned is None
    assert sorted(logs[1].rows) == np.flatnonzero(here).tolist()
    # Slots are split evenly, and each has had a completion
    assert here.sum() >= 8 // count and set(own.owned.owners) == set(range(count))
    for name in ("lengths", "read_lengths", "last_ids", "truncated"):
        np.testing.assert_array_equal(getattr(own, name), getattr(whole, name), err_msg=name)
    for name in ("completion_ids", "completion_mask", "sampler_logprobs"):
        found, wanted = getattr(own, name), getattr(whole, name)
        np.testing.assert_array_equal(found[here], wanted[here], err_msg=name)
        assert not found[~here].any()


@pytest.mark.slow
def test_a_process_owns_what_its_devices_sampled():
    """Oracle: the same call in which every process gets all completions."""
    statuses, outputs = run_two(OWNING, xla_flags="--xla_force_host_platform_device_count=4")
    assert statuses == [0, 0], "\n".join(outputs)
    assert all("owns" in output for output in outputs)
