"""GRPO (arXiv:2402.03300) as one call, for every recipe that has a policy.

questions -> groups of completions, their rewards and advantages -> updates -> params.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_jax.losses.grpo import metric_weights
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.reinforce.idle import IdleUpdates, check_reference
from deepseek_jax.reinforce.scenarios import ScenarioRewards
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.reinforce.update import (
    LARGEST_MEAN_GAP,
    as_reference,
    check_routing,
    jitted_update,
    sampler_limits,
)
from deepseek_jax.rewards.scoring import Rewards
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import train
from deepseek_jax.training.run import Run
from deepseek_jax.training.watch import Checks


def reinforce(
    settings: ReinforceSettings,
    policy: Policy,
    questions: Mapping[str, Sequence[dict]],
    rewards: Rewards | ScenarioRewards,
    run: Run,
    held_out: Sequence[dict] = (),
) -> Any:
    """Train a policy by GRPO, resuming from run.folder, and return its params.

    Args:
        policy: its params are donated.
        questions: examples with prompt_ids by scenario, as in GroupSource.
        held_out: held-out examples with prompt_ids, as in GroupSource.

    Raises:
        ValueError: as check_routing does.
    """
    check_routing(settings, policy.config, run.mesh)
    params, frozen, saved = policy.params, None, None
    create, update = jitted_update(settings, policy.config, params, run.mesh)
    # With an adapter the frozen policy is the reference, and GroupSource finds it in the state
    compares = settings.loss.kl_coef and not isinstance(params, AdaptedParams)
    if compares and settings.reference_every is None:
        frozen = as_reference(settings, params)
    elif compares:
        # This reference follows the policy, so it is part of the state, and checkpoints have it
        saved = as_reference(settings, params)
    folder = run.folder.with_name(f"{run.folder.name}_rollouts")
    source = GroupSource(policy, questions, rewards, settings, run.mesh, frozen, held_out, folder)
    state = create(params).replace(reference=saved)
    checks = Checks(
        limits=sampler_limits(policy.config),
        of_line=IdleUpdates(settings, source).look,
        locate=update.locate,
        after_first=functools.partial(
            check_reference, settings, LARGEST_MEAN_GAP[policy.config.dtype]
        ),
        weights=functools.partial(metric_weights, options=settings.loss),
    )
    return train(settings, state, update, source, run, settings.seed, checks).model
