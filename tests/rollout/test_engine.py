"""The rollout engine against transformers, against models.forward, and against itself."""

import dataclasses
import functools
import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deepseek_jax.checkpoint import load_hf
from deepseek_jax.models import forward
from deepseek_jax.rollout import decode, engine, generate, generation
from deepseek_jax.rollout.completions import Rollout, RolloutLog
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from tests.models.families import FAMILIES, write_tiny_checkpoint
from tests.quick import others_slow
from tests.tiny import CONFIGS, VOCAB, tiny_model

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, VOCAB, length).tolist() for length in (3, 14, 1, 9, 6)]
PROGRAMS = "decoding_weights", "empty_slots", "prefill", "seat", "decode", "grow", "rotations"
EOS = (3, 11, 19, 42)  # likely enough that completions end at all lengths
LENGTH, N = 12, 2
SAMPLED = dict(max_completion_length=LENGTH, n=N, temperature=0.8, eos_ids=EOS, seed=5, slots=3)
logits_of = jax.jit(forward, static_argnums=0)


@functools.cache
def rolled_out(kind):
    """PROMPTS, two completions each in three slots: every slot is refilled."""
    return generate(*tiny_model(kind), PROMPTS, **SAMPLED)


def assert_same(ours, theirs):
    for name in ("completion_ids", "completion_mask", "truncated"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    # Float32 sums of another batch size may be grouped otherwise.
    np.testing.assert_allclose(ours.sampler_logprobs, theirs.sampler_logprobs, atol=1e-5)


@pytest.mark.parametrize("family", others_slow(FAMILIES, "deepseek_v3"))
def test_greedy_continuations_are_those_of_transformers(family, tmp_path):
    """Oracle: transformers.generate, 16 tokens, prompt by prompt; two prompts pass the original context."""
    model = write_tiny_checkpoint(family, tmp_path)
    model.generation_config.eos_token_id = None
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 96, length).tolist() for length in (4, 40, 21)]
    rollout = generate(
        *load_hf(tmp_path), prompts, max_completion_length=16, temperature=0.0, slots=2
    )
    for prompt, ids in zip(prompts, rollout.completion_ids, strict=True):
        tokens = torch.tensor([prompt])
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=0,
        )
        np.testing.assert_array_equal(ids, out[0, len(prompt) :])


def teacher_forced(config, params, prompts, rollout, temperature):
    """float32[b t]: models.forward's log-probabilities of the sampled tokens, whole rows at once."""
    n = len(rollout.completion_ids) // len(prompts)
    rows = np.zeros((len(rollout.completion_ids), 16 + LENGTH), np.int32)
    segment_ids, at = np.zeros_like(rows), np.zeros((len(rows), LENGTH), int)
    for i, (ids, mask) in enumerate(
        zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    ):
        prompt = prompts[i // n]
        row = [*prompt, *ids[mask]]
        rows[i, : len(row)], segment_ids[i, : len(row)] = row, 1
        at[i] = len(prompt) - 1 + np.arange(LENGTH)
    logits = logits_of(config, params, rows, segment_ids=segment_ids)
    logp = jax.nn.log_softmax(jnp.take_along_axis(logits, at[..., None], axis=1) / temperature)
    return np.asarray(jnp.take_along_axis(logp, rollout.completion_ids[..., None], axis=-1)[..., 0])


@pytest.mark.parametrize("kind", CONFIGS)
def test_sampler_logprobs_are_those_of_a_teacher_forced_forward(kind):
    """Oracle: models.forward over [prompt, completion], to 1e-5 in float32; ragged, slots refilled."""
    rollout = rolled_out(kind)
    mask = rollout.completion_mask
    assert len(set(mask.sum(1))) > 3 and len(mask) > SAMPLED["slots"]
    exact = teacher_forced(*tiny_model(kind), PROMPTS, rollout, SAMPLED["temperature"])
    np.testing.assert_allclose(rollout.sampler_logprobs[mask], exact[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("slots", "kind"),
    others_slow(itertools.product([1, 100], CONFIGS), (1, "gqa"), (100, "mla_moe")),
)
def test_what_is_sampled_does_not_depend_on_the_number_of_slots(kind, slots):
    """Oracle: the same requests over three slots."""
    assert_same(
        generate(*tiny_model(kind), PROMPTS, **SAMPLED | dict(slots=slots)), rolled_out(kind)
    )


def test_long_prompts_are_read_a_few_at_a_time(monkeypatch):
    """Oracle: the same requests, read in chunks of two by the number of slots; by hand: of 16 tokens two
    prompts are no more than 40, and there are slots for all five.
    """
    expected, sizes, prefill = rolled_out("mla_moe"), [], decode.prefill

    def recorded(decoding, weights, tables, tokens, lengths):
        sizes.append(tokens.shape)
        return prefill(decoding, weights, tables, tokens, lengths)

    monkeypatch.setattr(decode, "prefill", recorded)
    monkeypatch.setattr("deepseek_jax.rollout.requests.PREFILL_TOKENS", 40)
    found = generate(*tiny_model("mla_moe"), PROMPTS, **SAMPLED | dict(slots=100))
    assert sizes == [(2, 16)] * 3
    assert_same(found, expected)


def rows_of(rollout, rows):
    """The Rollout of some rows."""
    return Rollout(*(None if array is None else array[rows] for array in rollout))


@pytest.mark.parametrize("kind", others_slow(CONFIGS, "mla_moe"))
def test_a_prompt_is_answered_alike_alone_and_among_others(kind):
    """Oracle: that prompt's rows among the others'."""
    among = rolled_out(kind)
    alone = generate(*tiny_model(kind), PROMPTS[3:4], **SAMPLED)
    assert_same(alone, rows_of(among, slice(3 * N, 4 * N)))


def test_the_order_of_prompts_changes_no_completion():
    """Oracle: the same prompts in their first order."""
    turned = generate(*tiny_model("mla_moe"), PROMPTS[::-1], **SAMPLED)
    rows = np.arange(len(PROMPTS) * N).reshape(-1, N)[::-1].reshape(-1)
    assert_same(turned, rows_of(rolled_out("mla_moe"), rows))


def line_of(rollout, row):
    """A completion as RolloutLog.done has it."""
    mask = rollout.completion_mask[row]
    return {
        "ids": rollout.completion_ids[row][mask].tolist(),
        "logprobs": rollout.sampler_logprobs[row][mask].tolist(),
        "finished": bool(not rollout.truncated[row]),
    }


class Recorded(RolloutLog):
    """The log of a call after others: ended has each row that ends in this one, as it was then."""

    def __init__(self, done):
        self.done, self.ended = done, {}

    def add(self, rows, rollout):
        assert not self.ended.keys() & set(rows.tolist())
        self.ended |= {row: line_of(rollout, row) for row in rows.tolist()}


@pytest.mark.parametrize("done", [(0, 3, 4, 8), tuple(range(9)), tuple(range(10))])
def test_rows_that_are_there_are_left_out_and_the_others_stay_what_they_are(done):
    """Oracle: the call that samples all; the log gets each other row once, when it has ended."""
    whole = rolled_out("gqa")
    log = Recorded({row: line_of(whole, row) for row in done})
    rest = generate(*tiny_model("gqa"), PROMPTS, **SAMPLED, log=log)
    left = sorted(set(range(N * len(PROMPTS))) - set(done))
    assert sorted(log.ended) == left
    assert_same(rest, whole)
    assert [log.ended[row] for row in left] == [line_of(rest, row) for row in left]


def test_completions_of_a_prompt_differ_and_so_do_those_of_another_seed():
    """Oracle: no two rows alike of 40 tokens' worth of entropy; the same seed repeats them all."""
    many = dict(max_completion_length=LENGTH, n=6)
    rows = [
        tuple(ids)
        for seed in (1, 2)
        for ids in generate(*tiny_model("gqa"), PROMPTS[:1], seed=seed, **many).completion_ids
    ]
    assert len(set(rows)) == 12
    again = generate(*tiny_model("gqa"), PROMPTS[:1], seed=1, **many).completion_ids
    np.testing.assert_array_equal(again, rows[:6])


def test_a_repeated_prompt_gets_the_completions_that_a_larger_group_would():
    """Oracle: one prompt with n=4, against itself twice with n=2: numbers go on counting."""
    model = tiny_model("gqa")
    twice = generate(*model, [PROMPTS[0], PROMPTS[0]], **SAMPLED)
    assert_same(twice, generate(*model, PROMPTS[:1], **SAMPLED | dict(n=4)))
    assert len({tuple(ids) for ids in twice.completion_ids}) == 4


def test_a_completion_ends_with_its_first_end_token():
    """Oracle: the rollout without end tokens, cut by hand after the first; past it all is zero. One of the
    end tokens is the id that pads.
    """
    eos_ids = (0, *EOS)
    free = dict(SAMPLED, n=8, seed=1)
    prompts = [[0, 7, 0], PROMPTS[1]]  # a prompt may hold the id that pads
    whole = generate(*tiny_model("gqa"), prompts, **free | dict(eos_ids=()))
    cut = generate(*tiny_model("gqa"), prompts, **free | dict(eos_ids=eos_ids))
    assert whole.completion_mask.all() and whole.truncated.all()
    is_end = np.isin(whole.completion_ids, eos_ids)
    mask = np.cumsum(is_end, axis=1) - is_end == 0
    np.testing.assert_array_equal(cut.completion_mask, mask)
    np.testing.assert_array_equal(cut.completion_ids, np.where(mask, whole.completion_ids, 0))
    np.testing.assert_allclose(
        cut.sampler_logprobs, np.where(mask, whole.sampler_logprobs, 0), atol=1e-5
    )
    np.testing.assert_array_equal(cut.truncated, ~is_end.any(1))
    assert 0 < cut.truncated.sum() < len(mask)


def test_prompts_of_other_lengths_in_the_bucket_compile_nothing():
    """Oracle: the number of compiled versions that jit holds of each part."""
    parts = [getattr(decode, name) for name in PROGRAMS]
    rolled_out("gqa")
    before = [part._cache_size() for part in parts]
    others = [[1] * length for length in (16, 2, 5, 1, 11)]
    generate(*tiny_model("gqa"), others, **SAMPLED | dict(seed=9))
    assert [part._cache_size() for part in parts] == before


@pytest.mark.parametrize("model", others_slow(["gqa", "mla_moe", "mtp"], "gqa"))
def test_caches_that_grow_change_nothing(monkeypatch, model):
    """Oracle: the same rollout with room for the longest completion from the start. Slots are seated before
    and after the caches grow, from 3 tokens to 6 and to 12, while others decode.
    """
    config, params = tiny_model(model)
    settings = dict(SAMPLED, n=4, slots=3, max_completion_length=12, eos_ids=range(0, VOCAB, 9))
    settings["speculative"] = model == "mtp"
    rooms, grown = [], decode.grow

    def growing(config, tables, slots, room):
        rooms.append(room)
        return grown(config, tables, slots, room)

    whole = generate(config, params, PROMPTS, **settings)
    monkeypatch.setattr(engine, "FIRST_ROOM", 3)
    monkeypatch.setattr(engine, "GROWTH", 2)
    monkeypatch.setattr(decode, "grow", growing)
    small = generate(config, params, PROMPTS, **settings)
    assert rooms == [6, 12]
    for name in ("completion_ids", "completion_mask", "truncated"):
        np.testing.assert_array_equal(getattr(small, name), getattr(whole, name))
    np.testing.assert_allclose(small.sampler_logprobs, whole.sampler_logprobs, atol=1e-5)
    assert whole.truncated.any() and not whole.truncated.all()


def test_slots_are_seated_a_share_at_a_time(monkeypatch):
    """Oracle: the same completions from fewer calls of `seat`, where two of four slots may stand empty."""
    settings = dict(SAMPLED, n=4, slots=4, max_completion_length=12, eos_ids=range(0, VOCAB, 6))
    seated, seat = [], decode.seat

    def counting(*arguments):
        seated.append(int(np.sum(arguments[4].seats)))
        return seat(*arguments)

    monkeypatch.setattr(decode, "seat", counting)
    rollouts, calls = [], []
    for share in (4, 2):
        monkeypatch.setattr(engine, "SEATED_TOGETHER", share)
        rollouts.append(generate(*tiny_model("gqa"), PROMPTS, **settings))
        calls.append(len(seated))
        assert sum(seated) == 4 * len(PROMPTS)
        seated.clear()
    assert calls[1] < calls[0]
    np.testing.assert_array_equal(rollouts[0].completion_ids, rollouts[1].completion_ids)


@pytest.mark.parametrize(
    ("slots", "share", "room"),
    others_slow([(4, 32, 64), (4, 2, 64), (6, 3, 2), (32, 8, 2)], (6, 3, 2)),
)
def test_a_rollout_makes_at_most_as_many_calls_as_are_planned(monkeypatch, slots, share, room):
    """Oracle: the calls of real rollouts, whose completions end anywhere, and in which one slot or two end
    together and caches grow or not.
    """
    monkeypatch.setattr(engine, "SEATED_TOGETHER", share)
    monkeypatch.setattr(engine, "FIRST_ROOM", room)
    called = dict.fromkeys(("prefill", "seat", "decode"), 0)

    def counting(name, program):
        def count(*arguments):
            called[name] += 1
            return program(*arguments)

        return count

    for name in called:
        monkeypatch.setattr(decode, name, counting(name, getattr(decode, name)))
    settings = dict(SAMPLED, n=4, slots=slots, max_completion_length=12, eos_ids=range(0, VOCAB, 6))
    generate(*tiny_model("gqa"), PROMPTS, **settings)
    requests, chunks = 4 * len(PROMPTS), called["prefill"]
    most = engine.most_calls(requests, min(slots, requests), 12, chunks)
    assert 0 < called["seat"] <= most.seat and 0 < called["decode"] <= most.decode


@pytest.mark.parametrize(
    ("arguments", "more", "calls"),
    [
        # All are seated at once; those of two chunks apart
        ((32, 32, 512, 2), {}, (2, 1)),
        # 6,144 wait, 64 slots end together; caches grow from 2,048 to 8,192 and 32,768
        ((8192, 2048, 32768, 16), {}, (16 + 96 + 2, 2 + 96 + 1)),
        # 16 turns of 64 conversations, with 15 texts between them; 32 wait for a slot
        ((64, 32, 2048, 1), {"turns": 16}, (1 + 32, 64 * 31)),
    ],
)
def test_the_calls_of_a_rollout_by_hand(arguments, more, calls):
    """Oracle: by hand, from 1 slot in 32 and room for 2,048 tokens that grows fourfold."""
    assert engine.most_calls(*arguments, **more) == calls


@pytest.mark.parametrize(
    "n, slots, rows", others_slow([(4, 4, 5), (4, 8, 6), (2, 100, 5)], (4, 8, 6))
)
def test_a_prompt_is_prefilled_once_for_its_whole_group(monkeypatch, n, slots, rows):
    """Oracle: by hand: five prompts, one or two at a time (the last pair padded), or all at once."""
    prefilled, prefill = [], decode.prefill

    def counting(decoding, weights, tables, tokens, lengths):
        prefilled.append(tokens.shape[0])
        return prefill(decoding, weights, tables, tokens, lengths)

    monkeypatch.setattr(decode, "prefill", counting)
    generate(*tiny_model("gqa"), PROMPTS, max_completion_length=2, n=n, slots=slots)
    assert sum(prefilled) == rows


def test_a_long_completion_does_not_idle_the_other_slots(monkeypatch):
    """Oracle: list scheduling by hand: a slot that ends takes the next request at once.

    A completion of length L takes L - 1 steps, for its first token comes from the prompt's logits.
    """
    at_step, run = [], decode.decode

    def watching(*arguments):
        state = run(*arguments)
        at_step.append(int(state.step))
        return state

    monkeypatch.setattr(decode, "decode", watching)
    settings = dict(SAMPLED, n=4, slots=2, max_completion_length=40, eos_ids=range(0, VOCAB, 6))
    rollout = generate(*tiny_model("gqa"), PROMPTS, **settings)
    lengths = rollout.completion_mask.sum(1) - 1
    busy_until = [0, 0]
    for length in lengths:
        heapq.heappush(busy_until, heapq.heappop(busy_until) + length)
    assert at_step[-1] == max(busy_until)
    in_pairs = lengths.reshape(-1, 2).max(1).sum()  # what waiting for the longer one would take
    assert at_step[-1] < 0.8 * in_pairs < lengths.sum()


@pytest.mark.slow
def test_bfloat16_decodes_what_it_would_score():
    """Oracle: models.forward in bfloat16: mean gap below 0.05 nats, of the rounding of two ways."""
    config, params = tiny_model("mla_moe")
    config = dataclasses.replace(config, dtype="bfloat16")
    rollout = generate(config, params, PROMPTS, **SAMPLED)
    exact = teacher_forced(config, params, PROMPTS, rollout, SAMPLED["temperature"])
    gap = np.abs(rollout.sampler_logprobs - exact)[rollout.completion_mask]
    assert 0 < gap.mean() < 0.05


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(prompts=[]), "prompts is empty"),
        (dict(prompts=[[1], []]), "prompt 1 is empty; a prompt needs at least one token"),
        (dict(prompts=[[1] * 117]), "prompt 0 has 117 tokens; max_position_embeddings=128 less"),
        (dict(prompts=[[1, VOCAB]]), "prompt 0 holds ids outside 0..49"),
        (dict(prompts=[[1], [-1]]), "prompt 1 holds ids outside 0..49"),
        (dict(max_completion_length=0), "max_completion_length=0 must be at least 1"),
        (dict(n=0), "n=0 must be at least 1"),
        (dict(slots=0), "slots=0 must be at least 1"),
        (dict(top_k=51), "top_k=51 must be 0 (keep every token) to vocab_size=50"),
    ],
)
def test_a_mistake_is_named(change, words):
    """Oracle: the words a reader needs."""
    arguments = dict(prompts=[[1]], max_completion_length=LENGTH) | change
    with pytest.raises(ValueError) as error:
        generate(*tiny_model("gqa"), **arguments)
    assert words in str(error.value)


def test_a_rollout_that_is_asked_for_no_more_than_a_length(monkeypatch):
    """Oracle: by hand: one completion a prompt in 32 slots, at temperature 1, from all tokens, seed 0."""
    opened = []

    class Nothing:
        token_choices = None

        def __init__(self, decoding, sampling, eos_ids, params, requests):
            opened.append(((decoding, sampling, eos_ids), requests.keys))

        def open(self, *given):
            opened.append(given)

        def exchanged(self):
            return 0, 0.0

    monkeypatch.setattr(generation, "Engine", Nothing)
    monkeypatch.setattr(generation, "serve", lambda *given: None)
    config, _ = tiny_model("gqa")
    rollout = generate(config, None, [[1]] * 40, max_completion_length=4)
    (fixed, keys), (slots, length, _) = opened
    assert fixed == (Decoding(config), Sampling(), ())
    assert (slots, length, len(rollout.completion_ids)) == (32, 4, 40)
    generate(config, None, [[1]] * 40, max_completion_length=4, seed=0)
    assert (jax.random.key_data(keys) == jax.random.key_data(opened[-2][1])).all()


def test_settings_that_sampling_leaves_out_filter_nothing():
    """Oracle: by hand."""
    assert Sampling() == Sampling(temperature=1.0, top_p=1.0, top_k=0, keeps_candidates=False)
