"""Questions in, the batches of a step of GRPO out: completions in groups, their rewards and advantages."""

import functools
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.models.adapters import Adapted
from deepseek_jax.parallel.host_memory import return_much_freed_memory
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.parallel.shard import on_device, put_share
from deepseek_jax.reinforce.accounts import (
    NewQuestions,
    check_conversations,
    check_questions,
    check_tokens,
    left_out_tokens,
)
from deepseek_jax.reinforce.batch import step_flops, update_batches, with_kept
from deepseek_jax.reinforce.degenerate import Degenerate, all_equal, check_range
from deepseek_jax.reinforce.effort import with_length_penalty
from deepseek_jax.reinforce.metrics import StepRecord, describe, kept_completions
from deepseek_jax.reinforce.sampler import Sampler, named
from deepseek_jax.reinforce.scenarios import ScenarioRewards, deciding, place, scenario_of
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.reinforce.update import jitted_score
from deepseek_jax.rewards import Rewards, Scores
from deepseek_jax.rollout.answers import Answers
from deepseek_jax.rollout.kept import check_rows as check_kept
from deepseek_jax.rollout.policy import Policy


class GroupSource:
    """Each step: groups of completions sampled with the state's params, scored, and split into its updates.

    policy: its own params are not read. questions, general: examples with prompt_ids, asked without end: each
    once an epoch, in an order set by settings.seed and new each epoch. reference: params of the frozen
    policy; None if the state holds it, or the policy with an adapter, or kl_coef is 0. position: the number
    of questions asked so far. folder: takes the completions of long rollouts as they end, so that a run that
    is killed in one resumes in it. record: the StepRecord of the latest step.
    """

    def __init__(
        self,
        policy: Policy,
        questions: list,
        rewards: Rewards | ScenarioRewards,
        settings: ReinforceSettings,
        mesh: Mesh,
        reference: Any,
        general: list = (),
        folder: Path | None = None,
    ):
        if not questions or settings.general is not None and not general:
            raise ValueError(
                f"{len(questions)} questions and {len(general)} general questions are given; give at least "
                "one of each kind that settings ask"
            )
        self.policy, self.rewards, self.settings, self.mesh = policy, rewards, settings, mesh
        self.questions, self.general = (
            grain.MapDataset.source(examples).shuffle(settings.seed).repeat() if examples else None
            for examples in (questions, general)
        )
        self.position, self.reference = 0, reference
        self.asked = NewQuestions({"reasoning": len(questions), "general": len(general)})
        self.sampler = Sampler(policy, settings, folder)
        self.score = jitted_score(policy.config)
        self.degenerate = Degenerate(settings.degenerate, policy.eos_ids)
        # The fingerprint of the parameters that the reference was made from: None for unknown
        self.referred = None
        self.record, self._completions = StepRecord(mesh), []

    @functools.cached_property
    def accuracy(self):
        """The reward that decides whether an answer is right, once some are scored."""
        return deciding(self.settings, self.rewards)

    def get_state(self):
        """What set_state resumes from, as JSON can hold it."""
        # Called at each checkpoint
        self.sampler.forget()
        return {"position": self.position, "degenerate": dict(self.degenerate.counts)}

    def set_state(self, state):
        """Resume after the questions of get_state."""
        self.position = state["position"]
        # A run that is often interrupted ends at its limits, too
        self.degenerate.counts.update(state["degenerate"])

    def next(self, state, step: int):
        """Ask, score and split into the step's updates: -> (list of batches, metrics).

        The metrics are those of metrics.describe, StepRecord.of_samples and _sample.
        """
        # Updates are dispatched asynchronously: the previous step's may not have ended
        jax.block_until_ready(state.params)
        # The memory of activations and gradients
        return_much_freed_memory()
        record = self.record = StepRecord(self.mesh)
        groups, sampled = self._sample(state.model, step)
        record.begin_training()
        self.degenerate.look(step, sampled)
        check_questions(step, record.asked, record.counts["new_questions"])
        every = self.settings.reference_every
        if step == 0 or (every is not None and step % every == 0):
            self.referred = self.sampler.sampled_by
        # The memory of KV caches and decoding weights
        return_much_freed_memory()
        advantages = group_advantages(
            np.concatenate([group["rewards"] for group in groups]),
            group_size=self.settings.group_size,
            normalize_std=self.settings.loss.normalizes_std(),
        )
        self._completions = []
        # At once: the arrays of the groups must not wait in memory for the updates to end
        if first_process() and self.settings.is_logged(step):
            count = self.settings.kept_completions
            self._completions = kept_completions(groups, advantages, count)
        parts, lengths = update_batches(groups, advantages, self.settings, self.mesh, step)
        record.tokens, record.epochs = lengths.learned.sum(), self.settings.epochs
        record.marks = lengths.marks
        record.advantages = np.asarray(advantages)
        record.add({"left_out_tokens": left_out_tokens(groups, sampled)})
        check_tokens(step, record.answered, record.counts["left_out_tokens"], record.tokens)
        batches = self._updates(state, parts)
        adapts = state.frozen is not None
        record.flops = step_flops(self.settings, self.policy.config, lengths, frozen=adapts)
        return batches, describe(sampled, self.accuracy) | record.of_samples()

    def of_updates(self):
        """Metrics of the latest step, whose updates have ended: StepRecord.of_updates."""
        return self.record.of_updates()

    def completions(self):
        """The groups of completions that are kept of the latest step, if it is logged. Process 0 alone has
        any: the completions of all processes are there.
        """
        return self._completions

    @property
    def has_moved(self):
        """Whether the policy that sampled last is known to be another than its reference."""
        return self.referred is not None and self.referred != self.sampler.sampled_by

    def _sample(self, params, step: int):
        """Sample the groups of one step: -> (groups to train on, all sampled groups).

        Dynamic sampling (arXiv:2503.14476, section 3.2) draws more questions in place of groups whose rewards
        are all equal, in at most max_sampling_rounds rounds. If too few groups differ even then, equal groups
        fill the step, equal_groups_used of them. Their rewards give no gradient, but they count in the loss's
        mean, so the step's update is smaller by their share.
        """
        wanted, rounds = self.settings.prompts_per_step, self.settings.max_sampling_rounds
        kept, equal, sampled = [], [], []
        for number in range(rounds):
            groups = self._round(params, step, number)
            sampled += groups
            for group in groups:
                (equal if all_equal(group["rewards"]) else kept).append(group)
            if len(kept) >= wanted:
                break
        # A single round is no dynamic sampling: all its groups are used, equal ones too
        if rounds == 1:
            return sampled, sampled
        used = max(wanted - len(kept), 0)
        self.record.add({"sampling_rounds": number + 1, "equal_groups_used": used})
        if used:
            say(
                f"step {step}: {used} of {wanted} groups have nothing to learn from, their rewards being all "
                f"equal after max_sampling_rounds={rounds}"
            )
        return (kept + equal)[:wanted], sampled

    def _round(self, params, step, number):
        """Ask the questions of one sampling round and score their answers: -> [group], prompts_per_step."""
        examples = self._take(self.settings.prompts_per_step)
        answers, counts = self.sampler.answer(params, examples, step, number)
        self.record.add(counts)
        return self._scored(examples, answers, step)

    def _take(self, n):
        """The next n examples."""
        has_general = self.settings.general is not None
        places = [
            place(self.settings, index) if has_general else ("reasoning", index)
            for index in self._numbers(n)
        ]
        of = {"reasoning": self.questions, "general": self.general}
        examples = [of[scenario][i] for scenario, i in places]
        self._note((*where, example) for where, example in zip(places, examples, strict=True))
        if not has_general:
            return examples
        return [
            e | {"scenario": scenario} for e, (scenario, _) in zip(examples, places, strict=True)
        ]

    def _note(self, asked):
        """Count questions, (scenario, number, example) each, and those of them that are new."""
        new = [self.asked.add(*question) for question in asked]
        self.record.asked += len(new)
        self.record.add({"new_questions": sum(new)})

    def _numbers(self, n):
        """The numbers of the next n questions."""
        start, self.position = self.position, self.position + n
        return range(start, self.position)

    @named("rewards")
    def _scored(self, examples, answers, step):
        """Score the Answers to examples: -> groups."""
        self.record.answered += int(answers.rollout.completion_mask.sum())
        with self.record.timed("reward_seconds"):
            scores = answers.scored_by(self.rewards, examples)
            scores.require_one()
            if self.settings.effort is not None:
                lengths = answers.rollout.completion_mask.sum(1)
                asked = answers.asked(examples)
                scores = with_length_penalty(self.settings.effort, asked, lengths, scores)
            check_range(scores)
            for message in scores.messages:
                say(f"step {step}: {message} The completion is dropped from its group.")
        self.record.add({"reward_errors": scores.errors})
        if scores.unread is not None:
            self.record.add({"unread": int(scores.unread.sum())})
        self.record.log(scores.metrics)
        groups = make_groups(examples, answers, scores)
        if answers.conversations is not None:
            check_conversations(step, groups, self.policy.tools)
        return groups

    @named("logprobs")
    def _updates(self, state, parts):
        """The minibatches, repeated for each epoch, with the log-probabilities that the loss needs, and
        sampled_by, see training.update.

        A single update needs no old_logprobs: its policy is the one that sampled.
        """
        settings = self.settings
        if self.sampler.kept is not None:
            parts = [with_kept(part, self.sampler.kept) for part in parts]
            for part in parts:
                check_kept(self.policy.config, part)
            # Its memory is the update's
            self.sampler.kept = None
        # Before the first update: pi_old in each ratio is the policy that sampled (arXiv:2402.03300, eq. 3)
        if "old_logprobs" in settings.scored():
            parts = [part | {"old_logprobs": self.score(state.model, part)} for part in parts]
        reference = self._reference(state)
        if reference is not None:
            # Another model, with a choice of experts of its own
            own = [{k: v for k, v in part.items() if not k.endswith("_experts")} for part in parts]
            scores = [self.score(reference, part) for part in own]
            parts = [part | {"ref_logprobs": s} for part, s in zip(parts, scores, strict=True)]
        # The policy moves with the first update, so the later ones cannot compare
        sampled_by = [self.sampler.sampled_by] + [0] * (len(parts) * settings.epochs - 1)
        return [
            part | put_share(self.mesh, {"sampled_by": np.uint32(number)})
            for part, number in zip(parts * settings.epochs, sampled_by, strict=True)
        ]

    def _reference(self, state):
        """The params of the policy that the KL compares with, on the device; None for no KL."""
        if isinstance(state.frozen, Adapted):
            # Beside an adapter, the frozen policy itself: nothing is stored or copied for it
            return state.frozen.base if self.settings.loss.kl_coef else None
        reference = state.reference if self.reference is None else self.reference
        return None if reference is None else on_device(reference)


def make_groups(examples: list[dict], answers: Answers, scores: Scores) -> list[dict]:
    """One dict per example: that of completion_groups, and its group's rows of scores."""
    groups, n = completion_groups(answers), answers.n
    for group, example in zip(groups, examples, strict=True):
        rows = slice(group["row"] * n, (group["row"] + 1) * n)
        group["example"], group["texts"] = example, answers.texts[rows]
        group["scenario"] = scenario_of(example)
        group["effort"] = example.get("effort")
        group["rewards"] = scores.total[rows]
        group["parts"] = {name: part[rows] for name, part in scores.parts.items()}
        group["columns"] = {name: column[rows] for name, column in scores.columns.items()}
        group["unread"] = [False] * n if scores.unread is None else scores.unread[rows]
        if answers.conversations is not None:
            group["conversations"] = answers.conversations[rows]
    return groups


def completion_groups(answers: Answers):
    """One dict per example: its prompt, its place among them, and its group's rows of answers."""
    groups, n, rollout = [], answers.n, answers.rollout
    for index, prompt in enumerate(answers.prompts):
        rows = slice(index * n, (index + 1) * n)
        own = {} if rollout.observed_mask is None else {"observed": rollout.observed_mask[rows]}
        groups.append(
            own
            | {
                "prompt_ids": prompt,
                "row": index,
                "ids": rollout.completion_ids[rows],
                "mask": rollout.completion_mask[rows],
                "logprobs": rollout.sampler_logprobs[rows],
                "truncated": rollout.truncated[rows],
            }
        )
    return groups
