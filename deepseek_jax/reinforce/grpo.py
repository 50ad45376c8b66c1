"""GRPO (arXiv:2402.03300), for every recipe that has a policy.

questions -> groups of completions, their rewards and advantages -> updates -> params.
"""

import time

import jax
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.costs.chips import peak_of
from deepseek_jax.losses.grpo import NORMALIZES_STD
from deepseek_jax.parallel.host_memory import return_freed_memory
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.reinforce.batch import BUCKET, group_batch, split, totals, update_flops
from deepseek_jax.reinforce.groups import GroupSampler
from deepseek_jax.reinforce.metrics import describe
from deepseek_jax.reinforce.scenarios import ScenarioRewards
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.reinforce.stragglers import StragglerSampler
from deepseek_jax.reinforce.update import (
    as_reference,
    jitted_score,
    jitted_update,
    refreshing,
    sampler_limits,
)
from deepseek_jax.rewards import Rewards
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import train
from deepseek_jax.training.run import Run
from deepseek_jax.training.state import on_device


def reinforce(
    settings: ReinforceSettings,
    policy: Policy,
    questions: list,
    rewards: Rewards | ScenarioRewards,
    run: Run,
    general: list = (),
):
    """Train policy.params, which are donated: -> params. Resumes from run.folder.

    questions, general: examples with prompt_ids; the general ones are asked only if settings.general is set.
    """
    params, frozen, saved = policy.params, None, None
    create, step = jitted_update(settings, policy.config, params, run.mesh)
    # A reference that follows the policy is part of the state, so that a checkpoint has it
    if settings.loss.kl_coef and settings.reference_every is None:
        frozen = as_reference(settings, params)
    elif settings.loss.kl_coef:
        saved, step = as_reference(settings, params), refreshing(step, settings)
    folder = run.folder.with_name(f"{run.folder.name}_rollouts")
    sampler_class = StragglerSampler if settings.extra_prompts else GroupSampler
    sampler = sampler_class(policy, questions, rewards, settings, general, folder)
    source = GroupSource(sampler, run.mesh, frozen)
    state = create(params).replace(reference=saved)
    limits = sampler_limits(policy.config)
    return train(settings, state, step, source, run, settings.seed, limits).params


class GroupSource:
    """Each step: groups of completions sampled with the state's params, split into the step's updates.

    sampler: GroupSampler. reference: params of the frozen policy; None if the state holds it or kl_coef is 0.
    """

    def __init__(self, sampler: GroupSampler, mesh: Mesh, reference):
        self.sampler, self.settings, self.config = sampler, sampler.settings, sampler.policy.config
        self.mesh, self.reference = mesh, reference
        # When next() last returned, and its tokens times epochs; the FLOPs that its updates need
        self.returned, self.flops = None, 0.0
        self.score = jitted_score(self.config)

    def get_state(self):
        """The questions asked so far, see GroupSampler.get_state."""
        return self.sampler.get_state()

    def set_state(self, state):
        """Resume after those questions."""
        self.sampler.set_state(state)

    def next(self, state, step: int):
        """Sample, score and split into the step's updates: -> (list of batches, metrics).

        Summed over the step's sampling rounds: rollout_seconds, the engine alone (rollout_tokens_per_second
        follows from it); reward_seconds, for the rewards; prefilled_positions, of the engine's padded
        prompts, one prompt for its whole group.
        update_seconds, update_tokens_per_second and, on devices whose speed costs.chips knows, update_mfu
        measure the previous step's updates, which end here, so a run's first step has none. They include the
        loop's work between two steps, logging and saving, and the device's remaining work on old_logprobs and
        ref_logprobs. A token counts once per epoch.
        """
        metrics = self._time_of_update(state)
        groups, sampled, sampling_metrics = self.sampler.sample(state.params, step)
        # The memory of KV caches and decoding weights
        return_freed_memory()
        normalize_std = NORMALIZES_STD[self.settings.loss.loss_type]
        shared = self.settings.shares_prompts()
        # A row's tokens split over the devices of its context
        multiple = BUCKET * self.mesh.shape["context"]
        batch = group_batch(groups, shared=shared, multiple=multiple, normalize_std=normalize_std)
        tokens = float(batch["num_tokens"])
        metrics |= describe(sampled, self.settings.accuracy) | sampling_metrics | {"tokens": tokens}
        batches = self._updates(state, batch, self.settings.rollout.temperature_at(step))
        self.returned = time.perf_counter(), tokens * self.settings.epochs
        self.flops = self.settings.epochs * update_flops(
            self.config, batch["prompt_mask"].sum(1), batch["completion_mask"].sum(1)
        )
        return batches, metrics

    def _time_of_update(self, state):
        """Metrics of the time that the previous step's updates took."""
        if self.returned is None:
            return {}
        # Updates are dispatched asynchronously: they return before the device has finished
        jax.block_until_ready(state.params)
        began, tokens = self.returned
        seconds = time.perf_counter() - began
        # The memory of activations and gradients
        return_freed_memory()
        metrics = {"update_seconds": seconds, "update_tokens_per_second": tokens / seconds}
        if (peak := peak_of(self.mesh.devices.ravel())) is not None:
            metrics["update_mfu"] = self.flops / (seconds * peak)
        return metrics

    def _updates(self, state, batch, temperature):
        """Split a batch into minibatches, repeated for each epoch, with the sampling temperature, the
        log-probabilities that the loss needs, and sampled_by, see update.comparing.

        A single update needs no old_logprobs: its policy is the one that sampled.
        """
        settings = self.settings
        sampled_at = {"temperature": np.float32(temperature)}
        # A minibatch is one update, so the divisors of its loss are its own totals
        parts = [
            put_share(self.mesh, part | totals(part) | sampled_at)
            for part in split(batch, settings.minibatches)
        ]
        # Before the first update: pi_old in each ratio is the policy that sampled (arXiv:2402.03300, eq. 3)
        if settings.minibatches * settings.epochs > 1:
            parts = [part | {"old_logprobs": self.score(state.params, part)} for part in parts]
        reference = state.reference if self.reference is None else self.reference
        if reference is not None:
            reference = on_device(reference)
            parts = [part | {"ref_logprobs": self.score(reference, part)} for part in parts]
        # The policy moves with the first update, so the later ones cannot compare
        sampled_by = [self.sampler.sampled_by] + [0] * (len(parts) * settings.epochs - 1)
        return [
            part | put_share(self.mesh, {"sampled_by": np.uint32(number)})
            for part, number in zip(parts * settings.epochs, sampled_by, strict=True)
        ]
