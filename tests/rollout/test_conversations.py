"""Conversations: what is sampled over several turns, and that nothing else decides it."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import turns
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.sample_log import SampleLog
from tests.quick import others_slow
from tests.rollout.conversing import answered, asked, talking
from tests.rollout.test_kept import experts_of
from tests.rollout.test_mesh import MESHES, MODELS
from tests.tiny import tiny_model

KINDS = ["mla_moe", "gqa", "sparse"]


# Texts in one chunk, and in several
CHUNKS = {"one chunk": (8, 32, 128), "several chunks": (2, 5)}


def padded(rows, length):
    ids = np.zeros((len(rows), length), np.int32)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = own
    return ids, np.arange(length) < np.array([[len(own)] for own in rows])


def batch_of(answers):
    """The arrays that the update scores."""
    prompt_ids, prompt_mask = padded(answers.prompts, max(map(len, answers.prompts)))
    rollout = answers.rollout
    return dict(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=rollout.completion_ids,
        completion_mask=rollout.completion_mask,
        observed_mask=rollout.observed_mask,
    )


def assert_same(ours, theirs, atol=0.0):
    for name in ("completion_ids", "completion_mask", "observed_mask", "truncated"):
        np.testing.assert_array_equal(
            getattr(ours.rollout, name), getattr(theirs.rollout, name), err_msg=name
        )
    logprobs = ours.rollout.sampler_logprobs, theirs.rollout.sampler_logprobs
    np.testing.assert_allclose(*logprobs, rtol=0, atol=atol)
    for mine, other in zip(ours.conversations, theirs.conversations, strict=True):
        # The clock decides this alone
        assert dataclasses.replace(mine, tool_seconds=other.tool_seconds) == other


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize(
    "model, chunks",
    others_slow(
        itertools.product(KINDS, CHUNKS),
        *((kind, "several chunks") for kind in KINDS),
    ),
    indirect=["model"],
)
def test_logprobs_are_those_of_one_forward_pass_over_the_whole_row(model, chunks, monkeypatch):
    """Oracle: completion_logprobs of the rows, whose attention is that of training, in float32. A chunk that
    put a key at another position, or left out a token, would change them by whole nats.
    """
    monkeypatch.setattr(turns, "CHUNKS", CHUNKS[chunks])
    config, params = model
    with talking(config, params) as policy:
        answers = answered(policy)
    rollout = answers.rollout
    assert rollout.observed_mask.sum() > 200 and max(c.turns for c in answers.conversations) == 4
    logprobs, _, _ = jax.jit(completion_logprobs, static_argnums=0)(
        config, params, batch_of(answers)
    )
    gaps = np.where(rollout.completion_mask, logprobs - rollout.sampler_logprobs, 0)
    # As test_engine allows for single turns
    np.testing.assert_allclose(gaps, 0, atol=2e-5)


@pytest.mark.parametrize("model", others_slow(KINDS, "gqa"), indirect=True)
def test_ids_are_kept_as_sampled_and_texts_stand_between_them_as_the_template_writes_them(model):
    """Oracle: by hand, from the messages: each turn's ids, then those of its reply and a line break."""
    with talking(*model) as policy:
        answers = answered(policy)
    for row, conversation in enumerate(answers.conversations):
        ids = answers.rollout.ids_of(row)
        observed = answers.rollout.observed_mask[row][: len(ids)]
        replies = [m["content"] for m in conversation.messages if m["role"] == "user"]
        starts = np.flatnonzero(observed & ~np.append(False, observed[:-1]))
        # The text of the last turn allowed is in the messages, and not read
        assert len(starts) == conversation.turns - 1 <= len(replies)
        for start, reply in zip(starts, replies, strict=False):
            text = policy.tokenizer.encode(f"{reply}\n")
            assert ids[start : start + len(text)] == text
            # A turn ends with an end token
            assert ids[start - 1] in policy.eos_ids
        assert observed.sum() == sum(len(reply) + 1 for reply in replies[: len(starts)])


@pytest.mark.parametrize("model", others_slow(KINDS, "gqa"), indirect=True)
def test_neither_the_clock_nor_slots_nor_workers_nor_delays_decide_what_is_sampled(model):
    """Oracle: the first run. Replies come late by chance (files/replies.py), the generator that draws them is
    shared by all environments of a worker, and other conversations share the slots.
    """
    with talking(*model) as policy:
        first, again = answered(policy), answered(policy)
    assert_same(first, again)
    with talking(*model, workers=3, call_steps=11) as policy:
        assert_same(first, answered(policy, slots=15), atol=2e-5)


@pytest.mark.parametrize("model", others_slow(KINDS, "gqa"), indirect=True)
def test_an_interrupted_rollout_goes_on_with_the_same_conversations(model, tmp_path):
    """Oracle: the whole rollout. Those that a kill cut begin again; those that ended keep their rewards."""

    class Killed(Exception):
        pass

    def kill():
        raise Killed

    with talking(*model) as policy:
        whole = answered(policy)
        log = SampleLog(tmp_path / "log.jsonl", on_add=kill)
        with pytest.raises(Killed):
            answered(policy, log)
        log = SampleLog(tmp_path / "log.jsonl")
        assert 0 < len(log.done) < len(whole.conversations)
        resumed = answered(policy, log)
    assert_same(whole, resumed, atol=2e-5)
    assert {c.reward for c in resumed.conversations} > {0.0}


def test_keep_routing_has_the_experts_of_what_was_sampled_and_of_what_was_read():
    """Oracle: the experts of each whole text, run as one prompt, as test_kept has it for single turns."""
    config, params = tiny_model("mla_moe")
    log = RolloutLog()
    log.keeps_routing = True
    with talking(config, params) as policy:
        answers = answered(policy, log)
    completions = np.asarray(log.token_choices.completion_experts)
    for row in range(0, len(answers.texts), 2):
        prompt, ids = answers.prompts[row // 3], answers.rollout.ids_of(row)
        wanted = experts_of(config, params, [*prompt, *ids], room=96)[len(prompt) : -1]
        np.testing.assert_array_equal(completions[row, : len(ids) - 1], wanted)


CASES = [("experts", mesh) for mesh in MESHES]
CASES += [("dense", "mixed"), ("dense", "context"), ("sparse", "mixed"), ("sparse", "fsdp")]
CASES = [(model, mesh) for model, mesh in CASES if not (model == "dense" and mesh == "mixed")]


def on_mesh(kind, mesh, layers):
    from deepseek_jax.models import random_params

    config = dataclasses.replace(MODELS[kind], num_hidden_layers=layers)
    with jax.set_mesh(mesh), talking(config, random_params(config, mesh, 0)) as policy:
        return answered(policy, slots=8)


@pytest.mark.slow
@pytest.mark.parametrize("kind, axes", CASES)
def test_eight_devices_hold_the_conversations_of_one(monkeypatch, kind, axes):
    """Oracle: one device."""
    # One program that reads a text
    monkeypatch.setattr(turns, "CHUNKS", (32,))
    # A dense layer and one of experts, where there are any; each of two stages has one of its own
    layers = 3 if axes == "pipeline" else 2
    one = on_mesh(kind, make_mesh(devices=jax.devices()[:1]), layers)
    assert one.rollout.observed_mask.sum() > 200
    assert_same(one, on_mesh(kind, make_mesh(**MESHES[axes]), layers), atol=2e-5)


def test_each_limit_ends_a_conversation_as_truncated_and_it_is_scored():
    """Oracle: by hand. A turn without an end token, the turns, and a text beyond the room."""
    model = tiny_model("gqa")
    with talking(*model, turns=2) as policy:
        answers = answered(policy)
    cuts = [c.cut for c in answers.conversations]
    assert {"conversation.turn_length=9", "conversation.turns=2"} <= set(cuts)
    assert [cut is not None for cut in cuts] == answers.rollout.truncated.tolist()
    assert all(c.reward == c.tool_calls and c.turns <= 2 for c in answers.conversations)
    with talking(*model) as policy:
        answers = answered(policy, max_completion_length=20)
    cuts = [c.cut for c in answers.conversations if c.cut and "a text of" in c.cut]
    assert cuts and all("max_completion_length=20" in cut for cut in cuts)
    assert answers.rollout.present(slice(None)).sum(1).max() <= 20


def test_a_thought_that_the_prompt_opens_begins_the_text_of_the_turn():
    """Oracle: by hand. Without it a call inside a thought would pass for a call."""
    with talking(*tiny_model("gqa"), template="{question}<think>\n") as policy:
        answers = answered(policy)
    for conversation in answers.conversations:
        turns = [m["content"] for m in conversation.messages if m["role"] == "assistant"]
        assert all(turn.startswith("<think>\n") for turn in turns)


def test_one_prompt_for_different_texts_of_reset_is_refused(tmp_path):
    """Oracle: the message."""
    (tmp_path / "env.py").write_text(
        "import itertools\n"
        "COUNT = itertools.count()\n"
        "class Env:\n"
        "    def reset(self, **row):\n"
        "        return str(next(COUNT))\n"
        "    def step(self, text: str) -> str | None:\n"
        "        return None\n"
    )
    with talking(*tiny_model("gqa"), environment=f"{tmp_path / 'env.py'}:Env") as policy:
        with pytest.raises(ValueError, match="environment: reset returned .* share a prompt"):
            answered(policy)


def test_the_text_of_reset_ends_the_question(tmp_path):
    """Oracle: the prompt's text, by hand."""
    (tmp_path / "env.py").write_text(
        "class Env:\n"
        "    def reset(self, question, **row):\n"
        "        return 'x' * len(question)\n"
        "    def step(self, text: str) -> str | None:\n"
        "        return None\n"
    )
    with talking(*tiny_model("gqa"), environment=f"{tmp_path / 'env.py'}:Env") as policy:
        answers = answered(policy)
        texts = [policy.tokenizer.decode(prompt) for prompt in answers.prompts]
        assert texts == [e["question"] + "x" * len(e["question"]) + "\n" for e in asked(policy)]
