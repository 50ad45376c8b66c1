"""A distillation's batches: texts and the student's samples, and its held-out losses."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deepseek_jax.data.packing import Rows
from deepseek_jax.distill.objective import PROJECTIONS, SAMPLED, STUDENT
from deepseek_jax.distill.settings import OnPolicySettings
from deepseek_jax.distill.source import (
    DistillSource,
    OnPolicyRows,
    TaskWatch,
    prompts_of,
    sampled_rows,
)
from deepseek_jax.parallel import make_mesh
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.turns import turns

PROMPTS = [[1, 2], [3, 4, 5], [6] * 5]
HELD_OUT = {"held_out_loss": 1.5}


def test_sampled_rows_learn_the_completions():
    """Oracle: by hand."""
    batch = sampled_rows([([5, 6], [7, 8]), ([1], [2])], 5)
    wanted = {
        "tokens": [[5, 6, 7, 8, 0], [1, 2, 0, 0, 0]],
        "targets": [[6, 7, 8, 0, 0], [2, 0, 0, 0, 0]],
        "loss_mask": [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
        "segment_ids": [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]],
        "positions": [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0]],
        "normalizer": 3,
    }
    assert batch.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(batch[name], array, err_msg=name)
    assert batch["positions"].dtype == batch["segment_ids"].dtype == np.int32


class Asked:
    """A policy whose completion of a prompt is two tokens, 90 and the prompt's first, of four; what it was
    asked is noted.
    """

    def __init__(self):
        self.calls = []

    def with_params(self, params):
        self.params = params
        return self

    def answer(self, examples, settings, *, seed):
        self.calls.append(([e["prompt_ids"] for e in examples], settings, seed))
        ids = np.array([[90, e["prompt_ids"][0], 77, 77] for e in examples])
        mask = np.array([[True, True, False, False]] * len(examples))
        return SimpleNamespace(rollout=SimpleNamespace(completion_ids=ids, completion_mask=mask))


def on_policy_rows(policy, length=8, prompts=PROMPTS):
    settings = OnPolicySettings(prompts=6, max_completion_length=4)
    return OnPolicyRows(policy, prompts, settings, sequence_length=length, seed=1)


def test_on_policy_rows_are_the_students_own_and_depend_on_the_step_alone():
    """Oracle: by hand: numpy's draws of seed and step, of the prompts that leave room for a completion; the
    rows that a policy with these parameters completes.
    """
    policy = Asked()
    rows = on_policy_rows(policy)
    found = rows({"weights": 3}, 5)
    draw = np.random.default_rng([1, 5])
    chosen = [PROMPTS[i] for i in draw.integers(2, size=6)]
    assert policy.params == {"weights": 3}
    assert policy.calls == [(chosen, rows.settings, int(draw.integers(2**31)))]
    wanted = sampled_rows([(prompt, [90, prompt[0]]) for prompt in chosen], 8)
    assert found.keys() == {SAMPLED + name for name in wanted}
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[SAMPLED + name], array, err_msg=name)
    on_policy_rows(policy)({}, 5)
    rows({}, 6)
    assert policy.calls[0] == policy.calls[1] != policy.calls[2]


def test_prompts_that_leave_no_room_are_left_out_and_refused_together():
    """Oracle: by hand: rows of 8 leave 4 tokens to a prompt before a completion of 4."""
    fitting = [[1] * 4, [2] * 3]
    assert on_policy_rows(None, prompts=[*fitting, [3] * 5]).prompts == fitting
    with pytest.raises(ValueError, match="^max_completion_length=4 leaves 1 .* shortest has 2"):
        on_policy_rows(None, length=5)


def test_the_last_prompts_of_the_first_conversations():
    """Oracle: by hand: the template's text, in the tokenizer's ids, up to the last answer."""
    tokenizer = arithmetic_tokenizer()
    policy = SimpleNamespace(tokenizer=tokenizer, template="{question}?\n")
    talks = [{"messages": turns(f"{k} + {k}", str(2 * k))} for k in range(3)]
    wanted = [tokenizer.encode(f"{k} + {k}?\n") for k in range(3)]
    assert prompts_of(talks, policy, 2) == wanted[:2]
    assert prompts_of(talks, policy, 9) == wanted


class Losses:
    """Held-out losses as they stand in the parameters: {task: losses}."""

    def by_conversation(self, params, batches):
        return np.array(params[batches])


def watch_of(*tasks):
    return TaskWatch(Losses(), {task: task for task in tasks}, "qwen")


def test_held_out_losses_are_those_of_each_task_and_their_mean():
    """Oracle: by hand. Projections are no parameters of the student."""
    watch = watch_of("a", "b")
    params = {STUDENT: {"a": [1.0, 2.0], "b": [3.0] * 8}, PROJECTIONS: None}
    assert watch.get_state() == dict(latest=0.0, best={}, evaluations=0)
    losses = {"held_out_loss": 2.25, "held_out_loss/a": 1.5, "held_out_loss/b": 3.0}
    assert watch(params) == losses | {"regressed/a": 0.0, "regressed/b": 0.0}
    assert watch.get_state() == dict(latest=2.25, best=params[STUDENT], evaluations=1)


def test_a_task_that_regresses_is_named(capsys):
    """Oracle: by hand: ten conversations, all of which get worse by about 1; equal means and a difference
    within the noise are no regression, and the best is the first of equal ones. What was noted is restored.
    """
    watch, noise = watch_of("sums"), np.arange(10) / 8
    first = 1 + noise
    for losses, regressed, best in (
        (first, 0, first),
        (first[::-1], 0, first),
        (first + 1, 1, first),
        (first + np.resize([0.25, -0.125], 10), 0, first),
        (first - 0.5, 0, first - 0.5),
        (first, 1, first - 0.5),
    ):
        assert watch({"sums": losses})["regressed/sums"] == regressed
        assert watch.best["sums"] == best.tolist()
    said = [line.partition(":") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in said] == ["qwen", "qwen"]
    assert "sums regressed at evaluation 3" in said[0][2] and "1.000 nats" in said[0][2]
    assert "evaluation 6" in said[1][2]
    fresh = watch_of("sums")
    fresh.set_state(json.loads(json.dumps(watch.get_state())))
    assert fresh.get_state() == watch.get_state()


class Packed:
    """Batches of texts without end: the first has two rows of four tokens, of which six are learned."""

    def __init__(self, rows):
        self.place = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.place += 1
        return sampled_rows([([1], [2, 3, 4]), ([self.place], [6, 7, 8])], 4)

    def get_state(self):
        return self.place

    def set_state(self, place):
        self.place = place


def distill_source(**fields):
    class Watch(dict):
        def __call__(self, params):
            self["asked"] = params
            return dict(HELD_OUT)

        def get_state(self):
            return dict(self)

        set_state = dict.update

    how = dict(batch_sizes=((0, 2),), scalars={"temperature": lambda step: 2.0 + step})
    how |= dict(eval_every=2, watch=Watch(), sampler=None, learns_texts=True)
    mesh = make_mesh(devices=jax.devices()[:1])
    return DistillSource(Packed, Rows(batch_size=2, sequence_length=4), mesh, **how | fields)


SAMPLES = {SAMPLED + k: x for k, x in sampled_rows([([5], [7, 8]), ([1, 2], [2])], 5).items()}


@pytest.mark.parametrize(
    "sampled, learns_texts, tokens, row_tokens",
    [(False, True, 6, 8), (True, True, 6 + 3, 8 + 6), (True, False, 3, 6)],
)
def test_a_batch_has_texts_and_samples_and_counts_what_is_read(
    sampled, learns_texts, tokens, row_tokens
):
    """Oracle: by hand: 6 tokens of texts are learned of 8, and 3 that are sampled of 6 with their prompts."""
    asked = []

    def sampler(params, step):
        asked.append((params, step))
        return SAMPLES

    source = distill_source(sampler=sampler if sampled else None, learns_texts=learns_texts)
    state = SimpleNamespace(model={STUDENT: "own", PROJECTIONS: None})
    (batch,), metrics = source.next(state, 4)
    assert metrics.pop("sampled_tokens", None) == (3 if sampled else None)
    assert metrics == HELD_OUT | dict(temperature=6.0, tokens=tokens, row_tokens=row_tokens)
    np.testing.assert_array_equal(batch["tokens"], [[1, 2, 3, 4], [1, 6, 7, 8]])
    assert batch["temperature"] == 6.0
    assert source.watch["asked"] is state.model
    assert {name for name in batch if name.startswith(SAMPLED)} == (
        SAMPLES.keys() if sampled else set()
    )
    assert asked == [("own", 4)] * sampled
    if sampled:
        np.testing.assert_array_equal(batch[f"{SAMPLED}tokens"], SAMPLES[f"{SAMPLED}tokens"])
    assert "held_out_loss" not in source.next(state, 5)[1]


def test_the_texts_and_the_watch_are_resumed():
    """Oracle: the batch after those that were read, and what the watch noted."""
    source, fresh = distill_source(), distill_source()
    state = SimpleNamespace(model="params")
    source.next(state, 0)
    source.next(state, 1)
    fresh.set_state(json.loads(json.dumps(source.get_state())))
    assert fresh.watch == {"asked": "params"}
    (batch,), _ = fresh.next(state, 3)
    assert batch["tokens"][1, 0] == 3
