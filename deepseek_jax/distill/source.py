"""A distillation's batches: packed texts and the student's samples; and its held-out losses."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from deepseek_jax.data.batches import PackedDocuments
from deepseek_jax.data.chat import last_prompt
from deepseek_jax.data.conversations import render_numbered
from deepseek_jax.data.packing import Rows
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.distill.objective import SAMPLED, without_projections
from deepseek_jax.distill.settings import OnPolicySettings
from deepseek_jax.evaluation.compare import compare
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.state import TrainState

HELD_OUT_LOSS = "held_out_loss"


class TaskWatch:
    """A measurement of held-out losses, task by task, that reports tasks which have become worse.

    Attributes:
        loss_of: Measures the losses; its own batches are not read.
        batches: Task -> its held-out batches.
        student: The student's name, for messages.
        latest: The mean over tasks at the last measurement.
        best: Task -> the losses of its conversations when their mean was lowest.
        evaluations: Count of measurements.
    """

    def __init__(
        self, loss_of: ConversationLoss, batches: Mapping[str, Sequence[dict]], student: str
    ):
        self.loss_of, self.batches, self.student = loss_of, batches, student
        self.latest, self.evaluations = 0.0, 0
        self.best: dict[str, list[float]] = {}

    def __call__(self, params):
        """Measure the params, and compare each task with its best measurement.

        Returns:
            {held_out_loss, held_out_loss/TASK, regressed/TASK}: losses in nats a token; regressed
            is 1.0 if the task has become worse than its best, else 0.0.
        """
        params, metrics = without_projections(params), {}
        # Measure every task before noting anything: a request to stop may end a measurement halfway
        losses_by_task = {
            task: self.loss_of.by_conversation(params, batches)
            for task, batches in self.batches.items()
        }
        self.evaluations += 1
        for task, losses in losses_by_task.items():
            metrics[f"{HELD_OUT_LOSS}/{task}"] = float(losses.mean())
            metrics[f"regressed/{task}"] = float(self._regressed(task, losses))
        means = [metrics[f"{HELD_OUT_LOSS}/{task}"] for task in self.batches]
        self.latest = metrics[HELD_OUT_LOSS] = float(np.mean(means))
        return metrics

    def _regressed(self, task, losses):
        best_losses = self.best.get(task)
        if best_losses is None or losses.mean() < np.mean(best_losses):
            # Each conversation's loss, not their mean: compare takes the difference for each
            # conversation
            self.best[task] = losses.tolist()
            return False
        comparison = compare(losses, best_losses)
        # compare calls the higher side better; for losses that means worse
        if comparison.verdict != "better":
            return False
        mean, low, high = comparison.difference
        say(
            f"{self.student}: task {task} regressed at evaluation {self.evaluations}: its held-out loss is "
            f"{mean:.3f} nats a token ({low:.3f} to {high:.3f}) above its best"
        )
        return True

    def get_state(self) -> dict:
        """Return the state as JSON can hold it."""
        return {"latest": self.latest, "best": self.best, "evaluations": self.evaluations}

    def set_state(self, state: dict):
        """Resume from a state of get_state."""
        self.latest, self.best = state["latest"], state["best"]
        self.evaluations = state["evaluations"]


class OnPolicyRows:
    """Rows that the student samples: a call returns a batch's arrays, their keys with SAMPLED.

    Seed and step choose the prompts.

    Args:
        policy: Its own params are not read.
        prompts: Their ids.

    Raises:
        ValueError: If max_completion_length leaves too little of sequence_length for every prompt.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[list[int]],
        settings: OnPolicySettings,
        *,
        sequence_length: int,
        seed: int,
    ):
        self.policy, self.settings, self.seed = policy, settings, seed
        room = sequence_length - settings.max_completion_length
        self.prompts = [prompt for prompt in prompts if len(prompt) <= room]
        if not self.prompts:
            raise ValueError(
                f"max_completion_length={settings.max_completion_length} leaves {room} of "
                f"sequence_length={sequence_length} tokens to a prompt, and the shortest has "
                f"{min(map(len, prompts))}; lower it"
            )
        self.length = sequence_length

    def __call__(self, params, step: int):
        """Sample the rows of a step.

        Returns:
            A dict of numpy arrays: tokens, targets, loss_mask, segment_ids, positions and
            normalizer, each under SAMPLED + its name.
        """
        # From seed and step alone, so that a resumed run draws the same rows
        rng = np.random.default_rng([self.seed, step])
        prompt_indices = rng.integers(len(self.prompts), size=self.settings.prompts)
        examples = [{"prompt_ids": self.prompts[i]} for i in prompt_indices]
        seed = int(rng.integers(2**31))
        rollout = self.policy.with_params(params).answer(examples, self.settings, seed=seed).rollout
        prompts = [example["prompt_ids"] for example in examples]
        rows = zip(prompts, rollout.completion_ids, rollout.completion_mask, strict=True)
        batch = sampled_rows([(p, ids[mask]) for p, ids, mask in rows], self.length)
        return {SAMPLED + name: array for name, array in batch.items()}


def sampled_rows(
    pairs: Sequence[tuple[Collection[int], Collection[int]]], length: int
) -> dict[str, np.ndarray | np.float32]:
    """Turn (prompt, completion) pairs of ids into a batch with rows of `length`.

    The loss mask covers the completions.
    """
    shape = len(pairs), length
    tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    loss_mask, segment_ids = np.zeros(shape, bool), np.zeros(shape, np.int32)
    for row, (prompt, completion) in enumerate(pairs):
        ids = [*prompt, *completion]
        tokens[row, : len(ids)] = ids
        targets[row, : len(ids) - 1] = ids[1:]
        # The prompt's last token is the one that predicts the completion's first
        loss_mask[row, len(prompt) - 1 : len(ids) - 1] = True
        segment_ids[row, : len(ids)] = 1
    positions = np.where(segment_ids > 0, np.arange(length), 0).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": targets,
        "loss_mask": loss_mask,
        "segment_ids": segment_ids,
        "positions": positions,
        "normalizer": np.float32(loss_mask.sum()),
    }


class DistillSource(PackedDocuments):
    """PackedDocuments with the rows of an OnPolicyRows, if there is one, and a TaskWatch.

    Args:
        scalars: Must have a temperature, which is logged.
        watch: Measures the held-out losses.
        sampler: None for no sampled rows.
        learns_texts: Whether a term needs the packed texts.
    """

    def __init__(
        self,
        make: Callable,
        rows: Rows,
        mesh: Mesh,
        *,
        batch_sizes: Sequence[tuple[int, int]],
        scalars: Mapping[str, Callable],
        eval_every: int,
        watch: TaskWatch,
        sampler: OnPolicyRows | None,
        learns_texts: bool,
    ):
        super().__init__(
            make,
            rows,
            mesh,
            batch_sizes=batch_sizes,
            scalars=scalars,
            evaluate=watch,
            eval_every=eval_every,
        )
        self.watch, self.sampler, self.learns_texts = watch, sampler, learns_texts

    def next(self, state: TrainState, step: int) -> tuple[list[dict], dict]:
        """Return one batch and its metrics, see PackedDocuments.

        The metric tokens counts the texts' tokens, where a term needs them, and the sampled ones.
        sampled_tokens counts only the sampled ones. row_tokens also counts their prompts.
        """
        (batch,), metrics = super().next(state, step)
        metrics["temperature"] = self.scalars["temperature"](step)
        if not self.learns_texts:
            metrics |= dict(tokens=0.0, row_tokens=0.0)
        if self.sampler is None:
            return [batch], metrics
        sampled_arrays = self.sampler(without_projections(state.model), step)
        metrics["sampled_tokens"] = float(sampled_arrays[f"{SAMPLED}normalizer"])
        metrics["tokens"] += metrics["sampled_tokens"]
        metrics["row_tokens"] += float((sampled_arrays[f"{SAMPLED}segment_ids"] > 0).sum())
        return [batch | put_share(self.mesh, sampled_arrays)], metrics

    def get_state(self) -> dict:
        """Return the position in the texts, and the state of the watch."""
        return super().get_state() | {"watch": self.watch.get_state()}

    def set_state(self, state: dict):
        """Resume from a state of get_state."""
        self.watch.set_state(state["watch"])
        super().set_state(state)


def prompts_of(conversations: RandomAccess, policy: Policy, limit: int) -> list[list[int]]:
    """Return the ids of the last prompt in each of the first `limit` conversations."""
    prompts = []
    for index in range(min(len(conversations), limit)):
        record, template = conversations[index], policy.template
        ids_and_targets = render_numbered(policy.tokenizer, record, index, template=template)
        prompts.append(last_prompt(*ids_and_targets))
    return prompts
