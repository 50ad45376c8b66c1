"""The loop's source of GRPO batches: questions to rollouts, rewards and advantages."""

import time
from collections import Counter

import jax
import numpy as np

from deepseek_jax.evaluation.held_out import completion_texts, score
from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import NORMALIZES_STD, group_advantages
from deepseek_jax.parallel import put_batch
from deepseek_jax.parallel.host_memory import return_freed_memory
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.requests import PROMPT_BUCKET

BUCKET = 16  # lengths of prompts and completions in a batch grow in these steps: few compilations


class GroupSource:
    """Each step: sample group_size completions of prompts_per_step questions with the state's params.

    questions: data.tasks.QuestionStream of examples that carry their prompt_ids. settings: the recipe's
    ReinforceSettings. reference: params of the frozen policy; None where the state holds it, or kl_coef is 0.
    """

    def __init__(self, config, tokenizer, questions, rewards, settings, mesh, reference):
        self.config, self.tokenizer, self.questions = config, tokenizer, questions
        self.rewards, self.settings, self.mesh, self.reference = rewards, settings, mesh, reference
        self.returned = None  # when the batch before was handed out, and its tokens times epochs
        self.score = jax.jit(
            lambda params, batch: completion_logprobs(
                config, params, batch, temperature=batch["temperature"]
            )[0]
        )

    def get_state(self):
        """How many questions were taken."""
        return {"position": self.questions.position}

    def set_state(self, state):
        """Go on behind those."""
        self.questions.position = state["position"]

    def next(self, state, step):
        """Roll out, score and cut into the step's updates: -> (list of batches, metrics).

        Of all the step's rounds: rollout_seconds and rollout_tokens_per_second are the engine's alone,
        reward_seconds what it took to read and grade the completions, prefilled_positions those of the
        engine's padded prompts, each once for its whole group.
        update_seconds and update_tokens_per_second are of the updates before, which end here: a run's first
        step has none. They include what the loop does between two steps, logging and saving, and what the
        device had still to do of old_logprobs and ref_logprobs; a token counts once an epoch.
        """
        metrics = self._time_of_update(state)
        groups, sampled, sampling_metrics = self._sample(state.params, step)
        return_freed_memory()  # caches and decoding weights
        batch = self._batch(groups)
        tokens = float(batch["completion_mask"].sum())
        metrics |= self._describe(sampled) | sampling_metrics | {"tokens": tokens}
        batches = self._updates(state, batch, self.settings.rollout.temperature_at(step))
        self.returned = time.perf_counter(), tokens * self.settings.epochs
        return batches, metrics

    def _time_of_update(self, state):
        """How long the updates before took, which the device may not have finished when they returned."""
        if self.returned is None:
            return {}
        jax.block_until_ready(state.params)
        began, tokens = self.returned
        seconds = time.perf_counter() - began
        return_freed_memory()  # activations and gradients
        return {"update_seconds": seconds, "update_tokens_per_second": tokens / seconds}

    def _sample(self, params, step):
        """Groups for one step. Dynamic sampling (arXiv:2503.14476, section 3.2) draws further questions in
        place of groups whose rewards are all equal, in at most max_sampling_rounds rounds. What is missing
        then are equal groups after all, equal_groups_used of them: rewards give them no gradient, and
        they count in the loss's mean, so that the step's update is smaller by their share.
        Returns (groups to learn from, all groups sampled, metrics).
        """
        wanted, rounds = self.settings.prompts_per_step, self.settings.max_sampling_rounds
        kept, equal, sampled, counts = [], [], [], Counter()
        for number in range(rounds):
            groups, counted = self._round(params, step, number)
            sampled += groups
            counts.update(counted)
            for group in groups:
                (equal if _all_equal(group["rewards"]) else kept).append(group)
            if len(kept) >= wanted:
                break
        metrics = {name: float(count) for name, count in counts.items()}
        metrics["all_equal_share"] = len(equal) / len(sampled)
        metrics["rollout_tokens_per_second"] = counts["sampled_tokens"] / counts["rollout_seconds"]
        if rounds > 1:
            groups, used = (kept + equal)[:wanted], max(wanted - len(kept), 0)
            metrics |= {"sampling_rounds": float(number + 1), "equal_groups_used": float(used)}
            if used:
                say(
                    f"step {step}: {used} of {wanted} groups have nothing to learn from, their rewards being "
                    f"all equal after max_sampling_rounds={rounds}"
                )
        return groups, sampled, metrics

    def _round(self, params, step, number):
        """One batch of questions, each with its group: -> (groups, metrics that add up over rounds)."""
        n = self.settings.group_size
        examples = self.questions.take(self.settings.prompts_per_step)
        prompts = [example["prompt_ids"] for example in examples]
        began = time.perf_counter()
        rollout = self._rollout(params, prompts, step, number)
        generated = time.perf_counter()
        texts = completion_texts(self.tokenizer, prompts, rollout)
        scores = score(self.rewards, [e for e in examples for _ in range(n)], texts)
        counted = {
            "rollout_seconds": generated - began,
            "reward_seconds": time.perf_counter() - generated,
            "reward_errors": scores.errors,
            "sampled_tokens": rollout.completion_mask.sum(),
            "prefilled_positions": len(prompts) * _bucket(max(map(len, prompts)), PROMPT_BUCKET),
        }
        for message in scores.messages:
            say(f"step {step}: {message} The completion is left out of its group.")
        return _groups(prompts, rollout, scores, n), counted

    def _rollout(self, params, prompts, step, number):
        """What the engine samples in a step's round of this number: its Rollout."""
        settings = self.settings
        return generate(
            self.config,
            params,
            prompts,
            n=settings.group_size,
            max_completion_length=settings.rollout.length_at(step),
            temperature=settings.rollout.temperature_at(step),
            eos_ids=(self.tokenizer.eos_id, *self.config.eos_ids),
            seed=int(
                np.random.SeedSequence([settings.seed, step, number]).generate_state(1)[0] >> 1
            ),
            slots=settings.rollout.slots,
        )

    def _batch(self, groups):
        """The groups as arrays of bucketed length, completions of a group adjacent.

        A completion that could not be scored loses its tokens, and so its part in the loss.
        """
        mask = np.concatenate([group["mask"] for group in groups])
        t = min(_bucket(mask.sum(1).max()), mask.shape[1])
        rewards = np.concatenate([group["rewards"] for group in groups])
        prompts = [group["prompt_ids"] for group in groups]
        prompt_ids = np.zeros((len(prompts), _bucket(max(map(len, prompts)))), np.int32)
        for row, prompt in zip(prompt_ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([[len(prompt)] for prompt in prompts])
        advantages = group_advantages(
            rewards,
            group_size=self.settings.group_size,
            normalize_std=NORMALIZES_STD[self.settings.loss.loss_type],
        )
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": np.arange(prompt_ids.shape[1]) < lengths,
            "completion_ids": np.concatenate([group["ids"] for group in groups])[:, :t],
            "completion_mask": (mask & ~np.isnan(rewards)[:, None])[:, :t],
            "sampler_logprobs": np.concatenate([group["logprobs"] for group in groups])[:, :t],
            "advantages": np.asarray(advantages),
        }

    def _updates(self, state, batch, temperature):
        """Cut into minibatches, each taken epochs times, with the temperature that they were sampled at and
        the log-probabilities that they need.

        With a single update the policy has not moved when it is made: it needs no old_logprobs.
        """
        settings = self.settings
        parts = [self._with_totals(part) for part in _split(batch, settings.minibatches)]
        scalars = {"temperature": np.float32(temperature)}
        parts = [put_batch(self.mesh, part | scalars) for part in parts]
        if settings.minibatches * settings.epochs > 1:
            parts = [part | {"old_logprobs": self.score(state.params, part)} for part in parts]
        reference = state.reference if self.reference is None else self.reference
        if reference is not None:
            parts = [part | {"ref_logprobs": self.score(reference, part)} for part in parts]
        return parts * settings.epochs

    def _with_totals(self, batch):
        mask = batch["completion_mask"]
        totals = {"num_tokens": mask.sum(), "num_completions": mask.any(1).sum()}
        batch = _local_rows(self.mesh, batch)
        return batch | {name: np.float32(total) for name, total in totals.items()}

    def _describe(self, groups):
        """What all the step's rollouts were like. Rewards that could not be had are left out of the means."""
        rewards = np.stack([group["rewards"] for group in groups])
        lengths = np.concatenate([group["mask"].sum(1) for group in groups])
        metrics = {
            "reward": np.nanmean(rewards),
            "reward_group_std": np.nanmean([_std(row) for row in rewards]),
            "completion_length": lengths.mean(),
            "completion_length_max": lengths.max(),
            "truncated_share": np.mean([group["truncated"] for group in groups]),
        }
        for name in groups[0]["parts"]:
            part = np.array([group["parts"][name] for group in groups])
            if not np.isnan(part).all():  # as of a reward that none of these questions has
                metrics[f"reward_{name}"] = np.nanmean(part)
        metrics["accuracy"] = metrics.get(f"reward_{self.settings.accuracy}", np.nan)
        return {name: float(value) for name, value in metrics.items()}


def _groups(prompts, rollout, scores, n):
    """A dict a prompt, of its rows of the Rollout and of the Scores."""
    groups = []
    for index, prompt in enumerate(prompts):
        rows = slice(index * n, (index + 1) * n)
        groups.append(
            {
                "prompt_ids": prompt,
                "rewards": scores.total[rows],
                "parts": {name: part[rows] for name, part in scores.parts.items()},
                "ids": rollout.completion_ids[rows],
                "mask": rollout.completion_mask[rows],
                "logprobs": rollout.sampler_logprobs[rows],
                "truncated": rollout.truncated[rows],
            }
        )
    return groups


def _all_equal(rewards):
    scored = rewards[~np.isnan(rewards)]
    return len(scored) == 0 or scored.min() == scored.max()


def _std(rewards):
    scored = rewards[~np.isnan(rewards)]
    return scored.std(ddof=1) if len(scored) > 1 else np.nan


def _bucket(length, step=BUCKET):
    return -(-int(length) // step) * step


def _split(batch, parts):
    """Consecutive rows, the same share of prompts and of completions, so that no group breaks."""
    pieces = {name: np.split(array, parts) for name, array in batch.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]


def _local_rows(mesh, batch):
    """The rows that this process gives put_batch, of a batch that every process has made alike."""
    share, shares = batch_share(mesh)
    return {name: np.split(array, shares)[share] for name, array in batch.items()}
