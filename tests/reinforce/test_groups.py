"""Groups of completions: their own rows, which of them a step learns, and what its updates compare with."""

from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.reinforce import groups as module
from deepseek_jax.reinforce.groups import GroupSource, make_groups
from deepseek_jax.reinforce.metrics import StepRecord
from deepseek_jax.rewards import Scores
from deepseek_jax.rollout.answers import Answers
from deepseek_jax.rollout.completions import Rollout
from tests.recipes.small import one_device


def answers(conversations=None, observed=None):
    """Of three prompts, two completions each, whose arrays tell their rows."""
    rows = np.arange(6)
    rollout = Rollout(
        completion_ids=rows[:, None],
        completion_mask=rows[:, None] > 0,
        sampler_logprobs=rows[:, None] / 10,
        truncated=rows > 3,
        observed_mask=observed,
    )
    return Answers(list("abcdef"), rollout, 2, [[1], [2], [3]], conversations)


EXAMPLES = [dict(q=0), dict(q=1, scenario="general", effort=50), dict(q=2)]


@pytest.mark.parametrize("converses", [False, True])
def test_a_group_has_its_rows_of_everything(converses):
    """Oracle: by hand: rows 0 and 1 are of the first prompt, 2 and 3 of the second, 4 and 5 of the third."""
    rows = np.arange(6)
    scores = Scores(rows * 2.0, {"r": rows * 3.0}, columns={"c": list("uvwxyz")})
    more = dict(conversations=list("ABCDEF"), observed=rows[:, None] > 4) if converses else {}
    if converses:
        scores.unread = rows == 3
    for place, group in enumerate(make_groups(EXAMPLES, answers(**more), scores)):
        own = slice(2 * place, 2 * place + 2)
        assert group["row"] == place and group["prompt_ids"] == [place + 1]
        assert group["example"] is EXAMPLES[place]
        assert group["scenario"] == ("general" if place == 1 else "reasoning")
        assert group["effort"] == (50 if place == 1 else None)
        assert "".join(group["texts"]) == "abcdef"[own]
        for name, wanted in (
            ("rewards", rows[own] * 2.0),
            ("unread", rows[own] == 3 if converses else [False] * 2),
        ):
            np.testing.assert_array_equal(group[name], wanted, err_msg=name)
        for name, wanted in (
            ("completion_ids", rows[own, None]),
            ("completion_mask", rows[own, None] > 0),
            ("sampler_logprobs", rows[own, None] / 10),
            ("truncated", rows[own] > 3),
        ):
            np.testing.assert_array_equal(getattr(group["rollout"], name), wanted, err_msg=name)
        np.testing.assert_array_equal(group["parts"]["r"], rows[own] * 3.0)
        assert "".join(group["columns"]["c"]) == "uvwxyz"[own]
        if converses:
            assert "".join(group["conversations"]) == "ABCDEF"[own]
            observed = group["rollout"].observed_mask
            np.testing.assert_array_equal(observed, rows[own, None] > 4)
        else:
            assert "conversations" not in group and group["rollout"].observed_mask is None


def bare(**fields):
    """A GroupSource with these fields alone."""
    source = object.__new__(GroupSource)
    vars(source).update(fields)
    return source


def sampled(settings, rounds):
    """(rewards of the groups to train on, of all, counts) of rounds of groups with two rewards each."""
    asked = []

    def take(params, step, number):
        asked.append((params, step, number))
        return [{"rewards": np.float32(pair)} for pair in rounds[number]]

    settings = dict(zip(("prompts_per_step", "max_sampling_rounds"), settings, strict=True))
    source = bare(settings=SimpleNamespace(**settings), record=StepRecord(one_device()))
    source._round = take
    kept, every = (
        [group["rewards"].tolist() for group in some] for some in source._sample("params", 3)
    )
    assert asked == [("params", 3, number) for number in range(len(asked))]
    return kept, every, dict(source.record.counts), len(asked)


A, B, C, E, F = [0, 1], [1, 2], [2, 3], [0, 0], [1, 1]


@pytest.mark.parametrize(
    "settings, rounds, kept, used, asked",
    [
        ((2, 1), [[A, E]], [A, E], None, 1),
        ((2, 3), [[A, B]], [A, B], 0, 1),
        ((2, 3), [[A, E], [B, C]], [A, B], 0, 2),
        ((2, 2), [[E, F], [A, E]], [A, E], 1, 2),
        ((2, 2), [[E, F], [E, F]], [E, F], 2, 2),
        ((2, 2), [[A, E], [A, B]], [A, A], 0, 2),
    ],
)
def test_groups_that_differ_come_first(capsys, settings, rounds, kept, used, asked):
    """Oracle: by hand: rounds are asked until two groups differ, or there are no more rounds; then equal ones
    fill the step, which is said. One round takes what it gets.
    """
    found, every, counts, calls = sampled(settings, rounds)
    assert (found, every, calls) == (kept, sum(rounds[:asked], []), asked)
    said = capsys.readouterr().out
    if used is None:
        assert counts == {} and not said
    else:
        assert counts == {"sampling_rounds": asked, "equal_groups_used": used}
        assert said.startswith(f"step 3: {used} of 2 groups") if used else not said


@pytest.mark.parametrize(
    "referred, sampled_by, moved", [(None, 5, False), (5, 5, False), (5, 6, True)]
)
def test_a_policy_has_moved_where_another_than_the_reference_sampled(referred, sampled_by, moved):
    """Oracle: by hand; nothing is known before the first step."""
    source = bare(referred=referred, sampler=SimpleNamespace(sampled_by=sampled_by))
    assert source.has_moved == moved


@pytest.mark.parametrize(
    "frozen, own, kl_coef, wanted",
    [
        (None, None, 0.1, "state's"),
        (None, "own", 0.1, "own"),
        (AdaptedParams("base", {}, 1.0), "own", 0.1, "base"),
        (AdaptedParams("base", {}, 1.0), "own", 0.0, None),
    ],
)
def test_the_reference_is_the_sources_the_states_or_what_an_adapter_is_beside(
    monkeypatch, frozen, own, kl_coef, wanted
):
    """Oracle: by hand."""
    monkeypatch.setattr(module, "on_device", lambda tree: tree)
    loss = SimpleNamespace(kl_coef=kl_coef)
    source = bare(reference=own, settings=SimpleNamespace(loss=loss))
    assert source._reference(SimpleNamespace(frozen=frozen, reference="state's")) == wanted
    assert bare(reference=None)._reference(SimpleNamespace(frozen=None, reference=None)) is None


@pytest.mark.parametrize("kept", [None, "kept"])
@pytest.mark.parametrize("scored", [(), ("old_logprobs",)])
@pytest.mark.parametrize("reference", [None, "reference"])
def test_the_updates_of_a_step_have_what_they_compare_with(monkeypatch, kept, scored, reference):
    """Oracle: by hand: two minibatches in two epochs; the first update alone knows who sampled it. The policy
    scores with the experts that the sampler chose, the reference with its own.
    """
    checked, calls = [], []
    monkeypatch.setattr(module, "put_share", lambda mesh, arrays: arrays)
    monkeypatch.setattr(module, "check_kept", lambda config, part: checked.append((config, part)))
    monkeypatch.setattr(
        module, "with_kept", lambda part, own: part | dict(own=own, prompt_experts=1)
    )

    def score(params, part):
        calls.append((params, part["part"], "prompt_experts" in part, "own" in part))
        return f"{params} {part['part']}"

    settings = SimpleNamespace(scored=lambda: scored, epochs=2)
    sampler = SimpleNamespace(token_choices=kept, sampled_by=9)
    policy = SimpleNamespace(config="config")
    source = bare(settings=settings, sampler=sampler, score=score, mesh=None, policy=policy)
    source._reference = lambda state: reference
    state = SimpleNamespace(model="policy")
    found = source._updates(state, [dict(part="a"), dict(part="b")])
    assert [batch["part"] for batch in found] == list("abab")
    assert [batch["sampled_by"] for batch in found] == [9, 0, 0, 0]
    experts = kept is not None
    for batch in found:
        part = batch["part"]
        assert batch.get("old_logprobs") == (f"policy {part}" if scored else None)
        assert batch.get("ref_logprobs") == (f"reference {part}" if reference else None)
        assert batch.get("own") == kept and ("prompt_experts" in batch) == experts
    wanted = [("policy", part, experts, experts) for part in "ab" if scored]
    assert calls == wanted + [("reference", part, False, experts) for part in "ab" if reference]
    assert len(checked) == 2 * experts and sampler.token_choices is None


def test_a_source_resumes_where_it_stood():
    """Oracle: by hand: the position, and the steps in a row without anything to learn."""
    forgotten = []

    def source():
        made = bare(position=0, degenerate=SimpleNamespace(counts={}))
        made.sampler = SimpleNamespace(forget=lambda: forgotten.append(1))
        return made

    one, other = source(), source()
    one.position, one.degenerate.counts = 5, {"empty": 2}
    state = one.get_state()
    assert state == {"position": 5, "degenerate": {"empty": 2}}
    other.set_state(state)
    assert (other.position, other.degenerate.counts) == (5, {"empty": 2})
    assert len(forgotten) == 1
