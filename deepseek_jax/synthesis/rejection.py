"""Rejection sampling (arXiv:2501.12948, appendix B.3.3) of a policy's completions for training.

A completion passes if it is right, has the requested layout, reasons only in the question's
language, and is not a repetition. If no rule can check that it is right, a judge compares it with a
reference.
"""

import json
from collections import Counter

import numpy as np
from etils.epath import Path

from deepseek_jax.data.texts import picked
from deepseek_jax.files import write_whole
from deepseek_jax.parallel.processes import barrier, first_process, in_shares, say
from deepseek_jax.rewards.judge import Judge
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.synthesis.settings import RejectionSettings
from deepseek_jax.synthesis.sieve import Sieve
from deepseek_jax.worlds.registry import open_rewards

# The score that rewards.judge.Judge gives the reference itself
AS_GOOD = 0.5

# Reason for rejection -> the reward that must be 1; checked after the rule, in the order of these tables
LAYOUT = {"badly laid out": "think_answer_format"}
# For examples that name their language
IN_ONE_LANGUAGE = {"in mixed languages": "language_consistency"}
# Reason for rejection -> a test of the judge's result, which is in example["judged"]
JUDGED = {
    "without a verdict": lambda _, example: isinstance(example["judged"], ValueError),
    "judged worse than the reference": lambda _, example: example["judged"] < AS_GOOD,
}


def accepted(
    examples, completions, ids=None, *, rule: str, max_per_prompt: int, judge: Judge | None = None
):
    """Filter completions for training; return (indices that pass, Counter of fates).

    All processes call it and get the same result. Each reads the completions that it scores, and
    process 0 reads all.

    Args:
        examples: The example that each completion answers.
        completions: Texts, as many as examples.
        ids: The token ids of each completion, or None.
        rule: The name of the reward that checks whether a completion is right.
        max_per_prompt: Most completions of a question that pass; the first ones pass.
        judge: Compares a completion with the example's answer, in place of `rule`. None to use
            `rule`.

    Returns:
        A list of int, and a Counter with the keys "kept", "wrong", the keys of LAYOUT,
        IN_ONE_LANGUAGE and JUDGED, "repeated" and "more than enough".
    """
    checks = ({"wrong": rule} if judge is None else {}) | LAYOUT
    if all("language" in example for example in examples):
        checks |= IN_ONE_LANGUAGE
    examples = _scored(examples, completions, ids, checks.values())
    rules = {reason: _misses(reward) for reason, reward in checks.items()}
    if judge is not None:
        examples = _judged(examples, completions, rules, judge)
        rules |= JUDGED
    sieve = Sieve(rules, max_per_prompt=max_per_prompt)

    def sift(_):
        numbered_pairs = enumerate(zip(completions, examples, strict=True))
        return [[index for index, pair in numbered_pairs if sieve.keeps(*pair)], sieve.fates]

    # In one share, so that only process 0 sifts: it must see all completions to detect repetitions
    ((accepted_indices, fates),) = in_shares(lambda rows: list(map(sift, rows)), 1)
    return accepted_indices, Counter(fates)


def _scored(examples, completions, ids, names):
    """Return the examples, each with the rewards of its completion under "parts"."""
    with open_rewards(dict.fromkeys(names, 1.0)) as rewards:
        rewards_by_name = rewards.score_together(examples, completions, ids).rewards_by_name
    rows = zip(*rewards_by_name.values(), strict=True)
    return [
        e | {"parts": dict(zip(rewards_by_name, row, strict=True))}
        for e, row in zip(examples, rows, strict=True)
    ]


def _misses(reward):
    # `< 1` would be False for NaN, the value of a reward that failed
    return lambda _, example: not example["parts"][reward] >= 1


def _judged(examples, completions, rules, judge):
    """Return the examples, each with the judge's score of its completion under "judged".

    It is None if another rule already rejects the completion.
    """
    tidy_indices = [
        i for i, e in enumerate(examples) if not any(misses(None, e) for misses in rules.values())
    ]
    scores = judge.score([examples[i] for i in tidy_indices], picked(completions, tidy_indices))
    score_by_index = dict(zip(tidy_indices, scores, strict=True))
    return [example | {"judged": score_by_index.get(i)} for i, example in enumerate(examples)]


def sample_accepted(
    settings: RejectionSettings,
    policy: Policy,
    examples: list[dict],
    path: Path,
    *,
    rule: str,
    seed: int,
    judge: Judge | None = None,
) -> None:
    """Answer the examples and write the accepted completions to `path`, a jsonl file.

    Args:
        settings: How many completions are sampled and accepted.
        policy: The policy that answers.
        examples: Examples with prompt_ids.
        path: The file to write.
        rule: See `accepted`.
        seed: Seed of the sampling.
        judge: See `accepted`.

    Raises:
        ValueError: No completion is accepted and there is no judge. A judge may reject them all.
    """
    n = settings.samples_per_prompt
    answers = policy.answer(examples, settings, n=n, seed=seed)
    texts, rollout = answers.texts, answers.rollout
    repeated_examples = [example for example in examples for _ in range(n)]
    # Training on truncated completions would teach the model to stop in the middle
    ended_rows = np.flatnonzero(~rollout.truncated)
    accepted_indices, fates = accepted(
        [repeated_examples[i] for i in ended_rows],
        picked(texts, ended_rows),
        picked(rollout.tokens(), ended_rows),
        rule=rule,
        max_per_prompt=settings.max_per_prompt,
        judge=judge,
    )
    fates["unfinished"] = len(texts) - len(ended_rows)
    fates_text = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
    say(f"rejection sampling: {len(texts)} completions of {len(examples)} prompts: {fates_text}")
    if not accepted_indices and judge is None:
        raise ValueError(
            f"num_prompts={settings.num_prompts}: none of {len(texts)} sampled completions was accepted "
            f"({fates_text}); raise it, or train the sampled policy for longer"
        )
    barrier("what was accepted is written")
    if first_process():
        lines = [
            _line(repeated_examples[row], texts[row])
            for row in ended_rows[accepted_indices].tolist()
        ]
        # Written whole, because callers take a file that exists as complete
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    barrier("what was accepted is there")


def _line(example, text):
    fields = {name: example[name] for name in ("question", "messages") if name in example}
    return fields | {"solution": text}


def read_accepted(path: Path) -> list[dict]:
    """Read the examples that sample_accepted wrote.

    They are dicts of question, solution and, if the prompt is a chat, messages.
    """
    return [json.loads(line) for line in path.read_text().splitlines()]
