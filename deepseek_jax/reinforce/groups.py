"""Source of GRPO's batches: samples completions in groups, scores them, computes advantages."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.parallel.host_memory import return_much_freed_memory
from deepseek_jax.parallel.processes import say
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
from deepseek_jax.reinforce.metrics import StepRecord, describe, draw_groups, kept_groups
from deepseek_jax.reinforce.sampler import Sampler, named
from deepseek_jax.reinforce.scenarios import ScenarioRewards, deciding, place, scenario_of
from deepseek_jax.reinforce.settings import SCENARIOS, ReinforceSettings
from deepseek_jax.reinforce.update import jitted_score
from deepseek_jax.rewards.scoring import Rewards, Scores
from deepseek_jax.rollout.answers import Answers
from deepseek_jax.rollout.kept import check_rows as check_kept
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.state import TrainState
from deepseek_jax.trees import PyTree


class GroupSource:
    """The source of GRPO's batches, for training.loop.train.

    At each step it samples groups of completions, scores them, and splits them into the step's
    updates. It samples with the params of the loop's state. Questions are asked without end: each
    once an epoch, in an order that settings.seed sets and that is new in each epoch.

    Before every eval_every-th step it measures held_out_accuracy: the share of the held-out
    questions with a right greedy answer. Nothing of the training depends on it.

    Args:
        policy: its own params are not read.
        questions: examples with prompt_ids by scenario; no general ones are needed without
            settings.general.
        reference: params of the frozen policy. None if the state holds the reference, if the policy
            has an adapter, or if kl_coef is 0.
        held_out: held-out examples with prompt_ids, all of them measured; read only with
            settings.eval_every.
        folder: takes the completions of long rollouts as they end, so that a run that is killed in
            a rollout resumes in it.

    Attributes:
        position: the number of questions asked so far.
        record: the StepRecord of the latest step.
    """

    def __init__(
        self,
        policy: Policy,
        questions: Mapping[str, Sequence[dict]],
        rewards: Rewards | ScenarioRewards,
        settings: ReinforceSettings,
        mesh: Mesh,
        reference: PyTree,
        held_out: Sequence[dict] = (),
        folder: Path | None = None,
    ):
        counts = {scenario: len(questions.get(scenario, ())) for scenario in SCENARIOS}
        if not counts["reasoning"] or settings.general is not None and not counts["general"]:
            raise ValueError(
                f"{counts['reasoning']} questions and {counts['general']} general questions are given; give "
                "at least one of each kind that settings ask"
            )
        if settings.eval_every and not held_out:
            raise ValueError(
                f"eval_every={settings.eval_every} measures on held-out questions, and none are given; give "
                "some, or set it to 0"
            )
        self.policy, self.rewards, self.settings, self.mesh = policy, rewards, settings, mesh
        self.questions = {
            scenario: grain.MapDataset.source(questions[scenario]).shuffle(settings.seed).repeat()
            for scenario, count in counts.items()
            if count
        }
        self.position, self.reference, self.held_out = 0, reference, held_out
        self.asked = NewQuestions(counts)
        self.sampler = Sampler(policy, settings, folder)
        self.score = jitted_score(policy.config)
        self.degenerate = Degenerate(settings.degenerate, policy.eos_ids)
        # The fingerprint of the parameters that became the reference; None for unknown
        self.referred: int | None = None
        self.record = StepRecord(mesh)
        self._completions: list[dict] = []

    @functools.cached_property
    def accuracy(self) -> str:
        """The reward that decides whether an answer is right; known after the first scores."""
        return deciding(self.settings, self.rewards)

    def get_state(self) -> dict:
        """Return what set_state resumes from, in a form that JSON can hold."""
        # The loop calls get_state at each checkpoint, which makes the files of earlier rollouts useless
        self.sampler.forget()
        return {"position": self.position, "degenerate": dict(self.degenerate.counts)}

    def set_state(self, state: dict):
        """Resume after the questions that a state of get_state has asked."""
        self.position = state["position"]
        # Counts go on, so that a run that is often interrupted still reaches its limits
        self.degenerate.counts.update(state["degenerate"])

    def next(self, state: TrainState, step: int) -> tuple[list[dict], dict[str, float]]:
        """Sample and score a step's groups: return (batches for its updates, metrics).

        The metrics are from metrics.describe, StepRecord.of_samples, _sample and _measured.
        """
        # Updates are dispatched asynchronously: the previous step's may not have ended
        jax.block_until_ready(state.params)
        # Frees the memory of activations and gradients
        return_much_freed_memory()
        # Before the record begins: a measurement is no part of the step's times
        measured = self._measured(state.model, step)
        record = self.record = StepRecord(self.mesh)
        groups, sampled_groups = self._sample(state.model, step)
        record.begin_training()
        self.degenerate.look(step, sampled_groups)
        check_questions(step, record.asked, record.counts["new_questions"])
        reference_every = self.settings.reference_every
        if step == 0 or (reference_every is not None and step % reference_every == 0):
            self.referred = self.sampler.sampled_by
        # Frees the memory of KV caches and decoding weights
        return_much_freed_memory()
        advantages = group_advantages(
            np.concatenate([group["rewards"] for group in groups]),
            group_size=self.settings.group_size,
            normalize_std=self.settings.loss.normalizes_std(),
        )
        self._completions = []
        # Copied now, so that the arrays of the groups need not stay in memory until the updates end
        if self.settings.is_logged(step):
            count, seed = self.settings.kept_groups, self.settings.seed
            numbers = draw_groups(len(groups), count, seed, step)
            self._completions = kept_groups(groups, advantages, numbers)
        minibatches, lengths = update_batches(groups, advantages, self.settings, self.mesh, step)
        num_learned = lengths.learned.sum()
        record.tokens, record.epochs = num_learned, self.settings.epochs
        record.marks = lengths.marks
        record.advantages = np.asarray(advantages)
        record.add({"left_out_tokens": left_out_tokens(groups, sampled_groups)})
        check_tokens(step, record.answered, record.counts["left_out_tokens"], num_learned)
        batches = self._updates(state, minibatches)
        has_adapter = state.frozen is not None
        record.flops = step_flops(self.settings, self.policy.config, lengths, frozen=has_adapter)
        described = describe(sampled_groups, self.accuracy)
        return batches, described | record.of_samples() | measured

    def of_updates(self) -> dict[str, float]:
        """Return the metrics of the latest step's updates, which have ended; see StepRecord."""
        return self.record.of_updates()

    def completions(self) -> list[dict]:
        """Return the groups of completions that are kept of the latest step, if it is logged."""
        return self._completions

    @property
    def has_moved(self) -> bool:
        """Whether the policy that sampled last is known to differ from its reference."""
        return self.referred is not None and self.referred != self.sampler.sampled_by

    @named("held_out")
    def _measured(self, params: PyTree, step: int) -> dict[str, float]:
        """Return {"held_out_accuracy": share}, or {} if the step measures nothing.

        Answers that could not be scored count as wrong.
        """
        every = self.settings.eval_every
        if not every or step % every:
            return {}
        answers = self.sampler.answer_greedily(params, self.held_out)
        scores = answers.scored_by(self.rewards, self.held_out)
        scores.require_one()
        return {"held_out_accuracy": float(scores.as_wrong(self.accuracy).mean())}

    def _sample(self, params: PyTree, step: int) -> tuple[list[dict], list[dict]]:
        """Sample the groups of one step: return (groups to train on, all sampled groups).

        Dynamic sampling (arXiv:2503.14476, section 3.2) draws more questions in place of groups
        with rewards that are all equal, in at most max_sampling_rounds rounds. If too few groups
        differ even then, equal groups fill the step, and equal_groups_used counts them. Their
        rewards give no gradient, but they count in the loss's mean. So the step's update is smaller
        by their share.
        """
        num_groups, max_rounds = self.settings.prompts_per_step, self.settings.max_sampling_rounds
        unequal_groups: list[dict] = []
        equal_groups: list[dict] = []
        sampled_groups: list[dict] = []
        for round_number in range(max_rounds):
            groups = self._round(params, step, round_number)
            sampled_groups += groups
            for group in groups:
                (equal_groups if all_equal(group["rewards"]) else unequal_groups).append(group)
            if len(unequal_groups) >= num_groups:
                break
        # With a single round there is no dynamic sampling: all groups are used, equal ones too
        if max_rounds == 1:
            return sampled_groups, sampled_groups
        num_equal_used = max(num_groups - len(unequal_groups), 0)
        self.record.add({"sampling_rounds": round_number + 1, "equal_groups_used": num_equal_used})
        if num_equal_used:
            say(
                f"step {step}: {num_equal_used} of {num_groups} groups have nothing to learn from, their "
                f"rewards being all equal after max_sampling_rounds={max_rounds}"
            )
        return (unequal_groups + equal_groups)[:num_groups], sampled_groups

    def _round(self, params, step, round_number):
        """Ask and score prompts_per_step questions, one sampling round, and return their groups."""
        examples = self._take(self.settings.prompts_per_step)
        answers, counts = self.sampler.answer(params, examples, step, round_number)
        self.record.add(counts)
        return self._scored(examples, answers, step)

    def _take(self, n):
        """Return the next n examples."""
        places = [place(self.settings, index) for index in self._numbers(n)]
        examples = [self.questions[scenario][i] for scenario, i in places]
        self._note(
            (*example_place, example)
            for example_place, example in zip(places, examples, strict=True)
        )
        if self.settings.general is None:
            return examples
        return [
            e | {"scenario": scenario} for e, (scenario, _) in zip(examples, places, strict=True)
        ]

    def _note(self, questions):
        """Count questions (scenario, number, example), and the new ones among them."""
        new_flags = [self.asked.add(*question) for question in questions]
        self.record.asked += len(new_flags)
        self.record.add({"new_questions": sum(new_flags)})

    def _numbers(self, n):
        """Return the numbers of the next n questions, and move on."""
        start, self.position = self.position, self.position + n
        return range(start, self.position)

    @named("rewards")
    def _scored(self, examples: list[dict], answers: Answers, step: int) -> list[dict]:
        """Score the answers to examples, and return their groups."""
        self.record.answered += int(answers.rollout.lengths.sum())
        with self.record.timed("reward_seconds"):
            scores = answers.scored_by(self.rewards, examples)
            scores.require_one()
            if self.settings.effort is not None:
                answer_examples, lengths = answers.per_answer(examples), answers.rollout.lengths
                scores = with_length_penalty(self.settings.effort, answer_examples, lengths, scores)
            check_range(scores)
            for message in scores.messages:
                say(f"step {step}: {message} The completion is dropped from its group.")
        self.record.add({"reward_errors": scores.errors})
        if scores.unread is not None:
            self.record.add({"unread": int(scores.unread.sum())})
        self.record.log(scores.metrics)
        groups = make_groups(examples, answers, scores)
        if answers.conversations is not None:
            # Conversations are what a policy with tools answers
            assert self.policy.tools is not None
            check_conversations(step, groups, self.policy.tools)
        return groups

    @named("logprobs")
    def _updates(self, state, minibatches):
        """Return the batches of all updates: the minibatches, repeated for each epoch.

        Each has the log-probabilities that the loss needs, and sampled_by, see training.update. A
        single update needs no old_logprobs: its policy is the one that sampled.
        """
        settings = self.settings
        if self.sampler.token_choices is not None:
            minibatches = [
                with_kept(minibatch, self.sampler.token_choices) for minibatch in minibatches
            ]
            for minibatch in minibatches:
                check_kept(self.policy.config, minibatch)
            # The update needs this memory
            self.sampler.token_choices = None
        # Before the first update: pi_old in each ratio is the policy that sampled (arXiv:2402.03300, eq. 3)
        if "old_logprobs" in settings.scored():
            minibatches = [
                minibatch | {"old_logprobs": self.score(state.model, minibatch)}
                for minibatch in minibatches
            ]
        reference = self._reference(state)
        if reference is not None:
            # The reference is another model, and chooses its own experts
            reference_batches = [
                {k: v for k, v in minibatch.items() if not k.endswith("_experts")}
                for minibatch in minibatches
            ]
            ref_logprobs = [self.score(reference, minibatch) for minibatch in reference_batches]
            minibatches = [
                minibatch | {"ref_logprobs": logprobs}
                for minibatch, logprobs in zip(minibatches, ref_logprobs, strict=True)
            ]
        # Only the first update can compare: the policy moves with it
        sampled_by = [self.sampler.sampled_by] + [0] * (len(minibatches) * settings.epochs - 1)
        return [
            minibatch | put_share(self.mesh, {"sampled_by": np.uint32(fingerprint)})
            for minibatch, fingerprint in zip(
                minibatches * settings.epochs, sampled_by, strict=True
            )
        ]

    def _reference(self, state):
        """Return the params that the KL compares with, on the device; None for no KL."""
        if isinstance(state.frozen, AdaptedParams):
            # With an adapter the reference is the frozen policy itself: nothing is stored or copied
            return state.frozen.base if self.settings.loss.kl_coef else None
        reference = state.reference if self.reference is None else self.reference
        return None if reference is None else on_device(reference)


def make_groups(examples: list[dict], answers: Answers, scores: Scores) -> list[dict]:
    """Build one dict for each example: its group of completions and their scores.

    The keys are the ones of completion_groups, and example, texts, scenario, effort, rewards,
    parts, columns, unread; for conversations also conversations.
    """
    groups, n = completion_groups(answers), answers.n
    for group, example in zip(groups, examples, strict=True):
        rows = slice(group["row"] * n, (group["row"] + 1) * n)
        group["example"], group["texts"] = example, answers.texts[rows]
        group["scenario"] = scenario_of(example)
        group["effort"] = example.get("effort")
        group["rewards"] = scores.total[rows]
        group["parts"] = {name: part[rows] for name, part in scores.rewards_by_name.items()}
        group["columns"] = {name: column[rows] for name, column in scores.columns.items()}
        group["unread"] = [False] * n if scores.unread is None else scores.unread[rows]
        if answers.conversations is not None:
            group["conversations"] = answers.conversations[rows]
    return groups


def completion_groups(answers: Answers) -> list[dict]:
    """Build one dict for each example: its prompt and its group's rows of the rollout.

    The keys are prompt_ids, row (the example's number) and rollout, the Rollout of the group.
    """
    n = answers.n
    return [
        {
            "prompt_ids": prompt,
            "row": index,
            "rollout": answers.rollout.part(slice(index * n, (index + 1) * n)),
        }
        for index, prompt in enumerate(answers.prompts)
    ]
