"""The settings of reinforcement: each rule at its edge."""

import pytest

from deepseek_jax.reinforce import settings as module
from deepseek_jax.reinforce.settings import (
    MOST_CANDIDATES,
    MOST_SHARED_SCORES,
    ReinforceSettings,
    RewardSettings,
    RolloutSettings,
    scores_fit,
)
from deepseek_jax.rewards.batch import LARGEST_REWARD
from deepseek_jax.settings import build

ROLLOUT = dict(max_prompt_length=8, max_completion_length=4)
GENERAL = dict(num_steps=1, per_step=1, rewards={"helpful": 1.0})
KL, BOTH = dict(loss=dict(kl_coef=0.1)), dict(minibatches=2, epochs=2)


def settings(rollout=(), **fields):
    base = dict(num_steps=3, optimizer=dict(learning_rate=0.1), rewards={"right": 1.0})
    base |= dict(prompts_per_step=4, group_size=3, loss={}, rollout=ROLLOUT | dict(rollout))
    return build(ReinforceSettings, base | fields, "config")


def general(**fields):
    return dict(general=GENERAL | fields)


REFUSED = [
    (dict(rollout=dict(top_k=MOST_CANDIDATES + 1)), "top_k=129"),
    (dict(rollout=dict(top_p=0.9)), "top_k=0 with top_p=0.9"),
    (dict(prompts_per_step=3, minibatches=2), "prompts_per_step=3 .* multiple of 2"),
    (dict(micro_batches=4, minibatches=2), "prompts_per_step=4 .* multiple of 8"),
    (dict(reference_every=2), "reference_every=2, but loss.kl_coef=0"),
    (dict(reference_every=1, **KL), "reference_every=1 makes"),
    (dict(rewards={"right": 0.0, "form": 0.0}), "rewards=.* pays nothing"),
    (dict(rewards={"right": 2 * LARGEST_REWARD}), "rewards.right=.* must be within"),
    (dict(rewards={"right": -2 * LARGEST_REWARD}), "rewards.right=.* must be within"),
    (dict(reference_memory="host"), "reference_memory='host', but loss.kl_coef=0"),
    (dict(keep_routing=True, max_sampling_rounds=2), "max_sampling_rounds=2 to 1"),
    (dict(rollout=dict(top_k=5), max_sampling_rounds=2), "max_sampling_rounds=2 to 1"),
    (dict(kl_weights={"general": 1.0}, **KL), "is for no question .* asks reasoning;"),
    (dict(kl_weights={"reasoning": -0.5}, **KL), "reasoning=-0.5 must be at least 0"),
    (dict(kl_weights={"reasoning": float("inf")}, **KL), "kl_weights.reasoning=inf"),
    (dict(kl_weights={"reasoning": 0}, **KL), "has no KL"),
    (dict(kl_weights={"reasoning": 0, "general": 0}, **KL, **general()), "has no KL"),
    (dict(kl_weights={"reasoning": 1}), "has no KL"),
    (general(num_steps=4), "general.num_steps=4 is above num_steps=3"),
    (general(per_step=4), "general.per_step=4 leaves no other questions"),
    (general(rewards={"helpful": 0.0}), "general.rewards=.* pays nothing"),
    (dict(max_sampling_rounds=2, **general()), "leave it at 1"),
    (dict(accuracy="form"), "accuracy='form' is not one of rewards: right"),
]  # fmt: skip
ALLOWED = [
    {},
    dict(rollout=dict(top_k=MOST_CANDIDATES)),
    dict(rollout=dict(top_k=1, top_p=0.9)),
    dict(minibatches=2, micro_batches=2),
    dict(reference_every=2, **KL),
    dict(reference_every=1, minibatches=2, **KL),
    dict(reference_every=1, epochs=2, **KL),
    dict(reference_every=1, **KL, **BOTH),
    dict(rewards={"right": LARGEST_REWARD, "form": -LARGEST_REWARD}),
    dict(reference_memory="host", **KL),
    dict(keep_routing=True),
    dict(max_sampling_rounds=2),
    dict(kl_weights={"reasoning": 0, "general": 0.5}, **KL, **general()),
    dict(kl_weights={"reasoning": 0}, **KL, **general()),
    dict(kl_weights={"reasoning": 0.5}, **KL),
    general(num_steps=3, per_step=3),
    dict(accuracy="right"),
    dict(rollout=dict(max_completion_length=((0, 5), (1, 4)), temperature=((0, 1.0), (1, 2.0)))),
]


@pytest.mark.parametrize("fields, words", REFUSED)
def test_settings_that_contradict_each_other_are_refused(fields, words):
    """Oracle: by hand: the field that the message names."""
    with pytest.raises(ValueError, match=words):
        settings(**fields)


@pytest.mark.parametrize("fields", ALLOWED)
def test_settings_at_the_edge_of_a_rule_are_allowed(fields):
    """Oracle: by hand: beside each rule, the last that it allows."""
    settings(**fields)


def test_what_is_not_set_is_one_update_of_plain_samples():
    """Oracle: by hand."""
    made = settings()
    assert made.scored() == () and made.num_updates() == 3 and made.most_turns() == 0
    assert not made.keeps() and made.max_sampling_rounds == 1
    assert made.rollout.temperature_at(0) == made.rollout.top_p == 1.0
    assert not made.rollout.truncates()


@pytest.mark.parametrize(
    "fields, scored",
    [
        (dict(minibatches=2), ("old_logprobs",)),
        (dict(epochs=2), ("old_logprobs",)),
        (KL, ("ref_logprobs",)),
        (KL | BOTH, ("old_logprobs", "ref_logprobs")),
    ],
)
def test_what_is_scored_before_the_updates(fields, scored):
    """Oracle: by hand."""
    assert settings(**fields).scored() == scored


def test_the_updates_of_a_run_and_the_rows_of_each(monkeypatch):
    """Oracle: by hand: 3 steps of 2 x 2 updates, each of 2 prompts, or of their 6 completions. Micro-batches
    may cut groups that are rows of their own.
    """
    made = settings(**BOTH)
    assert made.num_updates() == 12 and made.rows() == 2 and made.shares_prompts()
    monkeypatch.setattr(module, "MOST_SHARED_SCORES", 0)
    made = settings(**BOTH, micro_batches=6)
    assert made.rows() == 6 and not made.shares_prompts()
    assert settings(**BOTH, prompts_per_step=6, micro_batches=9).rows() == 9
    with pytest.raises(ValueError, match="micro_batches=4 does not divide the 6 completions"):
        settings(**BOTH, micro_batches=4)


def test_scores_fit_up_to_32_mib_of_a_head():
    """Oracle: by hand: 2 completions of 2**11 tokens after a prompt of none less than those of all, in
    float32; one token more is too many.
    """
    assert MOST_SHARED_SCORES * 4 == 32 * 2**20
    fits = RolloutSettings(max_prompt_length=2**10, max_completion_length=2**10)
    assert scores_fit(fits, 4) and not scores_fit(fits, 5)
    longer = RolloutSettings(max_prompt_length=2**10 + 1, max_completion_length=2**10)
    assert not scores_fit(longer, 4)


def test_a_step_samples_as_the_settings_of_that_step_say():
    """Oracle: by hand."""
    made = RolloutSettings(
        max_prompt_length=8,
        max_completion_length=((0, 4), (2, 6)),
        temperature=((0, 1.0), (1, 0.5)),
        slots=7,
        top_p=0.9,
        top_k=5,
    )
    options = [made.at(step) for step in range(3)]
    assert [each.max_completion_length for each in options] == [4, 4, 6] and made.longest() == 6
    assert [each.temperature for each in options] == [1.0, 0.5, 0.5]
    assert {(each.slots, each.top_p, each.top_k) for each in options} == {(7, 0.9, 5)}
    assert made.limit() == (6, 8)


@pytest.mark.parametrize(
    "top_p, top_k, truncates", [(1.0, 0, False), (1.0, 1, True), (0.9, 1, True)]
)
def test_samples_are_truncated_by_either_limit(top_p, top_k, truncates):
    """Oracle: by hand."""
    made = settings(dict(top_p=top_p, top_k=top_k))
    assert made.rollout.truncates() == made.keeps() == truncates


def test_an_accuracy_may_be_no_reward_where_none_is_needed():
    """Oracle: by hand: a recipe that measures by something else says so."""

    class Other(RewardSettings):
        def needs_accuracy(self):
            return False

    assert Other(accuracy="form", rewards={}).accuracy == "form"
    assert RewardSettings(rewards={}).accuracy is None


def test_a_recipe_without_efforts_takes_none():
    """Oracle: the words a reader needs."""
    settings().check_no_effort()
    effort = dict(values=(50, 75), k0=0.1, tau=9.0, max_penalty=0.5, norm_length=4)
    with pytest.raises(ValueError, match=r"effort.values=\(50, 75\)"):
        settings(effort=effort).check_no_effort()
