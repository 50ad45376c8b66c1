"""Metrics of a step of GRPO: its groups, its times and its counts."""

import contextlib
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from deepseek_jax.costs.chips import peak_of
from deepseek_jax.costs.program import GENERATION, STEP, TOKEN_RATE, TRAINING
from deepseek_jax.data.columns import shown_columns
from deepseek_jax.parallel.processes import in_shares
from deepseek_jax.reinforce.degenerate import all_equal
from deepseek_jax.rollout.tool_use import Conversation

# The counts of conversations that are logged as means; the others are sums
MEANS = ("turns", "tool_calls")


class StepRecord:
    """Times and counts of a step that samples and learns, and the metrics that follow from them.

    The step begins when the record is built. `counts` has numbers by metric, summed over the step's
    sampling rounds:

    - weight_sync_time: seconds until the parameters had the form for decoding;
    - exposed_generation_time: seconds of the rest of the rollout. The update waits for all of it;
    - sampled_tokens;
    - prefilled_positions: positions of the engine's padded prompts, one prompt for a whole group;
    - exchanges and exchange_rounds: see rollout.completions.RolloutLog;
    - reward_seconds: seconds for the rewards;
    - reward_errors;
    - unread: completions that score 0 because a rule could not read what they state;
    - new_questions: questions that are new in their epoch;
    - left_out_tokens: sampled tokens that no update learns.

    Attributes:
        asked: the number of all questions.
        answered: the tokens of all answers.
        tokens: the tokens that the step learns in each of its epochs.
        flops: the FLOPs that the step's updates need; None where they are not counted.
        advantages: float32[b], of all completions that are learned; [] before they are known.
        marks: float32[b], of the same completions, see batch.RowLengths.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.counts: Counter[str] = Counter()
        self.logged: dict[str, list[float]] = {}
        self.tokens: float = 0.0
        self.epochs = 1
        self.flops: float | None = None
        self.advantages = self.marks = np.zeros(0, np.float32)
        self.asked = self.answered = 0
        self.began = self.training_began = time.perf_counter()

    def add(self, counts: Mapping):
        """Add counts to the step's counts."""
        self.counts.update(counts)

    def log(self, metrics: Mapping[str, float]):
        """Add numbers that a user's rewards logged.

        The step's metrics have their mean over its sampling rounds.
        """
        for name, value in metrics.items():
            self.logged.setdefault(f"logged/{name}", []).append(value)

    @contextlib.contextmanager
    def timed(self, name: str):
        """Add the seconds within this context to the count of this name."""
        began = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - began})

    def begin_training(self):
        """Note that the samples of the step are ready to learn from."""
        self.training_began = time.perf_counter()

    def of_samples(self) -> dict[str, float]:
        """Return the metrics that are known before the updates.

        These are the counts, tokens, rollout_tokens_per_second, and what the user's own rewards
        logged. exchange_rounds is the mean over the exchanges of a layer while decoding; it is
        missing where tokens go to their experts in another way.
        """
        rate = self.counts["sampled_tokens"] / self.counts[GENERATION]
        numbers = {**self.counts, "tokens": self.tokens, "rollout_tokens_per_second": rate}
        numbers |= {name: np.mean(values) for name, values in self.logged.items()}
        exchanges, rounds = numbers.pop("exchanges", 0), numbers.pop("exchange_rounds", 0)
        if exchanges:
            numbers["exchange_rounds"] = rounds / exchanges
        return {name: float(number) for name, number in numbers.items()}

    def of_updates(self) -> dict[str, float]:
        """Return the metrics of the step's updates, which have ended.

        - policy_training_time: seconds from begin_training to now, for the log-probabilities of the
          old policy and the reference, and for the updates.
        - train_step_time: seconds of the whole step: weight_sync_time, exposed_generation_time,
          reward_seconds and policy_training_time, and little else.
        - valid_tokens_per_sec_per_gpu: the learned tokens, divided by the seconds of the whole step
          and by the number of devices.
        - update_tokens_per_second, where FLOPs are counted: tokens by policy_training_time; a token
          counts once per epoch.
        - update_mfu, where FLOPs are counted and on devices with a peak that costs.chips knows: the
          share of that peak in policy_training_time.
        """
        now = time.perf_counter()
        training_seconds, step_seconds = now - self.training_began, now - self.began
        device_rate = self.tokens / step_seconds / self.mesh.size
        metrics = {TRAINING: training_seconds, STEP: step_seconds, TOKEN_RATE: device_rate}
        if self.flops is not None:
            metrics["update_tokens_per_second"] = self.epochs * self.tokens / training_seconds
            if (peak := peak_of(self.mesh.devices.ravel())) is not None:
                metrics["update_mfu"] = self.flops / (training_seconds * peak)
        return metrics


def describe(groups: list[dict], accuracy: str) -> dict[str, float]:
    """Return the metrics of a step's groups.

    Means skip rewards that failed (NaN). Groups that were asked with an effort also have metrics by
    effort.

    Args:
        groups: from groups.make_groups.
        accuracy: the reward that decides whether an answer is right.
    """
    rewards = np.stack([group["rewards"] for group in groups])
    lengths = np.concatenate([group["rollout"].lengths for group in groups])
    metrics = {
        "reward": np.nanmean(rewards),
        "reward_group_std": np.nanmean([_std(row) for row in rewards]),
        "all_equal_share": np.mean([all_equal(row) for row in rewards]),
        "completion_length": lengths.mean(),
        "completion_length_max": lengths.max(),
        "truncated_share": np.mean([group["rollout"].truncated for group in groups]),
    }
    for name in groups[0]["parts"]:
        part_rewards = np.array([group["parts"][name] for group in groups])
        # All NaN: no question of this step has this reward (scenarios)
        if not np.isnan(part_rewards).all():
            metrics[f"reward_{name}"] = np.nanmean(part_rewards)
    metrics["accuracy"] = metrics.get(f"reward_{accuracy}", np.nan)
    if "conversations" in groups[0]:
        metrics |= of_conversations([c for group in groups for c in group["conversations"]])
    for effort in sorted({group["effort"] for group in groups} - {None}):
        effort_groups = [group for group in groups if group["effort"] == effort]
        lengths = np.concatenate([group["rollout"].lengths for group in effort_groups])
        metrics[f"completion_length_effort_{effort}"] = lengths.mean()
        effort_accuracies = np.array([group["parts"][accuracy] for group in effort_groups])
        # All NaN: only general questions were asked with it
        if not np.isnan(effort_accuracies).all():
            metrics[f"accuracy_effort_{effort}"] = np.nanmean(effort_accuracies)
    return {name: float(value) for name, value in metrics.items()}


def of_conversations(conversations: list[Conversation]) -> dict[str, float]:
    """Return the metrics of conversations: means for MEANS, sums for the other counts.

    Args:
        conversations: their counts() name the metrics.
    """
    counts = [conversation.counts() for conversation in conversations]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    return totals | {name: totals[name] / len(counts) for name in MEANS}


def draw_groups(groups: int, count: int, seed: int, step: int) -> list[int]:
    """Draw the numbers of the groups that a step keeps, in order; all groups are equally likely.

    The first groups of every step would be a biased sample: general questions end a batch, and with
    dynamic sampling groups that fill it. The draw depends only on the arguments. So it changes
    nothing of the training, and is the same on all processes and after a resumption.

    Args:
        groups: the number of groups of the step.
        count: how many to keep; all of them if there are fewer.
        seed: the run's seed.
    """
    generator = np.random.default_rng([seed, step])
    return sorted(generator.choice(groups, min(count, groups), replace=False).tolist())


def kept_groups(groups: list[dict], advantages: ArrayLike, numbers: list[int]) -> list[dict]:
    """Return whole groups of a step in the form that MetricsWriter.write takes.

    Every process calls this.

    Args:
        groups: from groups.make_groups.
        advantages: float32[b], for all completions of the groups.
        numbers: the numbers of the groups to keep.
    """
    kept, group_size, advantages = [], len(groups[0]["rewards"]), np.asarray(advantages)
    spoken_texts = iter(_said([groups[number] for number in numbers]))
    for number in numbers:
        group = groups[number]
        completions = [
            next(spoken_texts)
            | {
                "reward": group["rewards"][row],
                "parts": {name: part[row] for name, part in group["parts"].items()},
                "columns": {name: column[row] for name, column in group["columns"].items()},
                "advantage": advantages[number * group_size + row],
                "length": group["rollout"].lengths[row],
                "truncated": group["rollout"].truncated[row],
                "unread": group["unread"][row],
            }
            for row in range(group_size)
        ]
        example, columns = group["example"], shown_columns(group["example"])
        question_fields = {"prompt": example["question"], "answer": example.get("answer")}
        question_fields["columns"] = {
            name: value for name, value in columns.items() if name != "answer"
        }
        kept.append(question_fields | {"completions": completions})
    return kept


def _said(groups):
    """Return the text of each completion of groups, and a conversation's messages.

    Every process calls this, and each reads the completions that it has.
    """
    places = [(group, row) for group in groups for row in range(len(group["rewards"]))]

    def read_texts(numbers):
        return [_said_in(*places[number]) for number in numbers]

    has_owners = places and groups[0]["rollout"].owned is not None
    owners = [group["rollout"].owned.owners[row] for group, row in places] if has_owners else None
    return in_shares(read_texts, len(places), owners)


def _said_in(group, row):
    text_fields = {"text": group["texts"][row]}
    if "conversations" not in group:
        return text_fields
    return text_fields | {"messages": group["conversations"][row].messages}


def _std(rewards):
    scored_rewards = rewards[~np.isnan(rewards)]
    # The unbiased standard deviation, as in losses.group_advantages
    return scored_rewards.std(ddof=1) if len(scored_rewards) > 1 else np.nan
