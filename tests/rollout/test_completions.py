"""What a Rollout says of itself, with the tokens of all rows and with a process's own alone."""

import math

import jax
import numpy as np
import pytest

from deepseek_jax.rollout.completions import RolloutLog, empty_rollout, fill


def test_drafts_are_measured_by_what_they_saved():
    """Oracle: by hand: completions of four and two tokens, of which the first of each is no step; three of
    five drafts accepted; none drafted.
    """
    rollout = empty_rollout(2, 5)
    assert math.isnan(rollout.acceptance_rate) and math.isnan(rollout.tokens_per_step)
    rollout.completion_mask[0, :4] = rollout.completion_mask[1, :2] = True
    rollout.drafted[:], rollout.accepted[:] = (3, 2), (2, 1)
    assert rollout.acceptance_rate == 3 / 5 and rollout.tokens_per_step == (3 + 1) / 5


def test_a_log_keeps_nothing_by_itself():
    """Oracle: by hand."""
    log = RolloutLog()
    assert not (log.done or log.keeps_routing or log.keeps_candidates)
    assert log.weight_sync_seconds == 0 and log.token_choices is log.conversations is None


def test_what_a_row_read_is_among_its_tokens():
    """Oracle: by hand: of single turns those that were sampled, of conversations those that were read too."""
    for converses, ids in ((False, [5, 7]), (True, [5, 6, 7])):
        rollout = empty_rollout(2, 4, converses) if converses else empty_rollout(2, 4)
        assert (rollout.observed_mask is None) != converses
        rollout.completion_ids[1] = 5, 6, 7, 8
        rollout.completion_mask[1] = True, False, True, False
        if converses:
            rollout.observed_mask[1, 1] = True
        assert rollout.ids_of(1) == ids and list(rollout.tokens()) == [[], ids]


LINES = {
    0: {"ids": [18, 19], "logprobs": [-9.0, -10.0], "finished": False, "observed": [False, False]},
    1: {
        "ids": [10, 11, 12],
        "logprobs": [-1.0, -2.0, -3.0],
        "finished": True,
        "observed": [False, True, False],
    },
    2: {"ids": [], "logprobs": [], "finished": True, "observed": []},
}


def test_a_process_fills_its_own_rows_and_knows_the_numbers_of_all(monkeypatch):
    """Oracle: what a single process makes of the same lines, which has all tokens."""
    log = RolloutLog()
    log.done = LINES
    whole = empty_rollout(3, 4, converses=True, own_rows=True)
    fill(whole, log)
    assert whole.owned is None and whole.is_here.all()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        own = empty_rollout(3, 4, converses=True, own_rows=True)
        fill(own, log)
        np.testing.assert_array_equal(own.owned.owners, [0, 1, 0])
        here = own.is_here
        np.testing.assert_array_equal(here, own.owned.owners == process)
        for name in ("lengths", "read_lengths", "truncated"):
            np.testing.assert_array_equal(getattr(own, name), getattr(whole, name))
        np.testing.assert_array_equal(own.last_ids[:2], whole.last_ids[:2])
        for name in ("completion_ids", "completion_mask", "sampler_logprobs", "observed_mask"):
            np.testing.assert_array_equal(getattr(own, name)[here], getattr(whole, name)[here])
            assert not getattr(own, name)[~here].any()
        other = int(np.flatnonzero(~here)[0])
        assert own.ids_of(process) == LINES[process]["ids"]
        with pytest.raises(LookupError, match=f"process {1 - process} has .* completion {other}"):
            own.ids_of(other)
