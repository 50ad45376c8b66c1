"""Rejection sampling (arXiv:2501.12948, appendix B.3.3): filters a policy's completions for training.

A completion passes if it is right, has the requested layout, reasons in the question's language alone, and is
not a repetition. If no rule can check that it is right, a judge compares it with a reference.
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

AS_GOOD = 0.5  # rewards.judge.Judge's score of the reference itself

# Reason for rejection -> the reward that is below 1; checked in this order
LAYOUT = {"badly laid out": "think_answer_format"}
# For examples that name their language
IN_ONE_LANGUAGE = {"in mixed languages": "language_consistency"}
# Reason for rejection -> a test of the judge's result, which is in the example's "judged"
JUDGED = {
    "without a verdict": lambda _, example: isinstance(example["judged"], ValueError),
    "judged worse than the reference": lambda _, example: example["judged"] < AS_GOOD,
}


def accepted(
    examples, completions, ids=None, *, rule: str, max_per_prompt: int, judge: Judge | None = None
):
    """Filter completions for training: -> (list of the indices that pass, Counter of fates).

    completions[i], of the tokens ids[i], answers examples[i]. The reward `rule` checks it; with a judge,
    the judge compares it with the example's answer instead. At most max_per_prompt completions of a
    question pass, the first ones. The Counter's keys are "kept", "wrong", those of LAYOUT, IN_ONE_LANGUAGE
    and JUDGED, "repeated" and "more than enough". All processes call it and get the same; each reads the
    completions that it scores, and process 0 reads all.
    """
    checks = ({"wrong": rule} if judge is None else {}) | LAYOUT
    if all("language" in example for example in examples):
        checks |= IN_ONE_LANGUAGE
    examples = _scored(examples, completions, ids, checks.values())
    rules = {why: _misses(reward) for why, reward in checks.items()}
    if judge is not None:
        examples = _judged(examples, completions, rules, judge)
        rules |= JUDGED
    sieve = Sieve(rules, max_per_prompt=max_per_prompt)

    def sift(_):
        pairs = enumerate(zip(completions, examples, strict=True))
        return [[index for index, pair in pairs if sieve.keeps(*pair)], sieve.fates]

    # A single share, so process 0 alone sifts: a repetition may be of a completion in any share
    ((kept, fates),) = in_shares(lambda rows: list(map(sift, rows)), 1)
    return kept, Counter(fates)


def _scored(examples, completions, ids, names):
    """The examples, each with its completion's rewards under "parts"."""
    with open_rewards(dict.fromkeys(names, 1.0)) as rewards:
        parts = rewards.score_together(examples, completions, ids).parts
    rows = zip(*parts.values(), strict=True)
    return [
        e | {"parts": dict(zip(parts, row, strict=True))}
        for e, row in zip(examples, rows, strict=True)
    ]


def _misses(reward):
    # Not < 1, which is False for the NaN of a reward that failed
    return lambda _, example: not example["parts"][reward] >= 1


def _judged(examples, completions, rules, judge):
    """The examples, each with the judge's score of its completion under "judged"; None without a score,
    because another rule already rejects the completion.
    """
    tidy = [
        i for i, e in enumerate(examples) if not any(misses(None, e) for misses in rules.values())
    ]
    said = judge.score([examples[i] for i in tidy], picked(completions, tidy))
    said = dict(zip(tidy, said, strict=True))
    return [example | {"judged": said.get(i)} for i, example in enumerate(examples)]


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
    """Answer the examples, which have prompt_ids, and write the accepted completions to path, a jsonl file.

    rule, judge: see accepted. Raises ValueError if no completion is accepted, except with a judge, which may
    reject them all.
    """
    n = settings.samples_per_prompt
    answers = policy.answer(examples, settings, n=n, seed=seed)
    texts, rollout = answers.texts, answers.rollout
    repeated = [example for example in examples for _ in range(n)]
    # Training on truncated completions would teach the model to stop in the middle
    ended = np.flatnonzero(~rollout.truncated)
    kept, fates = accepted(
        [repeated[i] for i in ended],
        picked(texts, ended),
        picked(rollout.tokens(), ended),
        rule=rule,
        max_per_prompt=settings.max_per_prompt,
        judge=judge,
    )
    fates["unfinished"] = len(texts) - len(ended)
    shown = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
    say(f"rejection sampling: {len(texts)} completions of {len(examples)} prompts: {shown}")
    if not kept and judge is None:
        raise ValueError(
            f"num_prompts={settings.num_prompts}: none of {len(texts)} sampled completions was accepted "
            f"({shown}); raise it, or train the sampled policy for longer"
        )
    barrier("what was accepted is written")
    if first_process():
        lines = [_line(repeated[row], texts[row]) for row in ended[kept].tolist()]
        # Whole: callers take a file that exists as complete
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    barrier("what was accepted is there")


def _line(example, text):
    asked = {name: example[name] for name in ("question", "messages") if name in example}
    return asked | {"solution": text}


def read_accepted(path: Path):
    """Read the examples that sample_accepted wrote: dicts of question, solution and, in a conversation of
    several turns, messages.
    """
    return [json.loads(line) for line in path.read_text().splitlines()]
