"""From questions to batches: a step's rollouts, rewards and totals."""

import dataclasses
import json
from types import SimpleNamespace

import flax.linen as nn
import grain
import jax
import numpy as np
import optax
import pytest

from deepseek_jax.costs.flops import training_flops
from deepseek_jax.errors import BrokenTerm, UnusableRewards
from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.models import build_model, init_params
from deepseek_jax.ops.routing import FREE
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce import batch as batches
from deepseek_jax.reinforce import groups, grpo, sampler
from deepseek_jax.reinforce import metrics as step_metrics
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.rewards import Rewards, Rule, scoring
from deepseek_jax.rollout import Policy, decode, generate, generation, policy
from deepseek_jax.settings import build
from deepseek_jax.training.profile import Profile
from deepseek_jax.training.state import TrainState
from deepseek_jax.worlds.arithmetic.tasks import arithmetic_task
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.processes import run_two
from tests.recipes.small import make_run, one_device, small_config
from tests.training.test_profile import folders_of, perfetto

TOKENIZER = arithmetic_tokenizer()
EXAMPLES = [
    example | {"prompt_ids": TOKENIZER.encode(example["question"] + "\n")}
    for example in arithmetic_task(0, 8).train
]
POLICY = build_model(small_config().model.to_dict())

ONE_OF_TWO = """
import sys
import jax
import numpy as np
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.reinforce.batch import minibatches

rng = np.random.default_rng(0)
whole = {"prompt_ids": rng.integers(0, 21, (4, 16), np.int32), "advantages": np.float32(np.arange(16))}
whole |= {"completion_ids": rng.integers(0, 21, (16, 12), np.int32)}
whole |= {"completion_mask": rng.random((16, 12)) < 0.5}
learned = whole["completion_mask"].sum(1)
for sizes in (dict(data=2), dict(pipeline=2)):
    mesh = make_mesh(**sizes)
    (batch,) = [put_share(mesh, part) for part in minibatches(whole, learned, 1, 1.0)]
    everywhere = jax.NamedSharding(mesh, jax.P())
    for name, array in whole.items():
        put = jax.jit(lambda x: x, out_shardings=everywhere)(batch[name])
        np.testing.assert_array_equal(np.asarray(put), array, err_msg=name)
    assert batch["num_tokens"] == whole["completion_mask"].sum()
    print("equal", *sizes, flush=True)
"""


@pytest.fixture(scope="module")
def state():
    params = nn.unbox(jax.jit(lambda rng: init_params(POLICY, rng))(jax.random.key(0)))
    return TrainState.create(params, optax.sgd(0.1))


@pytest.fixture
def rewarded_by(monkeypatch):
    """Make a function of (completion, example) the only reward."""
    return lambda reward: monkeypatch.setitem(scoring.RULES, "correct", Rule(reward))


@pytest.fixture
def rollouts(monkeypatch):
    """Record every Rollout that a source gets."""
    seen = []

    def generating(*arguments, **settings):
        seen.append(generate(*arguments, **settings))
        return seen[-1]

    monkeypatch.setattr(policy, "generate", generating)
    return seen


ROUNDED = dict(reference_dtype="bfloat16")
GENERAL = dict(num_steps=3, per_step=1, rewards={"correct": 1.0}, path="general.jsonl")


def make_source(reference=None, mesh=None, questions=EXAMPLES, requests=(), held_out=(), **fields):
    config = small_config(accuracy="correct", rewards=dict(correct=1.0), **fields)
    settings = build(GrpoSettings, config, "config")
    return GroupSource(
        Policy(POLICY, None, TOKENIZER, "{question}\n"),
        {"reasoning": questions, "general": requests},
        Rewards(settings.rewards),
        settings,
        mesh or one_device(),
        reference,
        held_out,
    )


def asked(n, start=0):
    """The examples that a source asks: grain's shuffle of seed 0, repeated."""
    endless = grain.MapDataset.source(EXAMPLES).shuffle(0).repeat()
    return [endless[i] for i in range(start, start + n)]


def by_length(completion, example):
    """A reward in which every group differs: a random model's completions have many lengths."""
    return float(len(completion))


def operand_sum_is_even(example):
    return sum(example["operands"]) % 2 == 0


def questions_of(batch):
    """The examples whose prompts a batch holds."""
    of = {tuple(example["prompt_ids"]): example for example in EXAMPLES}
    rows = zip(np.asarray(batch["prompt_ids"]), np.asarray(batch["prompt_mask"]), strict=True)
    return [of[tuple(ids[mask].tolist())] for ids, mask in rows]


def test_a_batch_holds_the_rollout_as_it_was_sampled(state, rewarded_by, rollouts):
    """Oracle: the engine's own arrays; advantages and totals by hand of them."""
    rewarded_by(by_length)
    (batch,), metrics = make_source().next(state, 0)
    (rollout,) = rollouts
    t = batch["completion_ids"].shape[1]
    assert not rollout.completion_mask[:, t:].any()
    for name in ("completion_ids", "completion_mask", "sampler_logprobs"):
        np.testing.assert_array_equal(batch[name], getattr(rollout, name)[:, :t])
    assert batch["num_tokens"] == rollout.completion_mask.sum() == metrics["tokens"]
    assert batch["num_completions"] == 8
    texts = [
        TOKENIZER.decode(ids[mask])
        for ids, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    ]
    rewards = np.array([by_length(text, None) for text in texts]).reshape(2, 4)
    centred = rewards - rewards.mean(1, keepdims=True)
    advantages = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(batch["advantages"], advantages.reshape(-1), rtol=1e-3)
    assert metrics["reward"] == metrics["accuracy"] == pytest.approx(rewards.mean(), rel=1e-6)
    assert metrics["reward_group_std"] == pytest.approx(rewards.std(1, ddof=1).mean(), rel=1e-6)
    assert metrics["completion_length"] == rollout.completion_mask.sum(1).mean()
    assert metrics["completion_length_max"] == rollout.completion_mask.sum(1).max()
    assert metrics["truncated_share"] == rollout.truncated.mean()


@pytest.mark.parametrize("loss_type, divides", [("dr_grpo", False), ("gspo", True)])
def test_advantages_divide_by_the_groups_std_where_the_loss_type_does(
    state, rewarded_by, loss_type, divides
):
    """Oracle: by hand, of rewards 0, 1, ... 7: dr_grpo's are centred alone, gspo's over 1.29."""
    numbers = iter(range(8))
    rewarded_by(lambda text, example: float(next(numbers)))
    (batch,), _ = make_source(loss=dict(loss_type=loss_type)).next(state, 0)
    centred = np.float32([-1.5, -0.5, 0.5, 1.5] * 2)
    expected = centred / np.sqrt(5 / 3) if divides else centred
    np.testing.assert_allclose(batch["advantages"], expected, rtol=1e-5)


def test_a_batch_holds_the_questions_of_the_stream(state, rewarded_by):
    """Oracle: grain's shuffle of the same seed; prompts padded on the right to a bucket of 16."""
    rewarded_by(by_length)
    source = make_source()
    for step in range(2):
        (batch,), _ = source.next(state, step)
        assert questions_of(batch) == asked(2, 2 * step)
        assert batch["prompt_ids"].shape == (2, 16)
        np.testing.assert_array_equal(np.diff(np.int32(batch["prompt_mask"]), axis=1) > 0, False)


def test_each_question_is_asked_once_an_epoch_in_a_new_order():
    """Oracle: a count of every epoch; takes that cross an epoch's end."""
    source = make_source(questions=EXAMPLES[:10])
    taken = sum((source._take(4) for _ in range(10)), [])
    epochs = [[example["question"] for example in taken[i : i + 10]] for i in range(0, 40, 10)]
    wanted = sorted(example["question"] for example in EXAMPLES[:10])
    assert all(sorted(epoch) == wanted for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


@pytest.mark.parametrize("taken", [0, 5, 8, 11, 14])
def test_general_questions_are_asked_in_their_steps_alone(taken):
    """Oracle: grain's shuffles, in the order of scenarios.place; a source that resumes asks the same."""
    fields = dict(num_steps=5, prompts_per_step=4, general=GENERAL, requests=EXAMPLES[-3:])
    source = make_source(**fields)
    steps = [source._take(4) for _ in range(5)]
    kinds = ["".join(example["scenario"][0] for example in step) for step in steps]
    assert kinds == ["rrrr", "rrrr", "rrrg", "rrrg", "rrrg"]
    last = [step[-1]["question"] for step in steps[2:]]
    assert sorted(last) == sorted(example["question"] for example in EXAMPLES[-3:])
    puzzles = [e["question"] for step in steps for e in step if e["scenario"] == "reasoning"]
    assert puzzles == [example["question"] for example in asked(17)]
    resumed = make_source(**fields)
    resumed.set_state({"position": taken, "degenerate": {}})
    assert resumed._take(20 - taken) == sum(steps, [])[taken:]


def test_a_source_without_questions_is_refused():
    """Oracle: the message; a run would find no general question only in its last steps."""
    with pytest.raises(ValueError, match="0 questions and 0 general questions are given"):
        make_source(questions=[])
    with pytest.raises(ValueError, match="and 0 general questions are given"):
        make_source(num_steps=5, general=GENERAL)


def test_a_single_update_carries_no_logprobs_but_the_samplers(state, rewarded_by):
    """Oracle: by hand: the policy has not moved, and there is no reference."""
    rewarded_by(by_length)
    (batch,), _ = make_source().next(state, 0)
    assert not batch.keys() & {"old_logprobs", "ref_logprobs"}


@pytest.mark.slow
def test_length_and_temperature_change_at_their_steps(state, rewarded_by, rollouts):
    """Oracle: the pairs by hand; and the trainer's log-probabilities, which agree with the sampler's (1e-5
    nats: rounding) only under the temperature that was sampled at.
    """
    rewarded_by(by_length)
    rollout = dict(
        max_completion_length=((0, 4), (2, 12)), temperature=((0, 1.0), (1, 0.5)), slots=8
    )
    source = make_source(minibatches=2, rollout=rollout)
    for step, (length, temperature) in enumerate([(4, 1.0), (4, 0.5), (12, 0.5), (12, 0.5)]):
        batches, _ = source.next(state, step)
        assert rollouts[step].completion_ids.shape[1] == length
        for batch in batches:
            assert batch["temperature"] == temperature
            gap = np.abs(batch["old_logprobs"] - batch["sampler_logprobs"])
            assert gap[np.asarray(batch["completion_mask"])].max() < 1e-5
            other = source.score(state.params, batch | {"temperature": np.float32(0.7)})
            assert np.abs(other - batch["sampler_logprobs"]).max() > 1e-2


def test_minibatches_are_whole_groups_taken_once_an_epoch(state, rewarded_by, rollouts):
    """Oracle: the halves of the rollout, in turn, twice; totals are those of the half."""
    rewarded_by(by_length)
    batches, _ = make_source(prompts_per_step=4, minibatches=2, epochs=2).next(state, 0)
    (rollout,) = rollouts
    assert len(batches) == 4
    for first, second in zip(batches[:2], batches[2:], strict=True):
        assert all(first[name] is second[name] for name in first.keys() - {"sampled_by"})
    # The policy moves with the first update, so later ones cannot compare
    assert [batch["sampled_by"] > 0 for batch in batches] == [True, False, False, False]
    for half, batch in enumerate(batches[:2]):
        rows = slice(8 * half, 8 * half + 8)
        t = batch["completion_ids"].shape[1]
        np.testing.assert_array_equal(batch["completion_ids"], rollout.completion_ids[rows, :t])
        assert batch["num_tokens"] == rollout.completion_mask[rows].sum()
        assert batch["num_completions"] == 8 and batch["prompt_ids"].shape[0] == 2


def test_several_updates_carry_the_logprobs_of_the_policy_that_sampled(state, rewarded_by):
    """Oracle: sampler_logprobs, from another path through the model, at a temperature that is not 1; 1e-5 is
    float32 rounding.
    """
    rewarded_by(by_length)
    fields = dict(prompts_per_step=4, minibatches=2, rollout=dict(temperature=0.5))
    batches, _ = make_source(**fields).next(state, 0)
    for batch in batches:
        mask = np.asarray(batch["completion_mask"])
        old, sampler = (np.asarray(batch[f"{name}_logprobs"])[mask] for name in ("old", "sampler"))
        np.testing.assert_allclose(old, sampler, atol=1e-5)


def test_a_reference_scores_the_completions(state, rewarded_by):
    """Oracle: the sampler's log-probabilities where the reference is the policy, and not elsewhere."""
    rewarded_by(by_length)
    other = jax.tree.map(lambda leaf: leaf * 1.2, state.params)
    gaps = []
    for reference in (state.params, other):
        (batch,), _ = make_source(reference).next(state, 0)
        gap = np.abs(batch["ref_logprobs"] - batch["sampler_logprobs"])
        gaps.append(float(gap[np.asarray(batch["completion_mask"])].max()))
    assert gaps[0] < 1e-5 and gaps[1] > 1e-3


def test_a_source_knows_whether_the_policy_has_moved_from_its_reference(state, rewarded_by):
    """Oracle: by hand: other parameters sample from step 1 on, and are the reference from step 2 on. One that
    resumes between these steps does not know its reference.
    """
    rewarded_by(by_length)
    moved = state.replace(params=jax.tree.map(lambda leaf: leaf * 1.2, state.params))
    fields = dict(reference_every=2, loss=dict(kl_coef=0.1), num_steps=3)
    source, resumed = (make_source(state.params, **fields) for _ in range(2))
    for step, (params, has_moved) in enumerate([(state, False), (moved, True), (moved, False)]):
        source.next(params, step)
        assert source.has_moved == has_moved
    resumed.next(moved, 1)
    assert not resumed.has_moved


def test_dynamic_sampling_draws_on_until_enough_groups_differ(state, rewarded_by, rollouts, capsys):
    """Oracle: the stream, read by hand in rounds of four, for questions whose groups differ."""
    rewarded_by(lambda text, example: len(text) * operand_sum_is_even(example) * 1.0)
    source = make_source(prompts_per_step=4, max_sampling_rounds=9)
    (batch,), metrics = source.next(state, 0)
    seen, kept = [], []
    while len(kept) < 4:
        seen += asked(4, len(seen))
        kept = [example for example in seen if operand_sum_is_even(example)]
    assert questions_of(batch) == kept[:4] and len(seen) > 4
    assert metrics["sampling_rounds"] == len(seen) / 4
    assert metrics["equal_groups_used"] == 0 and "nothing to learn" not in capsys.readouterr().out
    assert metrics["all_equal_share"] == (len(seen) - len(kept)) / len(seen)
    assert metrics["sampled_tokens"] > metrics["tokens"] == batch["num_tokens"]
    lengths = np.concatenate([rollout.completion_mask.sum(1) for rollout in rollouts])
    assert metrics["completion_length"] == lengths.mean()  # of the groups that were dropped, too
    texts = [
        TOKENIZER.decode(ids[mask])
        for rollout in rollouts
        for ids, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    ]
    repeated = [example for example in seen for _ in range(4)]
    rewards = [len(t) * operand_sum_is_even(e) for t, e in zip(texts, repeated, strict=True)]
    assert metrics["reward"] == metrics["accuracy"] == pytest.approx(np.mean(rewards), rel=1e-6)
    assert source.get_state()["position"] == len(seen)


def test_dynamic_sampling_falls_back_to_equal_groups_after_its_rounds(state, rewarded_by, capsys):
    """Oracle: by hand: no group differs in three rounds; the first two stand, with nothing to learn."""
    rewarded_by(lambda text, example: 1.0)
    source = make_source(max_sampling_rounds=3)
    (batch,), metrics = source.next(state, 0)
    assert metrics["equal_groups_used"] == 2
    said = capsys.readouterr().out
    assert said.count("step 0: 2 of 2 groups have nothing to learn from") == 1
    assert metrics["sampling_rounds"] == 3 and metrics["all_equal_share"] == 1
    assert questions_of(batch) == asked(2)
    np.testing.assert_array_equal(batch["advantages"], 0)
    # A source that resumes goes on counting such steps
    assert source.get_state()["position"] == 6
    resumed = make_source(max_sampling_rounds=3)
    resumed.set_state(json.loads(json.dumps(source.get_state())))
    resumed.next(state, 1)
    assert resumed.degenerate.counts["equal_rewards"] == 2


def test_equal_groups_that_fill_a_batch_are_counted_beside_those_that_differ(state, rewarded_by):
    """Oracle: the stream, read by hand for two rounds of four: as many equal groups as four still lack."""
    first = asked(8)
    differs = first[0]["question"], first[5]["question"]
    rewarded_by(lambda text, example: len(text) * (example["question"] in differs) * 1.0)
    (batch,), metrics = make_source(prompts_per_step=4, max_sampling_rounds=2).next(state, 0)
    kept = [example for example in first if example["question"] in differs]
    equal = [example for example in first if example["question"] not in differs]
    assert questions_of(batch) == (kept + equal)[:4] and len(kept) < 4
    assert metrics["equal_groups_used"] == 4 - len(kept)


def test_a_step_is_timed_in_the_parts_of_mlperf(state, rewarded_by, monkeypatch):
    """Oracle: by hand, of a clock that moves by 1 s for the parameters of a rollout, by 5 s for the rest of
    it, by 0.25 s for each reward, by 3 s for old log-probabilities and by 2 s for the updates: two rounds of
    eight completions, whose tokens are learned in two epochs, on one device.
    """
    now = [0.0]

    def moves(seconds, function):
        def moving(*arguments, **settings):
            now[0] += seconds
            return function(*arguments, **settings)

        return moving

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    for module in (step_metrics, sampler, generation):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(decode, "decoding_weights", moves(1, decode.decoding_weights))
    monkeypatch.setattr(policy, "generate", moves(5, generate))
    rewarded_by(moves(0.25, lambda text, example: 1.0))
    source = make_source(max_sampling_rounds=2, epochs=2)
    source.score = moves(3, source.score)
    for step in range(2):
        _, metrics = source.next(state, step)
        now[0] += 2
        after = source.of_updates()
        assert metrics["weight_sync_time"] == 2 and metrics["exposed_generation_time"] == 10
        assert metrics["reward_seconds"] == 4
        assert metrics["rollout_tokens_per_second"] == metrics["sampled_tokens"] / 10
        assert after == {
            "policy_training_time": 5,
            "train_step_time": 21,
            "valid_tokens_per_sec_per_gpu": pytest.approx(metrics["tokens"] / 21),
            "update_tokens_per_second": pytest.approx(2 * metrics["tokens"] / 5),
        }
        # Of the loop, between two steps
        now[0] += 100


def test_the_mfu_of_an_update_counts_its_epochs_and_the_passes_that_score(
    state, rewarded_by, monkeypatch
):
    """Oracle: by hand: two epochs and the two scoring passes, of a third each, of old policy and reference,
    in 4 s at a peak of 1e9: every token by the keys that it sees, in a python loop. Prompts need no logits
    of their own.
    """
    rewarded_by(by_length)
    now = [0.0]
    monkeypatch.setattr(step_metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(step_metrics, "peak_of", lambda devices: 1e9)
    source = make_source(state.params, epochs=2, loss=dict(kl_coef=0.1))
    (batch, _), _ = source.next(state, 0)
    now[0] += 4
    once = 0.0
    prompts, completions = (
        np.asarray(batch[f"{part}_mask"]).sum(1) for part in ("prompt", "completion")
    )
    for row, prompt in enumerate(prompts):
        head = 6 * POLICY.vocab_size * POLICY.hidden_size
        once += prompt * (training_flops(POLICY, prompt / 2) - head)
        for length in completions[4 * row : 4 * row + 4]:
            once += length * training_flops(POLICY, prompt + length / 2)
    wanted = once * (2 + 2 / 3) / (4 * 1e9)
    assert source.of_updates()["update_mfu"] == pytest.approx(wanted, rel=1e-6)


def test_a_trace_names_the_parts_of_a_step(state, rewarded_by, tmp_path):
    """Oracle: names by hand, in order, the parameters within the generation that needs them."""
    rewarded_by(by_length)
    source, profile = make_source(), Profile(0, 1, tmp_path)
    for step in profile.over(range(1), "grpo", lambda: None):
        source.next(state, step)
    (folder,) = folders_of(tmp_path / "grpo")
    names = ("grpo", "generation", "weight_sync", "rewards", "logprobs")
    events = [event for event in perfetto(folder) if event["name"] in names]
    assert [event["name"] for event in events] == list(names)
    ends = {event["name"]: event["ts"] + event["dur"] for event in events}
    assert ends["weight_sync"] < ends["generation"] < ends["rewards"] < ends["logprobs"]
    assert ends["logprobs"] <= ends["grpo"]


def test_prompts_are_prefilled_once_for_their_group(state, rewarded_by):
    """Oracle: by hand: prompts of 17 and 3 tokens are padded to 32, and prefilled in each of three rounds
    for all four completions.
    """
    rewarded_by(lambda text, example: 1.0)
    rollout = dict(max_prompt_length=32, max_completion_length=20)
    questions = [
        EXAMPLES[i] | {"prompt_ids": EXAMPLES[i]["prompt_ids"][:1] * n}
        for i, n in ((0, 17), (1, 3))
    ]
    source = make_source(questions=questions, max_sampling_rounds=3, rollout=rollout)
    _, metrics = source.next(state, 0)
    assert metrics["prefilled_positions"] == 3 * 2 * 32


def test_a_completion_that_cannot_be_scored_is_left_out_and_counted(
    state, rewarded_by, rollouts, capsys
):
    """Oracle: group_advantages with NaN in its place; the means by hand of the six others."""
    calls, rewards = [], np.array([1.0, 4, np.nan, 2, np.nan, 0, 3, 3])

    def fails_twice(completion, example):
        calls.append(completion)
        if np.isnan(rewards[len(calls) - 1]):
            raise ZeroDivisionError("no rule")
        return rewards[len(calls) - 1]

    rewarded_by(fails_twice)
    (batch,), metrics = make_source().next(state, 0)
    expected = np.asarray(group_advantages(np.float32(rewards), group_size=4, normalize_std=True))
    np.testing.assert_array_equal(batch["advantages"], expected)
    (rollout,) = rollouts
    mask, t = (
        rollout.completion_mask & ~np.isnan(rewards)[:, None],
        batch["completion_ids"].shape[1],
    )
    np.testing.assert_array_equal(batch["completion_mask"], mask[:, :t])
    assert batch["num_completions"] == 6 and batch["num_tokens"] == mask.sum()
    assert metrics["reward_errors"] == 2
    assert metrics["reward"] == metrics["accuracy"] == pytest.approx(13 / 6)
    stds = [rewards[[0, 1, 3]].std(ddof=1), rewards[[5, 6, 7]].std(ddof=1)]
    assert metrics["reward_group_std"] == pytest.approx(np.mean(stds))
    assert (
        "step 0: reward 'correct' failed with ZeroDivisionError('no rule')"
        in capsys.readouterr().out
    )


def without_ends(batch):
    """A batch whose mask leaves out the last token of each completion."""
    mask = batch["completion_mask"]
    return batch | {"completion_mask": mask & np.roll(mask, -1, axis=1)}


@pytest.mark.parametrize(
    "place, name, change, words",
    [
        (groups, "group_advantages", lambda advantages: -advantages, "not in the same order"),
        (batches, "completion_batch", without_ends, "a mask is wrong"),
        (GroupSource, "_numbers", lambda _: range(2), "all 2 questions were asked before"),
    ],
    ids=["negated", "no ends", "asked again"],
)
def test_a_fault_in_a_steps_batches_is_named(
    state, rewarded_by, monkeypatch, place, name, change, words
):
    """Oracle: by hand: the fault that is planted; two steps without it are those of all other tests here."""
    rewarded_by(by_length)
    of, source = getattr(place, name), make_source()
    monkeypatch.setattr(place, name, lambda *given, **how: change(of(*given, **how)))
    with pytest.raises(BrokenTerm, match=words):
        for step in range(2):
            source.next(state, step)


@pytest.mark.parametrize(
    "reward, words", [(1e30, "correct: a reward is 1e[+]30"), (1.0, "of each group were equal")]
)
def test_a_step_of_rewards_that_teach_nothing_is_ended(state, rewarded_by, reward, words):
    """Oracle: by hand: one that overflows float32, and one that is equal for all, at a limit of one step."""
    rewarded_by(lambda *_: reward)
    with pytest.raises(UnusableRewards, match=words):
        make_source(degenerate=dict(equal_rewards=1)).next(state, 0)


@pytest.mark.slow
def test_updates_use_the_experts_that_the_sampler_chose(state, rewarded_by):
    """Oracle: the numbers of a source that keeps none, in float32, where the policy chooses the same; the
    experts of a token of the batch are those of the rollout's row.
    """
    rewarded_by(by_length)
    fields = dict(minibatches=2, loss=dict(kl_coef=0.1, clip_eps=0.2))
    batches, free = (
        make_source(state.params, keep_routing=keeps, **fields).next(state, 0)[0]
        for keeps in (True, False)
    )
    assert batches[0]["prompt_experts"].shape[:2] == batches[0]["prompt_ids"].shape
    assert batches[0]["completion_experts"].shape[:2] == batches[0]["completion_ids"].shape
    for ours, theirs in zip(batches, free, strict=True):
        assert ours.keys() - theirs.keys() == {"prompt_experts", "completion_experts"}
        mask = np.asarray(ours["completion_mask"])
        for name in ("old_logprobs", "ref_logprobs"):
            np.testing.assert_array_equal(ours[name][mask], theirs[name][mask])
        # Every token of a completion but its last
        lengths = mask.sum(1)
        kept = (np.asarray(ours["completion_experts"]) != FREE).all((2, 3)).sum(1)
        np.testing.assert_array_equal(kept, lengths - 1)


@pytest.mark.slow
def test_updates_of_truncated_samples_are_over_their_candidates(state, rewarded_by):
    """Oracle: the sampler's own log-probabilities, which are over the candidates; of all tokens they would be
    lower by up to a nat.
    """
    rewarded_by(by_length)
    rollout = dict(max_prompt_length=16, max_completion_length=12, top_k=4, top_p=0.9, slots=8)
    source = make_source(
        state.params, minibatches=2, rollout=rollout, loss=dict(kl_coef=0.1, clip_eps=0.2)
    )
    for batch in source.next(state, 0)[0]:
        mask = np.asarray(batch["completion_mask"])
        sampled = batch["sampler_logprobs"][mask]
        for name in ("old_logprobs", "ref_logprobs"):
            np.testing.assert_allclose(batch[name][mask], sampled, atol=1e-5)
        whole = source.score(state.params, {k: v for k, v in batch.items() if k != "candidates"})
        assert (np.asarray(whole)[mask] < sampled - 0.1).mean() > 0.5


@pytest.mark.parametrize("fields", [dict(top_p=0.9), dict(top_k=129), dict(top_p=0.9, top_k=200)])
def test_more_candidates_than_an_update_keeps_are_refused(fields):
    """Oracle: the words a reader needs."""
    rollout = dict(max_prompt_length=16, max_completion_length=12) | fields
    words = f"config.rollout.top_k={fields.get('top_k', 0)} .* keeps at most 128 candidates a token"
    with pytest.raises(ValueError, match=words):
        make_source(rollout=rollout)


def test_experts_of_several_rollouts_are_not_kept():
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match="keep_routing=True .* set max_sampling_rounds=2 to 1"):
        make_source(keep_routing=True, max_sampling_rounds=2)


def test_a_source_goes_on_where_another_stood(state, rewarded_by):
    """Oracle: the second batch of a source that was never stopped, bit for bit."""
    rewarded_by(by_length)
    whole, resumed = make_source(), make_source()
    whole.next(state, 0)
    resumed.set_state(whole.get_state())
    (expected,), _ = whole.next(state, 1)
    (batch,), _ = resumed.next(state, 1)
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])


def test_eight_devices_get_the_batch_that_one_gets(state, rewarded_by):
    """Oracle: the batch on one device; rows lie over all eight."""
    rewarded_by(by_length)
    (one,), _ = make_source(prompts_per_step=8).next(state, 0)
    (eight,), _ = make_source(prompts_per_step=8, mesh=make_mesh()).next(state, 0)
    for name in one:
        np.testing.assert_array_equal(eight[name], one[name])
    assert len(eight["completion_ids"].sharding.device_set) == 8


@pytest.mark.slow
def test_two_processes_get_the_batch_that_each_has_made():
    """Oracle: that batch, gathered from both: once with its rows split over the processes, once with a
    pipeline, where each process has its own stage and so all rows.
    """
    codes, outputs = run_two(ONE_OF_TWO, xla_flags="--xla_force_host_platform_device_count=1")
    assert codes == [0, 0], outputs
    for output in outputs:
        lines = [line for line in output.splitlines() if line.startswith("equal")]
        assert lines == ["equal data", "equal pipeline"]


@pytest.mark.parametrize(
    "fields, frozen, saved",
    [
        ({}, False, False),
        (dict(loss=dict(kl_coef=0.1), **ROUNDED), True, False),
        (dict(loss=dict(kl_coef=0.1), reference_every=2, **ROUNDED), False, True),
    ],
)
def test_a_reference_is_frozen_or_follows_or_is_not_there(
    state, monkeypatch, tmp_path, fields, frozen, saved
):
    """Oracle: the policy's parameters, rounded as reference_dtype says: in the source where they stay, in
    the state where a later policy replaces them.
    """
    trained = arguments_of_train(state, monkeypatch, tmp_path, **fields)
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf.astype("bfloat16")), state.params)
    for reference, is_there in (
        (trained.source.reference, frozen),
        (trained.state.reference, saved),
    ):
        assert (reference is not None) == is_there
        if is_there:
            references = jax.tree.map(lambda leaf: np.asarray(leaf.astype("bfloat16")), reference)
            jax.tree.map(np.testing.assert_array_equal, references, rounded)
            assert reference["head"].dtype == "bfloat16"


def test_the_first_update_of_a_phase_and_each_line_are_checked(state, monkeypatch, tmp_path):
    """Oracle: by hand: a KL of 1 nat where the policy is its reference; limits and weights of the loss."""
    trained = arguments_of_train(state, monkeypatch, tmp_path, loss=dict(kl_coef=0.1))
    checks = trained.checks
    checks.after_first({"kl": 0.0})
    with pytest.raises(BrokenTerm, match="at the first update the KL to the reference is 1"):
        checks.after_first({"kl": 1.0})
    assert "sampler_gap_mean" in checks.limits and checks.limits["stale_params"].largest == 0
    assert checks.weights(dict(num_tokens=7, num_completions=3))["entropy"] == 7
    assert checks.of_line.__self__.source is trained.source and callable(checks.locate)
    assert trained.source.sampler.folder == tmp_path / "grpo_rollouts"


def arguments_of_train(state, monkeypatch, folder, **fields):
    """What reinforce gives to the training loop: a namespace."""
    names = "settings", "state", "update", "source", "run", "seed", "checks"
    seen = {}

    def train(*arguments):
        seen.update(zip(names, arguments, strict=True))
        return SimpleNamespace(model=state.params)

    monkeypatch.setattr(grpo, "train", train)
    config = small_config(rewards=dict(correct=1.0), **fields)
    settings = build(GrpoSettings, config, "config")
    # The state takes the parameters' place
    params = jax.tree.map(jax.numpy.copy, state.params)
    start_policy = Policy(POLICY, params, TOKENIZER, "{question}\n")
    run = dataclasses.replace(make_run(folder, phase="grpo"), folder=folder / "grpo")
    grpo.reinforce(settings, start_policy, {"reasoning": EXAMPLES}, Rewards(settings.rewards), run)
    return SimpleNamespace(**seen)
