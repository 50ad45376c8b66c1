"""Steps that leave their slowest groups to the next: what is taken, what is carried, and how old it is."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from deepseek_jax.models import random_params
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce import stragglers
from deepseek_jax.reinforce.metrics import StepRecord
from deepseek_jax.reinforce.stragglers import LateAnswers, Open, UnderWay
from deepseek_jax.rewards import Rule, scoring
from deepseek_jax.rollout.answers import Answers
from deepseek_jax.rollout.completions import Rollout
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import read_metrics
from deepseek_jax.training.state import TrainState
from tests.recipes.small import one_device, small_config
from tests.reinforce.test_grpo import EXAMPLES, POLICY, asked, make_source
from tests.reinforce.test_update import assert_same, train

WANTED, EXTRA, N = 2, 3, 4
FIELDS = dict(prompts_per_step=WANTED, extra_prompts=EXTRA, group_size=N)


@pytest.fixture(autouse=True)
def by_length(monkeypatch):
    """A reward in which groups differ."""
    rule = Rule(lambda text, _: len(text) / 10)
    for name in ("correct", "correct_reasoning"):
        monkeypatch.setitem(scoring.RULES, name, rule)


def params(seed):
    return random_params(POLICY, one_device(), seed)


def small_source():
    return make_source(**FIELDS)


def sample(source, step):
    """(groups, all sampled groups, counts) of a step, with the parameters of the seed `step`."""
    source.record = StepRecord(source.mesh)
    return *source._sample(params(step), step), source.record.counts


def tokens_of(carried):
    """{index of the question: the ids of its completions}"""
    return {group.index: [c["ids"] for c in group.completions] for group in carried}


@pytest.mark.slow
def test_every_group_is_taken_once_and_its_completions_only_grow():
    """Oracle: by hand: of the questions asked so far a step takes two complete groups, the others wait; every
    carried completion is the beginning of the later one, and exactly that is stale.
    """
    source, used, before = small_source(), [], {}
    for step in range(6):
        groups, sampled, counts = sample(source, step)
        assert len(groups) == WANTED and sampled is groups
        after, known = tokens_of(source.late.carried), range(source.position)
        assert len(after) == EXTRA == counts["groups_carried"]
        taken = [i for i in known if i not in used and i not in after]
        prompts = [asked(i + 1)[i]["prompt_ids"] for i in taken]
        assert [group["prompt_ids"] for group in groups] == prompts
        stale = 0
        for index, group in zip(taken, groups, strict=True):
            had = before.get(index, [[]] * N)
            assert group["stale"].tolist() == [len(ids) for ids in had]
            for ids, row, mask in zip(had, group["ids"], group["mask"], strict=True):
                assert row[: len(ids)].tolist() == ids and mask[: len(ids)].all()
                # An end token, or all the room that there is
                assert row[mask][-1] in source.policy.eos_ids or mask.sum() == 12
            stale += group["stale"].sum()
        for index, completions in after.items():
            for had, ids in zip(before.get(index, [[]] * N), completions, strict=True):
                assert ids[: len(had)] == had
        total = sum(group["mask"].sum() for group in groups)
        assert counts["stale_share"] == stale / total
        used, before = used + taken, after
    assert sorted(used + list(before)) == list(range(source.position)) and len(set(used)) == 12
    assert counts["carried_steps_max"] > 0 and counts["stale_share"] > 0


@pytest.mark.slow
def test_a_rollout_ends_when_enough_groups_are_complete(monkeypatch):
    """Oracle: the same rollout to its end, which samples more tokens."""
    first = sample(small_source(), 0)[2]["sampled_tokens"]
    monkeypatch.setattr(stragglers.UnderWay, "enough", None)
    assert first < sample(small_source(), 0)[2]["sampled_tokens"]


def test_a_sampler_resumes_with_what_it_carries():
    """Oracle: the sampler that goes on, bit for bit, from a state that went through JSON."""
    source, resumed = small_source(), small_source()
    for step in range(2):
        sample(source, step)
    resumed.set_state(json.loads(json.dumps(source.get_state())))
    groups, others = (sample(each, 2)[0] for each in (source, resumed))
    assert_same(groups, others)
    assert source.get_state() == resumed.get_state()


def test_stale_tokens_are_marked_in_the_batch_and_counted():
    """Oracle: the groups' own counts."""
    source = make_source(**FIELDS)
    state = TrainState(step=None, params=params(0), opt_state=None)
    source.next(state, 0)
    carried = {g.index: g.lengths() for g in source.late.carried}
    (batch,), metrics = source.next(TrainState(step=None, params=params(1), opt_state=None), 1)
    stale, mask = (np.asarray(batch[name]) for name in ("stale_mask", "completion_mask"))
    left = {group.index for group in source.late.carried}
    taken = [i for i in range(source.position) if i not in left]
    counts = [
        carried.get(i, np.zeros(N, int)) for i in taken if i in carried or i >= WANTED + EXTRA
    ]
    assert stale.sum(1).tolist() == np.concatenate(counts).tolist() and not (stale & ~mask).any()
    assert batch["num_stale"] == stale.sum() > 0
    assert metrics["stale_share"] == stale.sum() / mask.sum()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_its_stragglers(tmp_path):
    """Oracle: the run that nothing stopped, bit for bit. Its policy moves far in a step: the gap of stale
    tokens shows it, and the sampler's own stays within its limits, which end a run.
    """
    fields = dict(num_steps=5, extra_prompts=2, optimizer=dict(learning_rate=0.02), save_every=2)
    fields |= dict(log_every=1, loss=dict(kl_coef=0.0))
    wanted = train(tmp_path / "whole", **fields)
    calls = iter(range(100))
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", should_stop=lambda: next(calls) == 2, **fields)
    assert_same(jax.device_get(train(tmp_path / "stopped", **fields)), jax.device_get(wanted))
    lines = list(read_metrics(tmp_path / "whole" / "metrics.jsonl", "rl"))
    assert [line["stale_share"] > 0 for line in lines][1:].count(True) >= 3
    moved = [line["stale_gap_mean"] for line in lines if line["stale_share"] > 0]
    assert min(moved) > 1e-3 > max(line["sampler_gap_max"] for line in lines)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(max_sampling_rounds=2), "extra_prompts=1 .* max_sampling_rounds=2"),
        (
            dict(rollout=dict(temperature=((0, 1.0), (1, 0.5)))),
            "extra_prompts=1 .* one temperature",
        ),
        (
            dict(rollout=dict(max_completion_length=((0, 12), (1, 8)))),
            "extra_prompts=1 .* let it rise alone",
        ),
    ],
)
def test_what_stragglers_cannot_be_combined_with_is_refused(fields, words):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=words):
        build(GrpoSettings, small_config(**dict(extra_prompts=1) | fields), "config")


def test_questions_run_out_for_none():
    """Oracle: by hand: with more under way than there are questions the stream repeats them."""
    source = make_source(prompts_per_step=WANTED, extra_prompts=len(EXAMPLES))
    groups, _, counts = sample(source, 0)
    assert len(groups) == WANTED and counts["groups_carried"] == len(EXAMPLES)


def completion(*ids, ended=False):
    return dict(ids=list(ids), logprobs=[-1.0] * len(ids), finished=ended, ended=ended)


CARRIED = [
    Open(5, 1, [completion(7, 8), completion(9, ended=True)]),
    Open(6, 3, [completion(), completion()]),
]


def test_a_rollout_continues_what_has_begun_and_ends_with_enough_groups():
    """Oracle: by hand: of two groups the first has one completion that has ended and one of two tokens."""
    log = UnderWay(CARRIED, wanted=1)
    assert log.done == {1: CARRIED[0].completions[1]}
    assert log.begun == {0: ([7, 8], [-1.0, -1.0])}
    assert not log.enough()
    log.add([2], None)
    assert not log.enough()
    log.add([3], None)
    assert log.enough()
    log = UnderWay(CARRIED, wanted=2)
    log.add([2, 3], None)
    assert not log.enough()
    log.add([0], None)
    assert log.enough()


def rollout(lengths):
    """A Rollout whose completions are 1, 2, ... of these lengths."""
    mask = np.arange(4) < np.array(lengths)[:, None]
    ids = np.where(mask, 1 + np.arange(4), 0)
    return Rollout(ids, mask, -1.0 * mask, np.zeros(len(lengths), bool))


def test_the_groups_after_a_rollout_have_its_completions():
    """Oracle: by hand: those that have not ended are under way."""
    log = UnderWay(CARRIED, wanted=1)
    log.add([2, 3], None)
    first, second = log.after(rollout([3, 1, 2, 4]))
    assert [first.index, second.index] == [5, 6] and [first.asked, second.asked] == [1, 3]
    assert first.lengths().tolist() == [3, 1] and second.lengths().tolist() == [2, 4]
    assert not first.is_complete and second.is_complete
    assert [c["ended"] for c in first.completions] == [False, True]
    assert second.completions[1]["ids"] == [1, 2, 3, 4]


class Rolls:
    """A sampler whose rollout has these lengths, and in which these rows end."""

    def __init__(self, lengths, ended):
        self.lengths, self.ended = lengths, ended

    def answer(self, params, examples, step, *, log):
        self.given, self.log = (params, examples, step), log
        log.add(self.ended, None)
        texts = list(map(str, range(len(self.lengths))))
        prompts = [example["prompt_ids"] for example in examples]
        counts = dict(sampled_tokens=sum(self.lengths), prefilled_positions=100)
        return Answers(texts, rollout(self.lengths), 2, prompts), counts


def late(lengths, ended):
    questions = [{"prompt_ids": [1] * number} for number in range(16)]
    settings = SimpleNamespace(prompts_per_step=2, extra_prompts=2, group_size=2)
    made = LateAnswers(Rolls(lengths, ended), questions, settings)
    made.set_state({"carried": [dict(index=15, asked=1, completions=CARRIED[0].completions[::-1])]})
    return made


def test_a_step_takes_the_groups_that_are_complete_and_carries_the_others():
    """Oracle: by hand: of a carried group of three tokens and two new ones, the carried one and the last are
    complete. 12 tokens less 3 are of this step; the prompt of the carried row, of 15 + 2 tokens, is prefilled
    once more in room for 32; 3 of the 8 tokens that are taken are stale; the older group was of step 1.
    """
    made = late([1, 3, 1, 3, 2, 2], ended=[1, 2, 4, 5])
    assert made.room() == 3
    examples, answers, counts = made.answer("params", range(7, 9), step=4)
    asked = [15, 7, 8]
    assert made.sampler.given == ("params", [made.questions[i] for i in asked], 4)
    assert made.sampler.log.begun.keys() == {1} and made.sampler.log.done.keys() == {0}
    assert examples == [made.questions[15], made.questions[8]]
    assert answers.texts[0] == "0" and answers.texts[3] == "5"
    assert [len(prompt) for prompt in answers.prompts] == [15, 8]
    assert counts == dict(
        sampled_tokens=12 - 3,
        prefilled_positions=100 + 32,
        groups_carried=1,
        carried_steps_max=3,
        stale_share=3 / 8,
    )
    assert [(group.index, group.asked) for group in made.carried] == [(7, 4)]
    assert made.carried[0].lengths().tolist() == [1, 3] and made.room() == 3
    marked = made.marked([{"a": 1}, {"b": 2}])
    assert [each.pop("stale").tolist() for each in marked] == [[1, 2], [0, 0]]
    assert marked == [{"a": 1}, {"b": 2}]
    fresh = late([], [])
    fresh.set_state(json.loads(json.dumps(made.get_state())))
    assert fresh.carried == made.carried


def test_a_step_takes_no_more_groups_than_it_asks():
    """Oracle: by hand: all three are complete, and the last waits, complete, for the next step."""
    made = late([1, 3, 1, 3, 2, 2], ended=[1, 2, 3, 4, 5])
    examples, _, counts = made.answer("params", range(7, 9), step=4)
    assert [len(example["prompt_ids"]) for example in examples] == [15, 7]
    assert [group.index for group in made.carried] == [8] and made.carried[0].is_complete
    assert counts["groups_carried"] == 1
