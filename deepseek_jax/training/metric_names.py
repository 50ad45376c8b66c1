"""THE table of the columns of metrics.jsonl: their groups on the boards, units and meanings.

launch/metrics.md shows this table; python -m tests.benchmarks.results writes it there.

Tests: tests/training/test_boards.py, tests/test_results.py.
"""

import fnmatch
import functools
import re
from typing import NamedTuple


class Metric(NamedTuple):
    """A column, or a family of columns.

    Attributes:
        name: Words in capitals stand for any text: reward_NAME, held_out_loss/TASK.
        unit: The unit of its numbers. "share" is a number from 0 to 1.
        meaning: What the number is, for the step of its line.
        worry: When to look closer, or what ends the run; "" where no value is bad in itself.
    """

    name: str
    unit: str
    meaning: str
    worry: str = ""


# Group -> its columns. A name that stands here whole comes before a family; of two families the
# first one that fits counts
GROUPS: dict[str, tuple[Metric, ...]] = {
    "rewards": (
        Metric(
            "reward",
            "reward",
            "mean total reward of the step's completions",
            "it falls for many steps, or it rises while held-out scores do not: the policy games a reward",
        ),
        Metric(
            "accuracy",
            "share",
            "GRPO: mean of the reward that decides whether an answer is right; reward model: share of "
            "pairs or labels that it gets right",
            "reward model: near 0.5 after many steps",
        ),
        Metric(
            "held_out_accuracy",
            "share",
            "held-out questions with a right greedy answer, before this step, every `eval_every` steps",
            "it falls while the reward rises: the policy games a reward",
        ),
        Metric("accuracy_effort_EFFORT", "share", "the same for questions asked with this effort"),
        Metric(
            "reward_group_std",
            "reward",
            "standard deviation of the rewards of one question's completions, mean over questions",
            "near 0: all completions of a question earn the same, and there is nothing to learn",
        ),
        Metric(
            "all_equal_share",
            "share",
            "questions for which all completions earn the same reward, so that they teach nothing",
            "near 1: questions are too easy or too hard; at 1, `degenerate.equal_rewards` steps in a "
            "row end the run",
        ),
        Metric(
            "reward_errors",
            "completions",
            "completions that a reward could not score; they are left out of their groups",
            "above 0: the console has the error",
        ),
        Metric(
            "unread",
            "completions",
            "completions that score 0 because a rule could not read the answer that they state",
            "it grows: look at them in completions.jsonl",
        ),
        Metric(
            "logged/NAME", "yours", "number that your reward functions log, mean over their calls"
        ),
        Metric(
            "margin", "reward", "reward model: mean of the chosen answer's reward minus the other's"
        ),
        Metric(
            "safe_probability", "share", "reward model of safety: mean probability of being safe"
        ),
        Metric(
            "reward_NAME",
            "reward",
            "mean of this reward before its weight (`reward_length_penalty`: the price of length)",
            "it stays constant: it teaches nothing",
        ),
    ),
    "loss": (
        Metric(
            "loss", "nats", "the loss that the update minimises; GRPO's is near 0 and says little"
        ),
        Metric("next_token_loss", "nats/token", "negative log-likelihood of the next token"),
        Metric(
            "held_out_loss",
            "nats/token",
            "the same on held-out text, every `eval_every` steps; distillation: mean over tasks",
            "it rises while the loss falls: overfitting; `checkpoints.best` keeps the best",
        ),
        Metric("held_out_loss/TASK", "nats/token", "held-out loss of one task"),
        Metric(
            "regressed/TASK",
            "0 or 1",
            "1 if the task's held-out loss is above its best one beyond doubt",
            "1",
        ),
        Metric("mtp_loss", "nats/token", "loss of multi-token prediction, mean over its modules"),
        Metric(
            "balance_loss",
            "number",
            "balance loss of the experts, mean over layers; 1 if all are used alike",
            "far above 1 (see `max_vio`)",
        ),
        Metric(
            "indexer_loss", "nats/token", "KL from the attention to the indexer, mean over layers"
        ),
        Metric(
            "entropy",
            "nats/token",
            "entropy of the policy's distribution at the learned tokens",
            "in reinforcement it falls to 0 early: the policy stops exploring",
        ),
        Metric("entropy_TEACHER", "nats/token", "the same on the samples for this teacher"),
        Metric(
            "kl",
            "nats/token",
            "estimate (k3) of the KL from the policy to the reference",
            "it jumps, or grows without end: lower the learning rate or raise `loss.kl_coef`",
        ),
        Metric(
            "kl_TEACHER",
            "nats/token",
            "KL from the student to this teacher, on the student's samples",
        ),
        Metric(
            "ratio_mean",
            "ratio",
            "mean of new over old probability of a token; exactly 1 in a step's first update",
            "far from 1",
        ),
        Metric(
            "clip_fraction",
            "share",
            "tokens whose gradient the clip ends or limits",
            "above 0.2 or so: updates are too large",
        ),
        Metric(
            "clip_fraction_low", "share", "tokens below the clip range, with a negative advantage"
        ),
        Metric(
            "clip_fraction_high", "share", "tokens above the clip range, or above `loss.ratio_cap`"
        ),
        Metric(
            "off_policy_fraction",
            "share",
            "tokens of completions that `loss.off_policy_limit` leaves out",
            "near 1: nothing is learned",
        ),
        Metric(
            "importance_weight_mean",
            "ratio",
            "mean of trainer's over sampler's probability, up to `loss.importance_cap`",
            "far from 1 (see `sampler_gap_mean`)",
        ),
        Metric("learned_tokens", "tokens", "tokens in the loss, mean over the step's updates"),
        Metric(
            "marked_advantages",
            "number",
            "checksum that shows whether advantages belong to their completions; the run compares it",
        ),
        Metric("soft", "nats/token", "distance to the teacher's distribution, before its weight"),
        Metric(
            "soft_bound",
            "nats/token",
            "with cached targets: `soft` over all tokens is higher by at most this",
            "not small next to `soft`: cache more tokens (`loss.top_k`)",
        ),
        Metric("hard", "nats/token", "loss on the text's own tokens, before its weight"),
        Metric(
            "hidden", "number", "distance to the teacher's hidden states, 0 to 4, before its weight"
        ),
        Metric(
            "relations",
            "nats/token",
            "distance to its last attention's relations, before the weight",
        ),
        Metric(
            "matched",
            "nats/token",
            "distance to a teacher of another tokenizer, at tokens that match",
        ),
        Metric(
            "sorted",
            "number",
            "distance to it, 0 to 2, of sorted probabilities at the other tokens",
        ),
        Metric(
            "on_policy", "nats/token", "distance to the teacher on text that the student samples"
        ),
        Metric("l2", "number", "half the sum of the squared weights"),
    ),
    "rollout": (
        Metric(
            "completion_length",
            "tokens",
            "mean length of completions, with the end token",
            "it grows with `truncated_share`, or falls to a few tokens",
        ),
        Metric("completion_length_max", "tokens", "longest completion of the step"),
        Metric("completion_length_effort_EFFORT", "tokens", "mean length with this effort"),
        Metric(
            "completion_length_TEACHER", "tokens", "mean length of the samples for this teacher"
        ),
        Metric(
            "truncated_share",
            "share",
            "completions that reached the limit of tokens without an end",
            "above 0.1 or so: raise `rollout.max_completion_length`; at 1, `degenerate.truncated` "
            "steps in a row end the run",
        ),
        Metric("truncated_share_TEACHER", "share", "the same of the samples for this teacher"),
        Metric("sampled_tokens", "tokens", "tokens that the step sampled"),
        Metric(
            "prefilled_positions", "tokens", "positions of the padded prompts; a group shares one"
        ),
        Metric(
            "sampling_rounds",
            "rounds",
            "rounds of questions until enough groups had unequal rewards",
        ),
        Metric(
            "equal_groups_used",
            "groups",
            "groups of equal rewards that fill the step after `max_sampling_rounds` rounds",
            "often above 0: the step's update is smaller by their share",
        ),
        Metric(
            "new_questions",
            "questions",
            "questions that are new in their epoch",
            "0 ends the run: the order of the questions does not advance",
        ),
        Metric(
            "left_out_tokens",
            "tokens",
            "sampled tokens that no update learns: of unscored completions and unused groups",
            "a large part of `sampled_tokens`",
        ),
        Metric(
            "stale_params",
            "0 or 1",
            "1 if other parameters sampled than those that learn",
            "1 ends the run (exit status 4)",
        ),
        Metric(
            "sampler_gap_mean",
            "nats",
            "mean difference between the trainer's and the sampler's log-probability of a token",
            "above 1e-4 in float32, or 0.05 in bfloat16, it ends the run (exit status 4)",
        ),
        Metric(
            "sampler_gap_share",
            "share",
            "tokens with a difference above 0.01 nats",
            "with experts, above 0.001 in float32 it ends the run",
        ),
        Metric(
            "sampler_gap_max",
            "nats",
            "largest difference of a token",
            "without experts, above 0.01 in float32 it ends the run",
        ),
        Metric("temperature", "number", "temperature of a distillation's softmax at this step"),
    ),
    "conversations": (
        Metric("turns", "turns", "turns of the model, mean over conversations"),
        Metric("tool_calls", "calls", "calls of tools or steps of an environment, mean"),
        Metric(
            "tool_errors",
            "calls",
            "calls that raised or could not be read, sum over conversations",
            "a large part of all calls",
        ),
        Metric("tool_seconds", "s", "time in your tools' code, sum over conversations"),
        Metric("truncated_turns", "conversations", "conversations that a limit ended", "many"),
        Metric(
            "rewritten_turns",
            "turns",
            "earlier turns that the chat template would encode otherwise than they were sampled",
            "above 0: the template changes history",
        ),
    ),
    "experts": (
        Metric(
            "max_vio",
            "ratio",
            "how far the busiest expert is above the mean load, mean over layers; 0 in balance",
            "it stays above 1 or so: raise `bias_update_speed` or the balance weight",
        ),
        Metric("max_vio/LAYER", "ratio", "the same of one layer"),
        Metric(
            "load_entropy/LAYER",
            "nats",
            "entropy of the experts' load; the log of their number in balance",
            "it falls: few experts do the work",
        ),
        Metric(
            "expert_overflows",
            "times",
            "since the last line: tokens found no room at their experts; the update is right, but slow",
            "it stays above 0: raise `model.expert_buffer`",
        ),
        Metric(
            "exchange_rounds",
            "rounds",
            "rounds in which decoding sends tokens to their experts, mean",
            "well above 1: devices get more than twice their share of tokens",
        ),
    ),
    "optimizer": (
        Metric("learning_rate", "number", "learning rate of the step's last update"),
        Metric(
            "plateau_scale", "ratio", "factor on the next learning rate, from the plateau schedule"
        ),
        Metric(
            "grad_norm",
            "number",
            "norm of the gradient before clipping",
            "it jumps by a factor of ten, or stays above the clip; 0: nothing is learned",
        ),
        Metric(
            "nonfinite",
            "updates",
            "updates since the last line that were skipped, because gradients were not finite",
            "above 0; `faults.nonfinite` in a row end the run (exit status 3)",
        ),
    ),
    "speed": (
        Metric("seconds", "s", "time of a step, mean since the last line"),
        Metric("tokens", "tokens", "tokens that the step learns"),
        Metric("row_tokens", "tokens", "tokens in the step's rows, also those that are only read"),
        Metric("tokens_per_second", "tokens/s", "`tokens` by time, since the last line"),
        Metric(
            "mfu",
            "share",
            "part of the devices' peak that the model's operations use, since the last line",
            "far below the plan's (`launch/plan.py`)",
        ),
        Metric("train_step_time", "s", "whole step of reinforcement, without logging and saving"),
        Metric("exposed_generation_time", "s", "sampling, which the update waits for"),
        Metric("weight_sync_time", "s", "bringing the parameters into the form for decoding"),
        Metric(
            "reward_seconds",
            "s",
            "scoring the completions",
            "a large part of `train_step_time`",
        ),
        Metric("teacher_seconds", "s", "loading the teachers and their forward passes"),
        Metric(
            "policy_training_time",
            "s",
            "log-probabilities of the old policy and the reference, then updates",
        ),
        Metric(
            "rollout_tokens_per_second", "tokens/s", "`sampled_tokens` by `exposed_generation_time`"
        ),
        Metric("update_tokens_per_second", "tokens/s", "learned tokens by `policy_training_time`"),
        Metric("update_mfu", "share", "`mfu` of `policy_training_time`", "far below the plan's"),
        Metric("valid_tokens_per_sec_per_gpu", "tokens/s", "learned tokens by time and device"),
    ),
    "memory": (
        Metric("host_peak_gib", "GiB", "peak memory of process 0 so far", "near the host's memory"),
        Metric(
            "device_ID_peak_gib",
            "GiB",
            "peak memory of a device so far",
            "near the device's memory",
        ),
        Metric("device_ID_in_use_gib", "GiB", "memory of a device in use now"),
        Metric("largest_KIND_gib", "GiB", "the largest of these, with more than 32 devices"),
        Metric("largest_KIND_device", "ID", "the device that has it"),
        Metric("smallest_KIND_gib", "GiB", "the smallest of these"),
        Metric("smallest_KIND_device", "ID", "the device that has it"),
    ),
}


@functools.cache
def column_of(name: str) -> tuple[str, Metric] | None:
    """Return the group and the column of a metric; None if no column fits."""
    columns = [(group, column) for group, metrics in GROUPS.items() for column in metrics]
    for group, column in columns:
        if column.name == name:
            return group, column
    for group, column in columns:
        if fnmatch.fnmatchcase(name, re.sub("[A-Z]+", "*", column.name)):
            return group, column
    return None
