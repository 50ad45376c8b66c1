"""What slots keep of their tokens, and caches that grow, by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.ops.routing import FREE
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import decode, engine, kept, speculative, steps, turns
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.engine import Engine, batch_parts_of, rollout_config
from deepseek_jax.rollout.kept import TokenChoices, add_places, put_completions, rows_of
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding, append, repeat
from tests.tiny import CONFIGS, MTP

CONFIG = CONFIGS["mla_moe"]
HOW = Decoding(CONFIG)
NONE = [-1, -1]


@pytest.fixture(scope="module")
def slots():
    """Three slots of four tokens, with prompts of 16 and a completion room of 2."""
    return decode.empty_slots(HOW, 3, 16, 2, 4)


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
    found = decode.grow(Decoding(CONFIG, turns=True), tables, slots._replace(caches=filled), 5)
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
    own, found = add_places(HOW, Sampling(top_k=2), log, slots, requests)
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
    found = TokenChoices(None, None, jnp.full((6, 4, 2), -1))
    state = slots._replace(candidates=own, length=jnp.array([1, 0, 3]))
    found = put_completions(HOW, found, state, jnp.array([2, 0]), jnp.array([4, 1])).candidates
    np.testing.assert_array_equal(found[4], [*own[2, :3].tolist(), NONE])
    np.testing.assert_array_equal(found[1], [own[0, 0].tolist(), NONE, NONE, NONE])
    assert (found[np.array([0, 2, 3, 5])] == -1).all()


def test_rows_of_a_batch_are_cut_and_filled_to_its_lengths():
    """Oracle: numpy: rows by their numbers, fewer tokens and more of them; dense models keep no experts."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(8, size=(3, 4, 1, 2)).astype(np.uint16)
    completions = rng.integers(8, size=(5, 4, 1, 2)).astype(np.uint16)
    own = rng.integers(50, size=(5, 4, 2)).astype(np.int32)
    found = rows_of(
        TokenChoices(prompts, completions, own), np.array([2, 0]), np.array([4, 1, 1]), 3, 6
    )
    assert found.keys() == set(TokenChoices._fields)
    np.testing.assert_array_equal(found["prompt_experts"], prompts[[2, 0], :3])
    wanted = np.full((3, 6, 1, 2), FREE)
    wanted[:, :4] = completions[[4, 1, 1]]
    np.testing.assert_array_equal(found["completion_experts"], wanted)
    wanted = np.full((3, 6, 2), -1)
    wanted[:, :4] = own[[4, 1, 1]]
    np.testing.assert_array_equal(found["candidates"], wanted)
    assert rows_of(TokenChoices(None, None, own), np.array([0]), np.array([1]), 3, 6).keys() == {
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

    def ran(*arguments):
        asked.append(arguments[-2:])
        return SimpleNamespace(step=7)

    own = object.__new__(Engine)
    own.decoding, own.state, own.longest = Decoding(CONFIG, turns=True), state, 4
    own.tables, own.weights, own.static_arguments = None, None, ()
    own.request_in, own.resume_steps, own.steps = np.zeros(3), {2: 9}, 7
    own._make_room = asked.append
    monkeypatch.setattr(decode, "decode", ran)
    monkeypatch.setattr(engine, "rooms", lambda tables, state: (16, room))
    monkeypatch.setattr(engine, "on_host", lambda tree: tree)
    own.decode(wanted=False)
    assert asked == [*made, (1, 2)] and own.steps == 9
    own.state = SimpleNamespace(ended=np.array([True]), length=np.array([3]))
    own.decode(wanted=False)
    assert own.steps == 9 and asked == [*made, (1, 2)]


def test_a_step_writes_the_oldest_place_of_the_ring_and_sees_each_slots_own():
    """Oracle: by hand: step 5 of a ring of three after four places for prompts: the places were written 2, 1
    and 3 steps ago, of which slots of no, two and three tokens have written as many.
    """
    tables = [np.zeros((8, 2))]
    state = SimpleNamespace(
        tokens=np.zeros((3, 4)),
        caches=[{"k": np.zeros((3, 7, 2))}],
        step=jnp.int32(5),
        prompt_length=jnp.array([1, 4, 2]),
        length=jnp.array([0, 2, 3]),
    )
    write = steps.latest_write(HOW, tables, state)
    assert (write.index, write.ring) == (6, 4)
    wanted = [[1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(write.mask, wanted)


@pytest.mark.parametrize(
    "ends, most, count, run",
    [(1, 99, None, 2), (2, 99, None, 4), (5, 99, None, 4), (5, 1, None, 2), (5, 2, None, 3)]
    + [(5, 99, 3, 3), (1, 99, 3, 2)],
)
def test_decoding_ends_with_enough_slots_or_room_or_steps(slots, ends, most, count, run):
    """Oracle: by hand: slots that end after two and four tokens, and a free one."""

    def body(state):
        length = state.length + ~state.ended
        ended = state.ended | (length >= jnp.array([2, 4, 9]))
        return state._replace(length=length, ended=ended, step=state.step + 1)

    start = slots._replace(step=jnp.int32(7), ended=jnp.array([False, False, True]))
    assert repeat(body, start, ends, most, count).step == 7 + run


def test_a_text_is_read_in_the_smallest_chunk_that_holds_it():
    """Oracle: by hand, of chunks of 8, 32 and 128."""
    sizes = {1: 8, 8: 8, 9: 32, 32: 32, 33: 128, 128: 128, 129: 128, 999: 128}
    assert {left: turns.chunk_of(left) for left in sizes} == sizes


def test_what_a_slot_reads_follows_its_tokens_and_begins_a_turn(slots):
    """Oracle: by hand: the first slot, of one token, reads two, and its turn begins; the others read nothing.
    Experts are of the token before each.
    """
    state = slots._replace(
        length=jnp.array([1, 3, 0]),
        last_token=jnp.array([4, 5, 6]),
        ended=jnp.ones(3, bool),
        stopped=jnp.ones(3, bool),
        logprobs=jnp.ones((3, 4)),
        experts=jnp.zeros((3, 4, 1, 2), jnp.uint16),
        candidates=jnp.zeros((3, 4, 2), jnp.int32),
        turns=turns.Turns(jnp.zeros((3, 4), bool), jnp.array([2, 2, 2]), jnp.int32(9)),
    )
    chunk = turns.Chunk(
        tokens=jnp.array([[7, 8, 9], [1, 2, 3], [1, 2, 3]]),
        counts=jnp.array([2, 0, 0]),
        resumes=jnp.array([True, False, False]),
        keys=jax.random.split(jax.random.key(5), 3),
        limit=jnp.array([4, 5, 6]),
    )
    experts = jnp.arange(1, 19, dtype=jnp.uint16).reshape(3, 3, 1, 2)
    found = turns._after(state, chunk, experts)
    none = [0, 0, 0, 0]
    np.testing.assert_array_equal(found.tokens, [[0, 7, 8, 0], none, none])
    np.testing.assert_array_equal(found.logprobs, [[1, 0, 0, 1], [1] * 4, [1] * 4])
    np.testing.assert_array_equal(found.turns.observed, [[0, 1, 1, 0], none, none])
    np.testing.assert_array_equal(found.candidates[..., 0], [[0, -1, -1, 0], none, none])
    np.testing.assert_array_equal(found.experts[:, :, 0, 0], [[1, 3, 0, 0], none, none])
    np.testing.assert_array_equal(found.length, [3, 3, 0])
    np.testing.assert_array_equal(found.last_token, [8, 5, 6])
    np.testing.assert_array_equal(found.ended, [False, True, True])
    np.testing.assert_array_equal(found.stopped, [False, True, True])
    np.testing.assert_array_equal(found.turns.limit, [4, 2, 2])
    same = jax.random.key_data(found.keys) == jax.random.key_data(state.keys)
    np.testing.assert_array_equal(same.all(-1), [False, True, True])


def test_devices_of_a_rollout_have_room_beyond_an_even_share_of_their_experts():
    """Oracle: by hand: half as much again for one expert, the root of two less for two; none without experts
    or without a mesh. Prompts split over the axes of a batch.
    """
    assert rollout_config(CONFIG, None) is CONFIG and batch_parts_of(None, CONFIG) == 1
    mesh = make_mesh(data=2, expert=4)
    assert rollout_config(CONFIG, mesh).expert_buffer == pytest.approx(1 + 1.5 / 2**0.5)
    assert rollout_config(CONFIG, make_mesh(data=1, expert=8)).expert_buffer == 2.5
    assert rollout_config(CONFIGS["gqa"], mesh) is CONFIGS["gqa"]
    assert batch_parts_of(make_mesh(data=2, fsdp=4), CONFIGS["gqa"]) == 2


def test_drafts_take_a_model_that_can_predict_further():
    """Oracle: by hand: latent attention, and a module."""
    speculative.check(MTP)
    for config in (CONFIG, CONFIGS["gqa"]):
        with pytest.raises(ValueError, match="^speculative=True drafts with a multi-token"):
            speculative.check(config)


def test_tokens_after_a_draft_have_their_own_logprobs():
    """Oracle: by hand: the first draft is accepted, and the token after it is 2; in place of the second comes
    token 1, and what follows it is void.
    """
    probs = np.float32([[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0]]])
    logprobs = -np.arange(12, dtype=np.float32).reshape(4, 3)
    draft_probs = np.float32([[1, 0, 0], [1, 0, 0]])
    uniform, draft = np.full((2, 2), 0.5, np.float32), np.array([0, 0])
    given = (probs.reshape(4, 3), logprobs), uniform, draft, draft_probs
    accepted, tokens, found = speculative._verified(*given)
    np.testing.assert_array_equal(accepted, [True, False])
    np.testing.assert_array_equal(tokens, [[0, 2], [1, 1]])
    np.testing.assert_array_equal(found, [[0, -5], [-7, -10]])
