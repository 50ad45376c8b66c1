"""The arrays of an update, from groups of completions."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.r1_zero import get_config
from deepseek_jax.costs.flops import forward_flops, training_flops
from deepseek_jax.errors import BrokenTerm
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce import settings as reinforce_settings
from deepseek_jax.reinforce.batch import (
    RowLengths,
    check_advantages,
    group_batch,
    longest_batch,
    longest_group,
    put_completions,
    split,
    step_flops,
    update_batches,
    update_flops,
    with_kept,
)
from deepseek_jax.reinforce.metrics import describe
from deepseek_jax.reinforce.update import check_rows
from deepseek_jax.rollout.kept import TokenChoices
from deepseek_jax.settings import build
from tests.recipes.small import small_config
from tests.reinforce.rollouts import rollout_of
from tests.tiny import CONFIGS

PROMPTS = [5, 6, 7], [8] * 20
LENGTHS = [3, 40], [7, 1]
ADVANTAGES = np.float32([-0.5, 0.5, -0.5, 0.5])
# What the metrics of a group read beside its batch
PLAIN = dict(parts={}, effort=None)


def groups():
    """Two groups of two completions, of LENGTHS, in room for 50 tokens."""
    made = []
    for prompt, lengths in zip(PROMPTS, LENGTHS, strict=True):
        mask = np.arange(50) < np.array(lengths)[:, None]
        ids = np.where(mask, 1 + np.arange(100).reshape(2, 50) % 9, 0).astype(np.int32)
        rewards = np.float32([0.0, 1.0])
        rollout = rollout_of(ids, mask, -ids / 10)
        made.append(dict(prompt_ids=prompt, rollout=rollout, rewards=rewards))
    return made


def test_a_prompt_stands_once_for_its_group_or_once_for_each_completion():
    """Oracle: by hand: rows of the second form repeat the prompt; both hold the same completions, whose
    longest has 40 tokens, and the same advantages. 64 is 16 times a power of two; completions that share a
    prompt have no more columns than the longest allowed, here 50. Prompts have 32.
    """
    batches = [group_batch(groups(), ADVANTAGES, shared=shared) for shared in (True, False)]
    for batch, rows, t in zip(batches, (2, 4), (50, 64), strict=True):
        assert batch["prompt_ids"].shape == batch["prompt_mask"].shape == (rows, 32)
        for row, (ids, mask) in enumerate(
            zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ):
            assert ids[mask].tolist() == list(PROMPTS[row * 2 // rows])
        for name in ("completion_ids", "completion_mask"):
            whole = np.concatenate([getattr(group["rollout"], name) for group in groups()])
            assert batch[name].shape == (4, t)
            np.testing.assert_array_equal(batch[name][:, :48], whole[:, :48])
            assert not batch[name][:, 48:].any()
        assert batch["num_tokens"] == 51 and batch["num_completions"] == 4
        np.testing.assert_array_equal(batch["advantages"], ADVANTAGES)


def test_rows_of_one_completion_split_over_the_context():
    """Oracle: by hand: multiples of 16 x 3 times a power of two."""
    batch = group_batch(groups(), ADVANTAGES, shared=False, multiple=48)
    assert batch["prompt_ids"].shape[1] == 48 and batch["completion_ids"].shape[1] == 48
    first, second = split(batch, 2)
    assert len(first["prompt_ids"]) == len(first["completion_ids"]) == 2
    assert second["prompt_mask"].sum() == 2 * 20


def test_the_kl_has_a_weight_by_scenario():
    """Oracle: by hand: 0.5 for both completions of the general question, 1 where none is given."""
    reasoning, general = groups()
    both = [reasoning | {"scenario": "reasoning"}, general | {"scenario": "general"}]
    batch = group_batch(both, ADVANTAGES, kl_weights={"general": 0.5})
    np.testing.assert_array_equal(batch["kl_weight"], np.float32([1, 1, 0.5, 0.5]))
    assert "kl_weight" not in group_batch(both, ADVANTAGES)


GENERAL = dict(num_steps=1, per_step=1, rewards={"correct": 1.0}, path="general.jsonl")
KL = dict(clip_eps=0.2, kl_coef=0.1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(kl_weights={"general": 0.0}, loss=KL), "kl_weights.general=0.0 is for no question"),
        (dict(kl_weights={"math": 0.0}, loss=KL, general=GENERAL), "kl_weights.math=0.0 is for no"),
        (dict(kl_weights={"reasoning": -1.0}, loss=KL), "kl_weights.reasoning=-1.0 must be at"),
        (dict(kl_weights={"reasoning": 0.0}, loss=KL), "has no KL"),
        (dict(kl_weights={"reasoning": 0.5}), "loss.kl_coef=0.0 has no KL"),
    ],
)
def test_weights_of_a_kl_that_is_not_there_are_refused(fields, words):
    """Oracle: the words a reader needs."""
    with pytest.raises(ValueError, match=words):
        of_config(**fields)


def of_config(**fields):
    return build(GrpoSettings, small_config(**fields), "config")


def test_long_completions_are_rows_of_their_own():
    """Oracle: by hand: the 16 completions of 32,768 tokens of configs/r1_zero.py would have 18e9 scores a
    head; the 4 of 12 tokens of a small config have fewer than 10,000.
    """
    published = build(GrpoSettings, get_config().to_dict(), "config")
    assert not published.shares_prompts() and published.rows() == 32 * 16
    small = of_config()
    assert small.shares_prompts() and small.rows() == 2


@pytest.mark.parametrize("own_rows", [False, True])
def test_rows_that_do_not_split_over_the_mesh_are_refused(monkeypatch, own_rows):
    """Oracle: by hand: 3 prompts x 4 completions are 3 shared rows, or 12 rows of one completion each. Over
    8 devices 8 prompts would do, or 2; 12 rows split over 4 devices.
    """
    if own_rows:
        monkeypatch.setattr(reinforce_settings, "MOST_SHARED_SCORES", 0)
    settings = of_config(prompts_per_step=3)
    with pytest.raises(ValueError, match=f"a multiple of {2 if own_rows else 8}$"):
        check_rows(settings, make_mesh(data=8))
    mesh = make_mesh(data=4, tensor=2)
    if own_rows:
        check_rows(settings, mesh)
    else:
        with pytest.raises(ValueError, match="a multiple of 4$"):
            check_rows(settings, mesh)


def test_micro_batches_may_cut_groups_of_rows_of_their_own(monkeypatch):
    """Oracle: by hand: 2 prompts x 4 completions in 8 parts, a completion each; 16 parts are too many. Shared
    rows have two parts at most.
    """
    with pytest.raises(ValueError, match="whole groups; set it to a multiple of 8"):
        of_config(micro_batches=8)
    monkeypatch.setattr(reinforce_settings, "MOST_SHARED_SCORES", 0)
    assert of_config(micro_batches=8).rows() == 8
    with pytest.raises(ValueError, match="micro_batches=16 does not divide the 8 completions"):
        of_config(micro_batches=16)


def test_an_update_needs_each_prompt_once_for_its_group():
    """Oracle: token by token: its FLOPs forward by the keys that it sees, itself halved, three times; the
    logits of a prompt's last token count once for each completion, those of its other tokens never.
    """
    config, prompts, completions = CONFIGS["gqa"], [2, 3], [1, 2, 4, 3]
    tokens = [i + 0.5 for n in prompts for i in range(n)]
    for row, length in enumerate(completions):
        tokens += [prompts[row // 2] + i + 0.5 for i in range(length)]
    head = 2 * config.vocab_size * config.hidden_size
    of_layers = sum(forward_flops(config, keys) - head for keys in tokens)
    by_hand = 3 * (of_layers + sum(completions) * head)
    assert update_flops(config, prompts, completions) == pytest.approx(by_hand, rel=1e-12)


def conversations():
    """groups() in which the model read tokens 1 and 2 of the first, and 10 to 29 of the second."""
    first, second = groups()
    read = [np.zeros((2, 50), bool) for _ in range(2)]
    read[0][0, 1:3], read[0][1, 10:30] = True, True
    for group, own in zip((first, second), read, strict=True):
        mask = group["rollout"].completion_mask & ~own
        group["rollout"] = group["rollout"]._replace(completion_mask=mask, observed_mask=own)
    return [first, second]


@pytest.mark.parametrize("shared, columns", [(True, 50), (False, 64)])
def test_rows_have_what_conversations_read_and_learn_the_models_tokens(shared, columns):
    """Oracle: by hand: of 3, 40, 7 and 1 tokens the model read 2, 20, none and none. Rows are as long as
    whole conversations, and hold the same ids.
    """
    batch = group_batch(conversations(), ADVANTAGES, shared=shared)
    whole = group_batch(groups(), ADVANTAGES, shared=shared)
    assert batch["completion_ids"].shape == (4, columns)
    np.testing.assert_array_equal(batch["completion_ids"], whole["completion_ids"])
    assert batch["completion_mask"].sum(1).tolist() == [1, 20, 7, 1]
    assert batch["observed_mask"].sum(1).tolist() == [2, 20, 0, 0]
    assert not (batch["completion_mask"] & batch["observed_mask"]).any()
    present = batch["completion_mask"] | batch["observed_mask"]
    np.testing.assert_array_equal(present, whole["completion_mask"])
    assert batch["num_tokens"] == 29 and batch["num_completions"] == 4


def test_a_conversation_without_a_reward_is_left_out_whole():
    """Oracle: by hand: the second one has neither tokens to learn nor tokens that it read."""
    first, second = conversations()
    both = [first | {"rewards": np.float32([0.0, np.nan])}, second]
    batch = group_batch(both, ADVANTAGES)
    assert batch["completion_mask"].sum(1).tolist() == [1, 0, 7, 1]
    assert batch["observed_mask"].sum(1).tolist() == [2, 0, 0, 0]
    assert batch["num_tokens"] == 9 and batch["num_completions"] == 3


def test_the_lengths_of_a_step_count_what_was_read_apart():
    """Oracle: by hand, as above: an update computes whole rows, and learns the model's tokens."""
    settings = of_config(prompts_per_step=2, group_size=2)
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    _, lengths = update_batches(conversations(), ADVANTAGES, settings, mesh, step=0)
    assert lengths.prompts.tolist() == [3, 20]
    assert lengths.completions.tolist() == [3, 40, 7, 1]
    assert lengths.learned.tolist() == [1, 20, 7, 1]
    described = describe([g | PLAIN for g in conversations()], "correct")
    assert described["completion_length"] == 29 / 4 and described["completion_length_max"] == 20


@pytest.mark.parametrize("own_rows", [False, True])
def test_the_longest_batch_is_that_of_the_longest_groups(monkeypatch, own_rows):
    """Oracle: the batch of that many such groups, as an update gets it: names, shapes and dtypes."""
    if own_rows:
        monkeypatch.setattr(reinforce_settings, "MOST_SHARED_SCORES", 0)
    fields = dict(prompts_per_step=6, group_size=2, minibatches=2, loss=dict(kl_coef=0.1))
    fields["rollout"] = dict(max_prompt_length=20, max_completion_length=((0, 7), (1, 12)))
    settings = of_config(**fields)
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    step = [longest_group(settings) for _ in range(6)]
    (batch, _), _ = update_batches(step, np.zeros(12, np.float32), settings, mesh, 0)
    scores = batch["sampler_logprobs"]
    batch |= dict(old_logprobs=scores, ref_logprobs=scores, sampled_by=np.uint32(0))
    found = longest_batch(settings, CONFIGS["gqa"], mesh)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
    assert found["prompt_ids"].sharding == batch["prompt_ids"].sharding


def test_the_longest_batch_has_what_is_kept_and_what_is_read(monkeypatch):
    """Oracle: by hand: experts of each token in the model's one routed layer, and its candidates; a mask of
    what conversations read. Prompts have 16 tokens and completions 12.
    """
    fields = dict(prompts_per_step=4, group_size=2, keep_routing=True)
    fields["rollout"] = dict(max_prompt_length=16, max_completion_length=12, top_k=5)
    settings, config = of_config(**fields), CONFIGS["mla_moe"]
    monkeypatch.setattr(GrpoSettings, "most_turns", lambda self: 2)
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    found = longest_batch(settings, config, mesh)
    experts = 1, config.num_experts_per_tok
    shapes = {
        "prompt_experts": (4, 16, *experts),
        "completion_experts": (8, 12, *experts),
        "candidates": (8, 12, 5),
        "observed_mask": (8, 12),
    }
    assert {name: found[name].shape for name in shapes} == shapes
    assert found["prompt_experts"].dtype == np.uint16 and found["observed_mask"].dtype == bool
    assert not any(name.endswith("_rows") for name in found)


def test_a_longest_group_is_full():
    """Oracle: by hand: prompts of 20 tokens and completions of 12, all of them sampled."""
    fields = dict(rollout=dict(max_prompt_length=20, max_completion_length=12), group_size=2)
    group = longest_group(of_config(**fields))
    rollout = group["rollout"]
    assert group["prompt_ids"] == [0] * 20 and rollout.completion_mask.all()
    assert rollout.completion_ids.shape == rollout.sampler_logprobs.shape == (2, 12)
    assert (group["rewards"] == 0).all() and len(group["rewards"]) == 2 and group["row"] == 0
    assert len(longest_group(of_config(**fields), 5)["rollout"].truncated) == 5


@pytest.mark.parametrize("shared", [True, False])
def test_rows_know_their_places_in_the_rollout(shared):
    """Oracle: by hand: groups 3 and 1 of two completions each, and what was kept of row i is i."""
    places = [group | {"row": row} for group, row in zip(groups(), (3, 1), strict=True)]
    batch = group_batch(places, ADVANTAGES, shared=shared, rows=True)
    assert batch["completion_rows"].tolist() == [6, 7, 2, 3]
    assert batch["prompt_rows"].tolist() == [3, 1] if shared else [3, 3, 1, 1]
    assert "prompt_rows" not in group_batch(places, ADVANTAGES, shared=shared)
    rows = np.arange(8)[:, None, None] * np.ones((1, 99, 2), np.int32)
    found = with_kept(batch, TokenChoices(None, None, rows))
    assert found["candidates"][:, 0, 0].tolist() == [6, 7, 2, 3]
    assert found["candidates"].shape == (*batch["completion_ids"].shape, 2)
    assert found.keys() == batch.keys() - {"prompt_rows", "completion_rows"} | {"candidates"}


@pytest.mark.parametrize(
    "rewards, advantages, words",
    [
        ([0, 1, 2], [-1, 0, 1], None),
        ([0, 0, 2], [-1, -1, 2], None),
        ([1, 1, 1], [0, 0, 0], None),
        ([2, 0, np.nan], [1, -1, 0], None),
        ([0, 1, 2], [-1, 0, 0], None),
        ([np.nan, np.nan, np.nan], [0, 0, 0], None),
        ([0, 1, 2], [0, 0, 0], "differ, and all their advantages are 0"),
        ([0, np.nan, 2], [0, 0, 0], "differ, and all their advantages are 0"),
        ([0, 1, 2], [1, 0, -1], "not in the same order"),
        ([0, 1, 2], [-1, 1, 0.5], "not in the same order"),
        ([0, 0, 2], [-1, -0.5, 2], "not in the same order"),
        ([0, 1, np.nan], [-1, 1, 0.5], "not in the same order"),
    ],
)
def test_advantages_have_the_order_of_their_rewards(rewards, advantages, words):
    """Oracle: by hand, of the second of two groups."""
    both = [{"rewards": np.float32(own)} for own in ([1, 2, 3], rewards)]
    given = np.float32([-1, 0, 1, *advantages])
    if words is None:
        check_advantages(both, given)
        return
    with pytest.raises(BrokenTerm, match=words):
        check_advantages(both, given)


@pytest.mark.parametrize("scored, passes", [((), 0), (("old_logprobs", "ref_logprobs"), 2 / 3)])
def test_a_step_counts_its_epochs_and_the_passes_that_score(scored, passes):
    """Oracle: token by token, of an adapter's updates, which need no gradient of the weights, and of forward
    passes of the whole.
    """
    config, prompts, completions = CONFIGS["gqa"], [2, 3], [1, 2, 4, 3]
    keys = [i + 0.5 for n in prompts for i in range(n)]
    keys += [prompts[row // 2] + i + 0.5 for row, n in enumerate(completions) for i in range(n)]
    share = sum(completions) / len(keys)
    frozen, whole = (
        sum(training_flops(config, each, frozen=own, logits=share) for each in keys)
        for own in (True, False)
    )
    settings = SimpleNamespace(epochs=3, scored=lambda: scored)
    lengths = RowLengths(np.array(prompts), np.array(completions), None, None)
    found = step_flops(settings, config, lengths, frozen=True)
    assert found == pytest.approx(3 * frozen + passes * whole)


def test_the_batch_of_a_step_is_as_settings_and_mesh_say():
    """Oracle: by hand: lengths are multiples of 16 for each of two devices of a row's tokens; the weights of
    a KL and the places of rows are there where they are asked for; the temperature is that of the step.
    """
    mesh = make_mesh(data=1, context=2, devices=jax.devices()[:2])
    fields = dict(prompts_per_step=2, group_size=2, loss=dict(kl_coef=0.1))
    fields["rollout"] = dict(temperature=((0, 1.0), (3, 0.5)))
    told = [group | {"scenario": "reasoning", "row": 0} for group in groups()]
    settings = of_config(kl_weights={"reasoning": 0.5}, **fields)
    (batch,), _ = update_batches(told, ADVANTAGES, settings, mesh, step=3)
    assert batch["temperature"] == 0.5 and "prompt_rows" not in batch
    assert batch["prompt_ids"].shape == (2, 32) and batch["completion_ids"].shape == (4, 50)
    assert (batch["kl_weight"] == 0.5).all()
    fields["rollout"] |= dict(top_k=5)
    (batch,), _ = update_batches(told, ADVANTAGES, of_config(**fields), mesh, step=0)
    assert "kl_weight" not in batch and batch["prompt_rows"].tolist() == [0, 0]


def test_tokens_come_from_their_owners_and_all_else_from_everyone():
    """Oracle: the batches of completions without owners, for one process that has all of them."""
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    batch = group_batch(groups(), ADVANTAGES, shared=False, multiple=1)
    batches = split(batch, 2)
    plain = put_completions(mesh, batches, None)
    owned = put_completions(mesh, batches, np.zeros(4, int))
    for want, have in zip(plain, owned, strict=True):
        assert want.keys() == have.keys()
        for name, array in want.items():
            np.testing.assert_array_equal(have[name], array, err_msg=name)
