"""Keep routing: the experts that a rollout kept are those of its tokens."""

import jax
import numpy as np
import pytest

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.models import forward
from deepseek_jax.ops.routing import FREE
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import decode, engine, generate
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.kept import check_rows
from deepseek_jax.rollout.sampling import Sampling, candidates_of, sampled_logits
from deepseek_jax.rollout.slots import Decoding
from tests.quick import others_slow
from tests.tiny import tiny_model

PROMPTS = [[3, 4, 5, 6, 7], [8], [9, 10, 11], [12] * 17]
LENGTH = 20


def rolled(config, params, log=None, **options):
    """(Rollout, the experts of its prompts and completions, as numpy) of two completions a prompt."""
    log = RolloutLog() if log is None else log
    log.keeps_routing = True
    asked = dict(max_completion_length=LENGTH, n=2, eos_ids=(7, 8, 9), slots=3, seed=1) | options
    rollout = generate(config, params, PROMPTS, log=log, **asked)
    return rollout, *map(np.asarray, log.token_choices[:2])


def experts_of(config, params, text, room=64):
    """Those that routers choose as the text is run as one prompt: uint16[t l a]."""
    decoding = Decoding(config)
    weights, tables = decode.decoding_weights(decoding, params), decode.rotations(config, room)
    tokens = np.pad(np.int32([text]), ((0, 0), (0, room - len(text))))
    prefilled = decode.prefill(decoding, weights, tables, tokens, np.int32([len(text)]))
    return np.asarray(prefilled.experts)[0, : len(text)]


@pytest.mark.parametrize("room", others_slow([4, LENGTH], 4))
def test_the_experts_of_every_token_that_was_run_are_kept(monkeypatch, room):
    """Oracle: the experts of each whole text, run as one prompt, in float32. Eight requests in three slots,
    whose caches grow or not: slots are used again, and completions end early.
    """
    monkeypatch.setattr(engine, "FIRST_ROOM", room)
    config, params = tiny_model("mla_moe")
    rollout, prompts, completions = rolled(config, params)
    lengths = rollout.completion_mask.sum(1)
    assert len(set(lengths)) > 2 and lengths.max() > 4
    for row, n in enumerate(lengths):
        prompt = PROMPTS[row // 2]
        text = [*prompt, *rollout.completion_ids[row][:n]]
        wanted = experts_of(config, params, text)
        np.testing.assert_array_equal(prompts[row // 2, : len(prompt)], wanted[: len(prompt)])
        # The last token is sampled, and never run
        np.testing.assert_array_equal(completions[row, : n - 1], wanted[len(prompt) : -1])
        assert (completions[row, n - 1 :] == FREE).all()


@pytest.mark.slow
def test_a_mesh_keeps_what_one_device_keeps():
    """Oracle: one device, in float32."""
    config, params = tiny_model("mla_moe")
    one = rolled(config, params, slots=8)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, expert=2)):
        eight = rolled(config, params, slots=8)
    np.testing.assert_array_equal(one[0].completion_ids, eight[0].completion_ids)
    np.testing.assert_array_equal(one[1][: len(PROMPTS)], eight[1][: len(PROMPTS)])
    rows = 2 * len(PROMPTS)
    np.testing.assert_array_equal(one[2][:rows], eight[2][:rows])


def test_a_dense_model_and_drafts_keep_nothing():
    """Oracle: the messages."""
    with pytest.raises(ValueError, match="^keep_routing takes a model with routed experts"):
        rolled(*tiny_model("gqa"))
    with pytest.raises(ValueError, match="^keep_routing keeps the experts .* speculative=True"):
        rolled(*tiny_model("mtp"), speculative=True)


def as_batch(rollout, prompts, completions, own_rows):
    """The batch of losses.completions, with the experts that were kept."""
    room = max(map(len, PROMPTS))
    ids = np.zeros((len(PROMPTS), room), np.int32)
    for row, prompt in zip(ids, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    mask = np.arange(room) < np.array([[len(prompt)] for prompt in PROMPTS])
    repeats = 2 if own_rows else 1
    of_prompts = dict(
        prompt_ids=ids, prompt_mask=mask, prompt_experts=prompts[: len(PROMPTS), :room]
    )
    return {name: np.repeat(x, repeats, axis=0) for name, x in of_prompts.items()} | dict(
        completion_ids=rollout.completion_ids,
        completion_mask=rollout.completion_mask,
        completion_experts=completions[: 2 * len(PROMPTS)],
    )


def free(batch):
    return {name: x for name, x in batch.items() if not name.endswith("_experts")}


@pytest.mark.parametrize("own_rows", [False, True])
def test_a_forward_pass_takes_the_experts_that_were_kept(own_rows):
    """Oracle: with the sampler's parameters, the pass that chooses by itself, bit for bit, and the sampler's
    log-probabilities. With others, whose routers choose otherwise, the experts that are counted are those
    that were kept, and the numbers are no longer those of a free choice.
    """
    config, params = tiny_model("mla_moe")
    rollout, *experts = rolled(config, params)
    batch = as_batch(rollout, *experts, own_rows)
    mask = rollout.completion_mask

    @jax.jit
    def score(params, batch):
        logprobs, _, routings = completion_logprobs(config, params, batch)
        return logprobs, routings["moe_layers"].load

    kept, load = score(params, batch)
    np.testing.assert_array_equal(kept, score(params, free(batch))[0])
    np.testing.assert_allclose(kept[mask], rollout.sampler_logprobs[mask], atol=1e-5)

    others = jax.tree.map(lambda x: x, params)
    others["moe_layers"]["ffn"]["router"] = -params["moe_layers"]["ffn"]["router"]
    moved, other_load = score(others, batch)
    # Only the last token of a completion is free
    changed = np.abs(other_load - load).sum(-1) / 2
    assert (changed <= 2 * len(mask)).all() and changed.any()
    _, free_load = score(others, free(batch))
    assert (np.abs(free_load - load).sum(-1) / 2 > 5 * changed).all()
    assert abs(moved - score(others, free(batch))[0])[mask].max() > 1e-3


def test_the_router_learns_from_a_kept_choice():
    """Oracle: the gradient of the pass that chooses by itself, bit for bit, with the sampler's parameters."""
    config, params = tiny_model("mla_moe")
    rollout, *experts = rolled(config, params)
    batch = as_batch(rollout, *experts, False)

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            logprobs = completion_logprobs(config, params, batch)[0]
            return np.where(rollout.completion_mask, 1.0, 0.0).ravel() @ logprobs.ravel()

        return jax.grad(loss)(params)

    kept, own = gradient(params, batch), gradient(params, free(batch))
    assert np.abs(kept["moe_layers"]["ffn"]["router"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, kept, own)


def test_an_expert_that_the_model_does_not_have_is_named():
    """Oracle: the message; FREE is no expert."""
    config, _ = tiny_model("mla_moe")
    experts = [np.full((2, 3, 1, 2), FREE, np.uint16), np.full((2, 3, 1, 2), 7, np.uint16)]
    rows = dict(zip(("prompt_experts", "completion_experts"), experts, strict=True))
    check_rows(config, rows)
    experts[1][1, 2, 0, 1] = 8
    with pytest.raises(BrokenTerm, match="expert 8, and the model has n_routed_experts=8"):
        check_rows(config, rows)


@pytest.mark.slow
def test_the_candidates_of_every_token_are_kept_and_the_update_is_over_them():
    """Oracle: the softmax over the tokens that top-p and top-k leave, by numpy over the logits of a whole
    forward pass: the same tokens, and the log-probabilities of sampler and update.
    """
    config, params = tiny_model("mla_moe")
    log = RolloutLog()
    log.keeps_candidates = True
    options = dict(max_completion_length=LENGTH, n=2, eos_ids=(7, 8, 9), slots=3, seed=1)
    rollout = generate(config, params, PROMPTS, log=log, top_k=5, top_p=0.8, **options)
    assert log.token_choices.prompt_experts is None
    candidates = np.asarray(log.token_choices.candidates)[: len(rollout.completion_ids)]
    mask, counts = rollout.completion_mask, set()
    wanted = np.zeros(mask.shape)
    for row, n in enumerate(mask.sum(1)):
        prompt = PROMPTS[row // 2]
        text = [*prompt, *rollout.completion_ids[row][:n]]
        # What comes after a token changes nothing: one length compiles once
        padded = np.int32([text + [0] * (40 - len(text))])
        logits = np.asarray(forward(config, params, padded))[0]
        for t, own in enumerate(logits[len(prompt) - 1 : len(text) - 1]):
            best = np.argsort(-own)[:5]
            shares = np.exp(own[best]) / np.exp(own[best]).sum()
            best = best[np.cumsum(shares) - shares < 0.8]
            kept = candidates[row, t][candidates[row, t] >= 0]
            assert sorted(kept) == sorted(best)
            counts.add(len(best))
            chosen = own[rollout.completion_ids[row, t]]
            wanted[row, t] = chosen - np.log(np.exp(own[best]).sum())
        assert (candidates[row, n:] == -1).all()
    assert len(counts) > 2
    np.testing.assert_allclose(rollout.sampler_logprobs, wanted, atol=2e-5)
    for own_rows in (False, True):
        batch = free(as_batch(rollout, np.zeros((4, 64)), np.zeros((8, 1)), own_rows))
        batch["candidates"] = candidates
        logprobs, entropy, _ = completion_logprobs(config, params, batch)
        np.testing.assert_allclose(np.where(mask, logprobs, 0), wanted, atol=2e-5)
        assert (np.asarray(entropy)[mask] <= np.log(5) + 1e-6).all()


def test_more_tokens_than_there_is_room_for_are_refused():
    """Oracle: the message, where three tokens tie with the second."""
    logits = np.float32([[3, 2, 2, 2, 0], [3, 2, 1, 1, 0]])
    kept = candidates_of(sampled_logits(logits, Sampling(top_k=2)), 2)
    np.testing.assert_array_equal(kept[1], [0, 1])
    config, _ = tiny_model("gqa")
    check_rows(config, {"candidates": kept[1:]})
    with pytest.raises(BrokenTerm, match="more tokens tie with the last of the top_k"):
        check_rows(config, {"candidates": kept})
