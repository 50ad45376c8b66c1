"""What is wrong with the groups of a step, of conversations too."""

import dataclasses
import warnings

import numpy as np
import pytest

from deepseek_jax.errors import UnusableRewards
from deepseek_jax.reinforce.degenerate import (
    Degenerate,
    DegenerateSettings,
    all_equal,
    check_range,
    faults,
)
from deepseek_jax.rewards import Scores
from tests.reinforce.rollouts import rollout_of

EOS = 9


@pytest.mark.parametrize("last, ends", [(EOS, {}), (4, {"odd_ends": ": 4"})])
def test_a_conversation_ends_at_its_last_sampled_token(last, ends):
    """Oracle: by hand: two turns of two tokens around a text of three that the model read, as an odd end
    only where the second turn has one; the text itself, 5 6 7, is none. The other completion is one turn.
    """
    ids = np.array([[3, EOS, 5, 6, 7, 3, last, 0], [1, 2, EOS, 0, 0, 0, 0, 0]])
    mask = np.array([[1, 1, 0, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]], bool)
    group = dict(rollout=rollout_of(ids, mask), rewards=np.array([0.0, 1.0]), parts={})
    assert dict(faults([group], [EOS])) == ends


def group_of(rewards=(0.0, 1.0), ids=((3, EOS), (3, EOS)), truncated=(False, False), **parts):
    """A group of two completions; ids above 0 are sampled."""
    return dict(
        rewards=np.float32(rewards),
        parts={name: np.float32(part) for name, part in parts.items()},
        rollout=rollout_of(ids, truncated=truncated),
    )


FINE = group_of()
EQUAL, NONE = group_of((1, 1), r=(2, 2)), group_of((np.nan, np.nan), r=(np.nan, np.nan))
CUT = (True, True)


@pytest.mark.parametrize(
    "groups, found",
    [
        ([FINE, FINE], {}),
        ([FINE, group_of((1, 1))], {}),
        ([group_of((1, 1)), group_of((0, np.nan))], {"equal_rewards": ""}),
        ([group_of(r=(2, 2)), group_of(r=(2, 2))], {"constant_reward r": ": r was 2"}),
        ([group_of(r=(2, 2)), group_of(r=(np.nan, 2))], {"constant_reward r": ": r was 2"}),
        ([group_of(r=(2, 2)), group_of(r=(3, 3))], {}),
        ([NONE, NONE], {"equal_rewards": ""}),
        ([group_of(truncated=CUT), group_of(truncated=CUT)], {"truncated": ""}),
        ([group_of(truncated=CUT), group_of(truncated=(True, False))], {}),
        # An end token alone, or one that was cut off before its first, is empty
        ([group_of(ids=((EOS, 0), (EOS, 0)))], {"empty": ""}),
        ([group_of(ids=((EOS, 0), (0, 0)), truncated=(False, True))], {"empty": ""}),
        ([group_of(ids=((EOS, 0), (4, 0)), truncated=(False, True))], {}),
        ([group_of(ids=((EOS, 0), (3, EOS)))], {}),
        ([group_of(ids=((3, 4), (3, EOS)))], {"odd_ends": ": 4"}),
        ([group_of(ids=((4, 0), (3, EOS)))], {"odd_ends": ": 4"}),
        ([group_of(ids=((3, 4), (3, 4)), truncated=(True, False)), FINE], {"odd_ends": ": 4"}),
        ([group_of(ids=((3, 4), (3, EOS)), truncated=(True, False))], {}),
        # Without a token there is no end
        ([group_of(ids=((0, 0), (3, EOS)))], {}),
        (
            [group_of(ids=((3, i), (3, i + 1))) for i in (7, 1, 5)],
            {"odd_ends": ": 1, 2, 5, 6, 7"},
        ),
    ],
)
def test_what_is_wrong_with_the_groups_of_a_step(groups, found):
    """Oracle: by hand."""
    assert dict(faults(groups, [EOS])) == found


def test_a_fault_is_counted_by_name_and_ends_the_run_at_its_limit(capsys):
    """Oracle: by hand: two steps of equal rewards and three that are cut off; a reward may be constant for
    ever. Said at the eighth step in a row and at the sixteenth.
    """
    watched = Degenerate(DegenerateSettings(equal_rewards=3, truncated=3, empty=None), [EOS])
    both = group_of((1, 1), truncated=CUT)
    for step, group in enumerate([both, FINE, both, both, group_of(truncated=CUT)]):
        if step < 4:
            watched.look(step, [group])
        else:
            with pytest.raises(UnusableRewards, match="step 4: for 3 .* degenerate.truncated=3 e"):
                watched.look(step, [group])
    assert watched.counts == {"truncated": 3} and not capsys.readouterr().out
    watched = Degenerate(DegenerateSettings(), [EOS])
    assert dataclasses.astuple(watched.limits) == (200, 200, 50)
    for step in range(20):
        watched.look(step, [group_of(r=(2, 2))])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["step 7", "step 15"]
    for step in range(7):
        watched.look(step, [group_of(ids=((3, 4), (3, EOS)))])
    with pytest.raises(UnusableRewards, match="for 8 steps in a row .*: 4; the limit=8 ends"):
        watched.look(7, [group_of(ids=((3, 4), (3, EOS)))])


@pytest.mark.parametrize(
    "rewards, equal",
    [([1, 1], True), ([1, 2], False), ([1, np.nan], True), ([np.nan], True), ([1, 2, np.nan], False)],
)  # fmt: skip
def test_rewards_that_were_not_scored_are_equal_to_all(rewards, equal):
    """Oracle: by hand."""
    assert all_equal(np.float32(rewards)) == equal


@pytest.mark.parametrize("part", [[1e6, -1e6], [np.nan, np.nan], []])
def test_rewards_within_the_range_are_fine(part):
    """Oracle: by hand: the largest that is allowed, and parts that no question of a step has."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range(Scores(np.float32(part), {"r": np.float32(part)}))


@pytest.mark.parametrize("total, part, name", [(0.0, -2e6, "r"), (2e6, 1.0, "the weighted sum")])
def test_rewards_beyond_the_range_are_named(total, part, name):
    """Oracle: by hand: in size, whatever their sign, and also where the others have none."""
    with pytest.raises(UnusableRewards, match=f"^{name}: a reward is 2e.06 in size"):
        check_range(Scores(np.float32([total, np.nan]), {"r": np.float32([np.nan, part])}))
