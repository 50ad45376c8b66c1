"""What slots keep of their tokens, and caches that grow, by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.routing import FREE
from deepseek_jax.rollout import kept
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.kept import Kept, begin, put_completions, rows_of
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.serving import TurnsEngine
from deepseek_jax.rollout.slots import append, empty_slots, lengthen
from tests.tiny import CONFIGS

CONFIG = CONFIGS["mla_moe"]
NONE = [-1, -1]


@pytest.fixture(scope="module")
def slots():
    """Three slots of four tokens, with prompts of 16 and a completion room of 2."""
    return empty_slots(CONFIG, 3, 16, 2, 4)


def test_a_token_is_appended_with_its_candidates_where_it_is_seated(slots):
    """Oracle: by hand: the slots have none, one and four tokens: the last is full, the first not seated."""
    room = jnp.full((3, 4, 2), -1, jnp.int32)
    length = jnp.array([0, 1, 4])
    candidates = jnp.array([[1, 2], [3, 4], [5, 6]])
    tokens, seats = jnp.array([7, 8, 9]), jnp.array([False, True, True])
    found = append(
        slots._replace(candidates=room, length=length), tokens, jnp.ones(3), seats, (8,), candidates
    )
    wanted = np.full((3, 4, 2), -1)
    wanted[1, 1] = 3, 4
    np.testing.assert_array_equal(found.candidates, wanted)
    np.testing.assert_array_equal(found.tokens, [[0] * 4, [0, 8, 0, 0], [0] * 4])
    np.testing.assert_array_equal(found.logprobs, [[0] * 4, [0, 1, 0, 0], [0] * 4])
    np.testing.assert_array_equal(found.length, [0, 2, 5])
    np.testing.assert_array_equal(found.stopped, [False, True, False])


def test_caches_of_positions_grow_at_their_end(slots):
    """Oracle: numpy: the old entries, then zeros for three more tokens."""
    filled = jax.tree.map(
        lambda cache: jnp.arange(1.0 * cache.size).reshape(cache.shape), slots.caches
    )
    tables = [np.zeros((20, 2))] * 2
    found = lengthen(CONFIG, tables, slots._replace(caches=filled), 5)
    for own, before in zip(jax.tree.leaves(found.caches), jax.tree.leaves(filled), strict=True):
        assert before.shape == (3, 18, 14)
        np.testing.assert_array_equal(own, np.pad(before, ((0, 0), (0, 3), (0, 0))))


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize("candidates", [False, True])
def test_a_rollout_has_room_for_what_its_log_keeps(slots, routing, candidates):
    """Oracle: by hand: five requests in whole rounds of three slots; two prompts of 16 tokens; one layer of
    two experts a token; top-k 2.
    """
    log = RolloutLog()
    log.keeps_routing, log.keeps_candidates = routing, candidates
    requests = SimpleNamespace(keys=range(5), tokens=range(2), prompt_room=16)
    own, found = begin(CONFIG, Sampling(top_k=2), log, slots, requests)
    shapes = {
        "prompt_experts": (2, 16, 1, 2) if routing else None,
        "completion_experts": (6, 4, 1, 2) if routing else None,
        "candidates": (6, 4, 2) if candidates else None,
    }
    for name, shape in shapes.items():
        array = getattr(found, name)
        assert (array is None) == (shape is None), name
        if shape:
            assert array.shape == shape and (array == (-1 if name == "candidates" else FREE)).all()
    assert (own.experts is not None) == routing and (own.candidates is not None) == candidates
    if candidates:
        assert own.candidates.shape == (3, 4, 2) and (own.candidates == -1).all()
    if routing:
        assert own.experts.shape == (3, 4, 1, 2) and (own.experts == FREE).all()


def test_candidates_of_a_slot_go_to_its_row_up_to_its_length(slots):
    """Oracle: by hand: slot 2 has three tokens, and an earlier request left a fourth; slot 0 has one."""
    own = jnp.arange(3 * 4 * 2).reshape(3, 4, 2)
    found = Kept(None, None, jnp.full((6, 4, 2), -1))
    state = slots._replace(candidates=own, length=jnp.array([1, 0, 3]))
    found = put_completions(CONFIG, found, state, jnp.array([2, 0]), jnp.array([4, 1])).candidates
    np.testing.assert_array_equal(found[4], [*own[2, :3].tolist(), NONE])
    np.testing.assert_array_equal(found[1], [own[0, 0].tolist(), NONE, NONE, NONE])
    assert (found[np.array([0, 2, 3, 5])] == -1).all()


def test_rows_of_a_batch_are_cut_and_filled_to_its_lengths():
    """Oracle: numpy: rows by their numbers, fewer tokens and more of them; dense models keep no experts."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(8, size=(3, 4, 1, 2)).astype(np.uint16)
    completions = rng.integers(8, size=(5, 4, 1, 2)).astype(np.uint16)
    own = rng.integers(50, size=(5, 4, 2)).astype(np.int32)
    found = rows_of(Kept(prompts, completions, own), np.array([2, 0]), np.array([4, 1, 1]), 3, 6)
    assert found.keys() == set(Kept._fields)
    np.testing.assert_array_equal(found["prompt_experts"], prompts[[2, 0], :3])
    wanted = np.full((3, 6, 1, 2), FREE)
    wanted[:, :4] = completions[[4, 1, 1]]
    np.testing.assert_array_equal(found["completion_experts"], wanted)
    wanted = np.full((3, 6, 2), -1)
    wanted[:, :4] = own[[4, 1, 1]]
    np.testing.assert_array_equal(found["candidates"], wanted)
    assert rows_of(Kept(None, None, own), np.array([0]), np.array([1]), 3, 6).keys() == {
        "candidates"
    }
    assert kept.stacked([None, None]) is None


@pytest.mark.parametrize("room, made", [(4, []), (3, [3])])
def test_turns_make_room_for_the_longest_that_goes_on(monkeypatch, room, made):
    """Oracle: by hand: of lengths 1, 2 and 3 the last has ended, so that there must be room for three tokens,
    where the caches are not whole yet. A text is due in two steps.
    """
    state = SimpleNamespace(
        ended=np.array([False, False, True]),
        length=np.array([1, 2, 3]),
        tokens=np.zeros((3, 4)),
        step=5,
    )
    asked = []

    def decode(*arguments):
        asked.append(arguments[-2:])
        return SimpleNamespace(step=7)

    engine = SimpleNamespace(
        state=state, tables=None, weights=None, request_in=np.zeros(3), due={2: 9}, steps=7, fixed=(),
        parts=SimpleNamespace(decode=decode), _make_room=lambda length: asked.append(length),
    )  # fmt: skip
    monkeypatch.setattr("deepseek_jax.rollout.serving.rooms", lambda tables, state: (16, room))
    monkeypatch.setattr("deepseek_jax.rollout.serving.on_host", lambda tree: tree)
    TurnsEngine.decode_turns(engine)
    assert asked == [*made, (1, 2)] and engine.steps == 9
    engine.state = SimpleNamespace(ended=np.array([True]), length=np.array([3]))
    TurnsEngine.decode_turns(engine)
    assert engine.steps == 9 and asked == [*made, (1, 2)]
