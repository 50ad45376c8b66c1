"""Plans of reward models and judges, whose programs are listed and not compiled."""

import dataclasses

import jax
import pytest

from deepseek_jax.costs.program import REWARD
from deepseek_jax.recipes.kinds.paying import (
    ScoredCompletions,
    held_models,
    planned_rewards,
    scoring_programs,
)
from deepseek_jax.reinforce.settings import ModelRewardSettings
from tests.recipes.small import one_device
from tests.tiny import CONFIGS

POLICY = CONFIGS["gqa"]
HELPFUL = ModelRewardSettings("/no/folder/yet", batch_size=4)
JUDGE = dataclasses.replace(HELPFUL, dtype="bfloat16", max_completion_length=24)
SCORED = ScoredCompletions(completions=10, prompt_length=16, completion_length=20)


def programs_of(policy=POLICY, **settings):
    mesh = one_device()
    models = planned_rewards(settings, policy)
    return {p.name: p for p in scoring_programs("rl: ", models, SCORED, mesh)}


def test_a_reward_model_scores_rows_of_prompt_and_completion():
    """Oracle: by hand: 36 tokens in rows of a power of two, ten of them four at a time; a vocabulary twice
    as large costs nothing, because the model has no head over it.
    """
    (score,) = programs_of(helpful=HELPFUL).values()
    assert (score.name, score.part, score.times) == ("rl: helpful: score", REWARD, 3)
    assert score.arguments[1]["tokens"].shape == (4, 64)
    larger = dataclasses.replace(POLICY, vocab_size=2 * POLICY.vocab_size)
    (other,) = programs_of(larger, helpful=HELPFUL).values()
    assert score.flops == other.flops > 0


@pytest.mark.parametrize("positions, read", [(128, 64), (70, 48)])
def test_a_judge_reads_both_texts_where_it_has_room_for_them(positions, read):
    """Oracle: by hand, rounded up to sixteens: 16 tokens of prompt and twice 20; else what a verdict of 24
    leaves of its positions. Its parameters have its own dtype.
    """
    policy = dataclasses.replace(POLICY, max_position_embeddings=positions)
    programs = programs_of(policy, judge=JUDGE)
    assert all(name.startswith("rl: judge: ") for name in programs) and len(programs) > 1
    prefill = programs["rl: judge: prefill"]
    assert prefill.sizes == f"4 rows x {read}"
    params = next(held.tree for held in prefill.beside if held.name == "the parameters")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_the_other_models_are_in_memory_while_one_works():
    """Oracle: by hand, their names; a reward model is a decoder with a head, a judge is a policy."""
    programs = programs_of(helpful=HELPFUL, judge=JUDGE)
    for name, program in programs.items():
        other = "judge" if "helpful" in name else "helpful"
        assert f"reward model {other}" in {held.name for held in program.beside}, name
        assert f"reward model {name.split(': ')[1]}" not in {held.name for held in program.beside}
    models = planned_rewards(dict(helpful=HELPFUL, judge=JUDGE), POLICY)
    assert [model.judges for model in models.values()] == [False, True]
    helpful, judge = held_models(models, one_device())
    assert "decoder" in helpful.tree and "decoder" not in judge.tree
