"""Questions in, the batches of a step of GRPO out: completions in groups, their rewards and advantages."""

import time
from collections import Counter
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.costs.chips import peak_of
from deepseek_jax.costs.program import GENERATION, STEP, TOKEN_RATE, TRAINING
from deepseek_jax.models.adapters import Adapted
from deepseek_jax.parallel.host_memory import return_freed_memory
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import on_device, put_share
from deepseek_jax.reinforce.batch import BUCKET, group_batch, split, totals, update_flops
from deepseek_jax.reinforce.degenerate import Degenerate, all_equal, check_range
from deepseek_jax.reinforce.effort import with_length_penalty
from deepseek_jax.reinforce.metrics import describe
from deepseek_jax.reinforce.sampler import Sampler, named
from deepseek_jax.reinforce.scenarios import ScenarioRewards, place, scenario_of
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.reinforce.update import jitted_score
from deepseek_jax.rewards import Rewards, Scores
from deepseek_jax.rollout.kept import check_rows as check_kept
from deepseek_jax.rollout.kept import rows_of
from deepseek_jax.rollout.policy import Answers, Policy


class GroupSource(Sampler):
    """Each step: groups of completions sampled with the state's params, scored, and split into its updates.

    policy: its own params are not read. questions, general: examples with prompt_ids, asked without end: each
    once an epoch, in an order set by settings.seed and new each epoch. reference: params of the frozen
    policy; None if the state holds it, or the policy with an adapter, or kl_coef is 0. position: the number
    of questions asked so far. folder: takes the completions of long rollouts as
    they end, so that a run that is killed in one resumes in it.
    """

    def __init__(
        self,
        policy: Policy,
        questions: list,
        rewards: Rewards | ScenarioRewards,
        settings: ReinforceSettings,
        mesh: Mesh,
        reference,
        general: list = (),
        folder: Path | None = None,
    ):
        if not questions or settings.general is not None and not general:
            raise ValueError(
                f"{len(questions)} questions and {len(general)} general questions are given; give at least "
                "one of each kind that settings ask"
            )
        super().__init__(policy, settings, folder)
        self.rewards, self.position = rewards, 0
        self.questions, self.general = (
            grain.MapDataset.source(examples).shuffle(settings.seed).repeat() if examples else None
            for examples in (questions, general)
        )
        self.mesh, self.reference = mesh, reference
        self.degenerate = Degenerate(settings.degenerate, policy.eos_ids)
        # The fingerprint of the parameters that the reference was made from: None for unknown
        self.referred = None
        # When the latest step began, and when it had its groups; the tokens and FLOPs that it learns with
        self.began, self.sampled, self.tokens, self.flops = 0.0, 0.0, 0.0, 0.0
        self.score = jitted_score(policy.config)

    def get_state(self):
        """What set_state resumes from, as JSON can hold it."""
        # Called at each checkpoint
        self.forget()
        return {"position": self.position, "degenerate": dict(self.degenerate.counts)}

    def set_state(self, state):
        """Resume after the questions of get_state."""
        self.position = state["position"]
        # A run that is often interrupted ends at its limits, too. Earlier checkpoints have no counts
        self.degenerate.counts.update(state.get("degenerate", {}))

    def next(self, state, step: int):
        """Sample, score and split into the step's updates: -> (list of batches, metrics).

        Summed over the step's sampling rounds: weight_sync_time, seconds until the parameters had the form
        for decoding; exposed_generation_time, those of the rest of the rollout, for all of which the update
        waits (rollout_tokens_per_second follows from it); reward_seconds, for the rewards;
        prefilled_positions, of the engine's padded prompts, one prompt for its whole group.
        """
        # Updates are dispatched asynchronously: the previous step's may not have ended
        jax.block_until_ready(state.params)
        # The memory of activations and gradients
        return_freed_memory()
        self.began = time.perf_counter()
        groups, sampled, sampling_metrics = self._sample(state.model, step)
        self.sampled = time.perf_counter()
        self.degenerate.look(step, sampled)
        every = self.settings.reference_every
        if step == 0 or (every is not None and step % every == 0):
            self.referred = self.sampled_by
        # The memory of KV caches and decoding weights
        return_freed_memory()
        shared = self.settings.shares_prompts()
        # A row's tokens split over the devices of its context
        multiple = BUCKET * self.mesh.shape["context"]
        batch = group_batch(
            groups,
            shared=shared,
            multiple=multiple,
            normalize_std=self.settings.loss.normalizes_std(),
            kl_weights=self.settings.kl_weights,
            rows=self.settings.keeps(),
        )
        tokens = float(batch["num_tokens"])
        metrics = describe(sampled, self.settings.accuracy) | sampling_metrics | {"tokens": tokens}
        batches = self._updates(state, batch, self.settings.rollout.temperature_at(step))
        self.tokens, self.flops = tokens, self._flops(batch, state)
        return batches, metrics

    def _flops(self, batch, state):
        """What the step's updates need, and before them the log-probabilities of old policy and reference."""
        settings, adapts = self.settings, state.frozen is not None
        rows = batch["prompt_mask"].sum(1), batch["completion_mask"].sum(1)
        update = update_flops(self.policy.config, *rows, frozen=adapts)
        # A forward pass is a third of an update of all weights
        score = update_flops(self.policy.config, *rows) / 3
        scored = (settings.minibatches * settings.epochs > 1) + (settings.loss.kl_coef > 0)
        return settings.epochs * update + scored * score

    def of_updates(self):
        """Metrics of the latest step, whose updates have ended.

        policy_training_time: seconds from the last reward to here, for log-probabilities of the old policy
        and the reference, and for the updates. update_tokens_per_second, a token counting once per epoch,
        and, on devices whose speed costs.chips knows, update_mfu follow from it. train_step_time: seconds of
        the whole step: weight_sync_time, exposed_generation_time, reward_seconds and policy_training_time,
        and little else. valid_tokens_per_sec_per_gpu: the learned tokens by the whole step, for each device.
        """
        now = time.perf_counter()
        training, step = now - self.sampled, now - self.began
        metrics = {
            TRAINING: training,
            STEP: step,
            TOKEN_RATE: self.tokens / step / self.mesh.size,
            "update_tokens_per_second": self.settings.epochs * self.tokens / training,
        }
        if (peak := peak_of(self.mesh.devices.ravel())) is not None:
            metrics["update_mfu"] = self.flops / (training * peak)
        return metrics

    def _sample(self, params, step: int):
        """Sample the groups of one step: -> (groups to train on, all sampled groups, metrics).

        Dynamic sampling (arXiv:2503.14476, section 3.2) draws more questions in place of groups whose rewards
        are all equal, in at most max_sampling_rounds rounds. If too few groups differ even then, equal groups
        fill the step, equal_groups_used of them. Their rewards give no gradient, but they count in the loss's
        mean, so the step's update is smaller by their share.
        """
        wanted, rounds = self.settings.prompts_per_step, self.settings.max_sampling_rounds
        kept, equal, sampled, counts = [], [], [], Counter()
        for number in range(rounds):
            groups, counted = self._round(params, step, number)
            sampled += groups
            counts.update(counted)
            for group in groups:
                (equal if all_equal(group["rewards"]) else kept).append(group)
            if len(kept) >= wanted:
                break
        metrics = self._of_rounds(sampled, counts)
        # A single round is no dynamic sampling: all its groups are used, equal ones too
        if rounds > 1:
            groups, used = (kept + equal)[:wanted], max(wanted - len(kept), 0)
            metrics |= {"sampling_rounds": float(number + 1), "equal_groups_used": float(used)}
            if used:
                say(
                    f"step {step}: {used} of {wanted} groups have nothing to learn from, their rewards being "
                    f"all equal after max_sampling_rounds={rounds}"
                )
        return groups, sampled, metrics

    @staticmethod
    def _of_rounds(groups, counts):
        """Metrics of the groups that a step has sampled. counts: sums over its rounds."""
        metrics = {name: float(count) for name, count in counts.items()}
        equal = [all_equal(group["rewards"]) for group in groups]
        metrics["all_equal_share"] = float(np.mean(equal))
        metrics["rollout_tokens_per_second"] = counts["sampled_tokens"] / counts[GENERATION]
        return metrics

    def _round(self, params, step, number):
        """Sample and score a group for each of prompts_per_step questions: -> (groups, metrics to sum)."""
        examples = self._take(self.settings.prompts_per_step)
        answers, sampled = self._sampled(params, examples, step, number)
        groups, scored = self._scored(examples, answers, step)
        return groups, sampled | scored

    @named("rewards")
    def _scored(self, examples, answers, step):
        """Score the Answers to examples: -> (groups, metrics to sum)."""
        began = time.perf_counter()
        asked = [example for example in examples for _ in range(answers.n)]
        scores = self.rewards.score_together(asked, answers.texts)
        scores.require_one()
        if self.settings.effort is not None:
            lengths = answers.rollout.completion_mask.sum(1)
            scores = with_length_penalty(self.settings.effort, asked, lengths, scores)
        check_range(scores)
        for message in scores.messages:
            say(f"step {step}: {message} The completion is dropped from its group.")
        counted = {
            "reward_seconds": time.perf_counter() - began,
            "reward_errors": scores.errors,
        }
        return make_groups(examples, answers, scores), counted

    def _take(self, n):
        """The next n examples."""
        start, self.position = self.position, self.position + n
        if self.settings.general is None:
            return [self.questions[i] for i in range(start, self.position)]
        places = (place(self.settings, index) for index in range(start, self.position))
        of = {"reasoning": self.questions, "general": self.general}
        return [of[scenario][i] | {"scenario": scenario} for scenario, i in places]

    @named("logprobs")
    def _updates(self, state, batch, temperature):
        """Split a batch into minibatches, repeated for each epoch, with the sampling temperature, the
        log-probabilities that the loss needs, and sampled_by, see training.update.

        A single update needs no old_logprobs: its policy is the one that sampled.
        """
        settings = self.settings
        sampled_at = {"temperature": np.float32(temperature)}
        # A minibatch is one update, so the divisors of its loss are its own totals
        parts = [
            put_share(self.mesh, part | totals(part) | sampled_at)
            for part in split(batch, settings.minibatches)
        ]
        if self.kept is not None:
            parts = [self._with_kept(part) for part in parts]
            # Its memory is the update's
            self.kept = None
        # Before the first update: pi_old in each ratio is the policy that sampled (arXiv:2402.03300, eq. 3)
        if settings.minibatches * settings.epochs > 1:
            parts = [part | {"old_logprobs": self.score(state.model, part)} for part in parts]
        reference = self._reference(state)
        if reference is not None:
            # Another model, with a choice of experts of its own
            own = [{k: v for k, v in part.items() if not k.endswith("_experts")} for part in parts]
            scores = [self.score(reference, part) for part in own]
            parts = [part | {"ref_logprobs": s} for part, s in zip(parts, scores, strict=True)]
        # The policy moves with the first update, so the later ones cannot compare
        sampled_by = [self.sampled_by] + [0] * (len(parts) * settings.epochs - 1)
        return [
            part | put_share(self.mesh, {"sampled_by": np.uint32(number)})
            for part, number in zip(parts * settings.epochs, sampled_by, strict=True)
        ]

    def _with_kept(self, part):
        """A part of the batch with what the rollout kept of its rows in place of the rows' numbers."""
        rows = part["prompt_rows"], part["completion_rows"]
        lengths = part["prompt_ids"].shape[1], part["completion_ids"].shape[1]
        part = {k: v for k, v in part.items() if not k.endswith("_rows")}
        kept = rows_of(self.kept, *rows, *lengths)
        check_kept(self.policy.config, kept)
        return part | kept

    def _reference(self, state):
        """The params of the policy that the KL compares with, on the device; None for no KL."""
        if isinstance(state.frozen, Adapted):
            # Beside an adapter, the frozen policy itself: nothing is stored or copied for it
            return state.frozen.base if self.settings.loss.kl_coef else None
        reference = state.reference if self.reference is None else self.reference
        return None if reference is None else on_device(reference)


def make_groups(examples, answers: Answers, scores: Scores):
    """One dict per example: its prompt, and its group's rows of answers and scores."""
    groups, n, rollout = [], answers.n, answers.rollout
    for index, example in enumerate(examples):
        rows = slice(index * n, (index + 1) * n)
        groups.append(
            {
                "prompt_ids": example["prompt_ids"],
                "row": index,
                "scenario": scenario_of(example),
                "effort": example.get("effort"),
                "rewards": scores.total[rows],
                "parts": {name: part[rows] for name, part in scores.parts.items()},
                "ids": rollout.completion_ids[rows],
                "mask": rollout.completion_mask[rows],
                "logprobs": rollout.sampler_logprobs[rows],
                "truncated": rollout.truncated[rows],
            }
        )
    return groups
