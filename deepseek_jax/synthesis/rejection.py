"""Rejection sampling (arXiv:2501.12948, appendix B.3.3): of a policy's completions, those worth learning.

A completion is kept if it is right, laid out as asked and thought in the question's language alone, and if
it is not there already. Where no rule knows what is right, a judge compares it with a reference.
"""

import json
import os

import numpy as np

from deepseek_jax.parallel.processes import barrier, first_process, say
from deepseek_jax.synthesis.sieve import Sieve
from deepseek_jax.worlds.registry import open_rewards

AS_GOOD = 0.5  # what rewards.judge.Judge gives the reference itself

# Why a completion is rejected: the reward that is not a whole 1, in the order in which they are asked
LAYOUT = {"badly laid out": "think_answer_format"}
IN_ONE_LANGUAGE = {
    "in mixed languages": "language_consistency"
}  # of examples that say their language
# The same with what a judge says of the completion, in the example's "judged"
JUDGED = {
    "without a verdict": lambda _, example: isinstance(example["judged"], ValueError),
    "judged worse than the reference": lambda _, example: example["judged"] < AS_GOOD,
}


def accepted(examples, completions, *, rule, max_per_prompt, judge=None):
    """The completions worth learning: -> (list of (index, completion), Counter of what became of all).

    examples[i] was answered by completions[i], which the reward `rule` checks; or with a judge, a
    rewards.judge.Judge, whatever has an answer to compare with. Of a question's, at most max_per_prompt are
    kept, the first ones. The Counter's keys are "kept", "wrong", those of LAYOUT, IN_ONE_LANGUAGE and JUDGED,
    "repeated" and "more than enough".
    """
    checks = ({"wrong": rule} if judge is None else {}) | LAYOUT
    if all("language" in example for example in examples):
        checks |= IN_ONE_LANGUAGE
    examples = _scored(examples, completions, checks.values())
    rules = {why: _misses(reward) for why, reward in checks.items()}
    if judge is not None:
        examples = _judged(examples, completions, rules, judge)
        rules |= JUDGED
    sieve = Sieve(rules, max_per_prompt=max_per_prompt)
    pairs = enumerate(zip(examples, completions, strict=True))
    kept = [(index, text) for index, (example, text) in pairs if sieve.keeps(text, example)]
    return kept, sieve.fates


def _scored(examples, completions, names):
    """The examples with the parts of their completions' rewards."""
    with open_rewards(dict.fromkeys(names, 1.0)) as rewards:
        parts = rewards.score(examples, completions).parts
    rows = zip(*parts.values(), strict=True)
    return [
        e | {"parts": dict(zip(parts, row, strict=True))}
        for e, row in zip(examples, rows, strict=True)
    ]


def _misses(reward):
    return lambda _, example: not example["parts"][reward] >= 1


def _judged(examples, completions, rules, judge):
    """The examples with what the judge says of their completions, where these are laid out as asked."""
    tidy = [
        i for i, e in enumerate(examples) if not any(misses(None, e) for misses in rules.values())
    ]
    said = judge.score([examples[i] for i in tidy], [completions[i] for i in tidy])
    said = dict(zip(tidy, said, strict=True))
    return [example | {"judged": said.get(i)} for i, example in enumerate(examples)]


def sample_accepted(settings, policy, examples, path, *, rule, seed, judge=None):
    """Answer the examples, which carry their prompt_ids, and write what is accepted to path, a jsonl file.

    settings: RejectionSettings. policy: rollout.Policy. rule, judge: as of accepted. Raises ValueError
    where nothing is accepted of what rules check; a judge may find nothing good enough.
    """
    n = settings.samples_per_prompt
    texts, rollout, _ = policy.answer(examples, settings, n=n, seed=seed)
    repeated = [example for example in examples for _ in range(n)]
    ended = np.flatnonzero(~rollout.truncated)  # what broke off teaches to break off
    kept, fates = accepted(
        [repeated[i] for i in ended],
        [texts[i] for i in ended],
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
            f"({shown}); raise it, or train the policy that is sampled for longer"
        )
    lines = [_line(repeated[ended[index]], text) for index, text in kept]
    barrier("what was accepted is written")
    if first_process():
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        os.replace(fresh, path)
    barrier("what was accepted is there")


def _line(example, text):
    asked = {name: example[name] for name in ("question", "messages") if name in example}
    return asked | {"solution": text}


def read_accepted(path):
    """The examples, dicts of question, solution and, after other turns, messages, that sample_accepted
    wrote.
    """
    return [json.loads(line) for line in path.read_text().splitlines()]
