"""What is logged of a step."""

from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.costs.program import GENERATION
from deepseek_jax.reinforce import metrics
from deepseek_jax.reinforce.metrics import (
    StepRecord,
    describe,
    kept_groups,
    of_conversations,
)
from tests.reinforce.rollouts import rollout_of

NAN = np.nan
CHIPS = SimpleNamespace(size=4, devices=np.array([["a", "b"], ["c", "d"]]))


@pytest.fixture
def clock(monkeypatch):
    """Seconds by hand: [now]."""
    now = [100.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.mark.parametrize("peak, exchanged", [(None, False), (50.0, True)])
def test_a_step_has_its_times_and_counts(clock, monkeypatch, peak, exchanged):
    """Oracle: by hand: a step of 10 s on four devices, of which 4 s train, 3 s reward twice and 0.5 s sample
    30 tokens, of which 20 are learned; its updates need 400 operations. Where a rollout exchanges in rounds,
    eight exchanges take ten of them.
    """
    monkeypatch.setattr(metrics, "peak_of", lambda devices: peak if len(devices) == 4 else 0)
    record = StepRecord(CHIPS)
    assert record.asked == record.answered == 0
    for seconds in (1, 2):
        with record.timed("reward_seconds"):
            clock[0] += seconds
        record.add({"sampled_tokens": 15, GENERATION: 0.25})
        record.add(
            {"exchanges": 4 * exchanged, "exchange_rounds": (4.0, 6.0)[seconds - 1] * exchanged}
        )
        record.log({"mine": seconds})
    clock[0] += 3
    record.begin_training()
    assert record.of_samples()["tokens"] == 0.0
    record.tokens = 20
    assert record.of_samples() == {
        "reward_seconds": 3.0,
        "sampled_tokens": 30.0,
        GENERATION: 0.5,
        "tokens": 20.0,
        "rollout_tokens_per_second": 60.0,
        "logged/mine": 1.5,
    } | ({"exchange_rounds": 1.25} if exchanged else {})
    clock[0] += 4
    times = {
        "policy_training_time": 4.0,
        "train_step_time": 10.0,
        "valid_tokens_per_sec_per_gpu": 0.5,
    }
    assert record.of_updates() == times
    record.flops = 400.0
    times["update_tokens_per_second"] = 5.0
    times |= {} if peak is None else {"update_mfu": 2.0}
    assert record.of_updates() == times
    record.epochs = 3
    assert record.of_updates()["update_tokens_per_second"] == 15.0


def group(rewards, lengths, *, right, effort=None, truncated=False, fine=(NAN, NAN, NAN)):
    """Three completions of these lengths, of at most four tokens."""
    return dict(
        rewards=np.float32(rewards),
        rollout=rollout_of(np.arange(4) < np.array(lengths)[:, None], truncated=[truncated] * 3),
        parts={"right": np.float32(right), "fine": np.float32(fine)},
        effort=effort,
    )


def test_the_metrics_of_groups_skip_what_was_not_scored():
    """Oracle: by hand: the deviation is that of a sample, of the groups of which two are scored."""
    groups = [
        group([0, 2, NAN], [1, 2, 3], right=[0, 1, NAN]),
        group([3, 3, 3], [4, 4, 4], right=[1, 1, 1], truncated=True),
        group([5, NAN, NAN], [1, 1, 1], right=[1, NAN, NAN]),
    ]
    found = describe(groups, "right")
    wanted = {
        "reward": 16 / 6,
        "reward_group_std": 2**0.5 / 2,
        "all_equal_share": 2 / 3,
        "completion_length": 21 / 9,
        "completion_length_max": 4,
        "truncated_share": 1 / 3,
        "reward_right": 5 / 6,
        "accuracy": 5 / 6,
    }
    assert found == pytest.approx(wanted)
    groups[0]["parts"]["fine"] = np.float32([1, 2, 3])
    alone = describe(groups[1:2], "right")
    assert alone["completion_length"] == 4 and alone["accuracy"] == 1 and "turns" not in alone
    assert describe(groups, "fine")["accuracy"] == describe(groups, "right")["reward_fine"] == 2


def test_efforts_have_metrics_of_their_own():
    """Oracle: by hand; no accuracy where only general questions were asked with an effort."""
    groups = [
        group([0, 1, 1], [1, 2, 3], right=[0, 1, 1], effort=50),
        group([0, 1, 1], [1, 1, 2], right=[NAN] * 3, effort=75),
        group([0, 0, 1], [4, 4, 4], right=[0, 0, 1], effort=50),
    ]
    found = {name: x for name, x in describe(groups, "right").items() if "effort" in name}
    assert found == pytest.approx(
        {
            "completion_length_effort_50": 3.0,
            "accuracy_effort_50": 0.5,
            "completion_length_effort_75": 4 / 3,
        }
    )


def conversation(turns, failed=0):
    counts = dict(turns=turns, tool_calls=2 * turns, failed=failed)
    return SimpleNamespace(counts=lambda: counts, messages=[turns])


def test_conversations_have_means_of_turns_and_sums_of_the_rest():
    """Oracle: by hand; they stand beside the metrics of their groups."""
    wanted = dict(turns=2.0, tool_calls=4.0, failed=3)
    assert of_conversations([conversation(1, 2), conversation(3, 1)]) == wanted
    groups = [group([0, 1, 1], [1, 2, 3], right=[0, 1, 1]) for _ in range(2)]
    for each in groups:
        each["conversations"] = [conversation(turns, 0) for turns in (1, 2, 3)]
    found = describe(groups, "right")
    assert (found["turns"], found["tool_calls"], found["failed"]) == (2, 4, 0)


def test_completions_are_kept_with_what_is_theirs():
    """Oracle: by hand: two groups of three."""
    groups = []
    for place in range(2):
        own = group([0, 1, NAN], [1, 2, 3], right=[0, 1, NAN])
        own["example"] = {"question": f"q{place}", "answer": place, "topic": "t", "prompt_ids": [1]}
        own |= dict(texts=list("abc"), unread=[False, True, False], columns={"c": [7, 8, 9]})
        groups.append(own)
    groups[1]["conversations"] = [conversation(turns) for turns in (4, 5, 6)]
    kept = kept_groups(groups, np.arange(6.0), [0, 1])
    assert [(each["prompt"], each["answer"], each["columns"]) for each in kept] == [
        ("q0", 0, {"topic": "t"}),
        ("q1", 1, {"topic": "t"}),
    ]
    first, last = kept[0]["completions"], kept[1]["completions"]
    assert first[1] == dict(
        text="b",
        reward=1.0,
        parts={"right": 1.0, "fine": pytest.approx(NAN, nan_ok=True)},
        columns={"c": 8},
        advantage=1.0,
        length=2,
        truncated=False,
        unread=True,
    )
    assert [len(first), len(last)] == [3, 3]
    assert last[0]["advantage"] == 3.0 and last[0]["messages"] == [4]
