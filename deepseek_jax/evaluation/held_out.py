"""Answers of a policy to held-out questions, and their scores."""

import numpy as np

from deepseek_jax.data.columns import shown_columns
from deepseek_jax.evaluation.accuracy import summarise
from deepseek_jax.parallel.processes import say
from deepseek_jax.rewards.scoring import Rewards
from deepseek_jax.rollout.completions import MeasuredLog
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import AnswerOptions

# Number of answers that a measurement keeps: its file has their texts
SAMPLES = 16


def evaluate_both(
    policy: Policy,
    examples: list[dict],
    rewards: Rewards | None,
    options: AnswerOptions,
    *,
    accuracy: str | None,
    seed: int = 0,
) -> dict[str, dict]:
    """Evaluate the policy twice, with sampling by options and greedily.

    Returns:
        {"sampled": result, "greedy": result}, both of evaluate.
    """
    greedy_options = AnswerOptions(
        temperature=0.0,
        max_completion_length=options.max_completion_length,
        slots=options.slots,
        speculative=options.speculative,
    )
    return {
        way: evaluate(policy, examples, rewards, way_options, accuracy=accuracy, seed=seed)
        for way, way_options in (("sampled", options), ("greedy", greedy_options))
    }


def scores_of_both(answers: dict[str, dict]) -> dict:
    """Return all scores of evaluate_both's result: {score: [mean, low, high]}.

    Scores of the sampled answers come first; the greedy ones have "greedy_" before their names.
    """
    greedy_scores = {f"greedy_{name}": score for name, score in answers["greedy"]["scores"].items()}
    return answers["sampled"]["scores"] | greedy_scores


def evaluate(
    policy: Policy,
    examples: list[dict],
    rewards: Rewards | None,
    options: AnswerOptions,
    *,
    accuracy: str | None,
    seed: int = 0,
) -> dict:
    """Answer each example once, score the answers, and return a dict that can be written as JSON.

    Args:
        examples: With their prompt_ids, and the fields that the rewards read.
        rewards: None for no scores.
        accuracy: Name of the reward that says whether an answer is right; None if no reward does.

    Returns:
        A dict with these keys. scores: name -> [mean, low, high] with 95% intervals, for accuracy,
        reward, each other reward, completion_length in tokens, and truncated. unscored: how many
        answers could not be scored. They count as 0 in the accuracy, and rewards leave them out; a
        reward with fewer than two numbers is left out. samples: the first SAMPLES prompts and
        completions, with their rewards (None if not scored), whether they are right (None if
        nothing says so), their lengths, the columns of their lines, and the messages of
        conversations.

    Raises:
        UnusableRewards: If no answer could be scored.
    """
    answers = policy.answer(examples, options, seed=seed, log=MeasuredLog())
    texts, rollout = answers.texts, answers.rollout
    values = {
        "completion_length": rollout.completion_mask.sum(1),
        "truncated": rollout.truncated,
    }
    num_unscored, scores = 0, None
    if rewards is not None:
        scores = answers.scored_by(rewards, examples)
        values = _scored(scores, accuracy) | values
        num_unscored = scores.errors
    return {
        "scores": summarise({name: _share_or_number(v) for name, v in values.items()}),
        "unscored": num_unscored,
        "samples": [
            {"prompt": example["question"], "completion": texts[row]}
            | _scores_of(row, scores, accuracy, shown_columns(example))
            | {
                "length": int(values["completion_length"][row]),
                "truncated": bool(rollout.truncated[row]),
            }
            | _messages_of(answers, row)
            for row, example in enumerate(examples[:SAMPLES])
        ],
    }


def _scores_of(row, scores, accuracy, columns):
    """Return a sample's reward, parts, right and columns; scores is None without rewards."""
    if scores is None:
        return {"reward": None, "parts": {}, "right": None, "columns": columns}
    rewards_by_name = {
        name: _number(rewards[row]) for name, rewards in scores.rewards_by_name.items()
    }
    return {
        "reward": _number(scores.total[row]),
        "parts": rewards_by_name,
        "right": None if accuracy is None else bool(scores.as_wrong(accuracy)[row] == 1),
        "unread": scores.unread is not None and bool(scores.unread[row]),
        "columns": columns | {name: column[row] for name, column in scores.columns.items()},
    }


def _messages_of(answers, row):
    if answers.conversations is None:
        return {}
    return {"messages": answers.conversations[row].messages}


def _number(value):
    """Return a number as JSON can hold it, None for an answer that was not scored."""
    return None if np.isnan(value) else float(value)


def _scored(scores, accuracy):
    """Return the accuracy and the rewards by name, one number an answer.

    Raises:
        UnusableRewards: If no answer could be scored.
    """
    scores.require_one()
    if scores.errors:
        say(
            f"{scores.errors} of {len(scores.total)} held-out answers could not be scored and count as "
            f"wrong: {''.join(scores.messages[:1])}"
        )
    if scores.unread is not None and scores.unread.any():
        say(
            f"{scores.unread.sum()} of {len(scores.total)} held-out answers state something that no rule "
            "reads; they count as wrong, and the page marks them as unread"
        )
    is_scored = ~np.isnan(scores.total)
    rewards_by_name = {"reward": scores.total[is_scored]}
    rewards_by_name |= {
        name: rewards[is_scored]
        for name, rewards in scores.rewards_by_name.items()
        if name != accuracy
    }
    # An interval needs two numbers
    rewards_by_name = {
        name: numbers for name, numbers in rewards_by_name.items() if len(numbers) > 1
    }
    return (
        rewards_by_name
        if accuracy is None
        else {"accuracy": scores.as_wrong(accuracy)} | rewards_by_name
    )


def _share_or_number(values):
    """Turn values that are all 0 or 1 into bools, as a share has another interval than a mean."""
    values = np.asarray(values)
    return values.astype(bool) if np.isin(values, (0, 1)).all() else values
