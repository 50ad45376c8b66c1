"""Rejection sampling (arXiv:2501.12948, appendix B.3.3): of a policy's completions, those worth learning.

A completion is kept if it is right, laid out as asked and thought in the question's language alone, and if
it is not there already. Where no rule knows what is right, a judge compares it with a reference.
"""

import json
import os

import numpy as np

from deepseek_jax.evaluation.held_out import completion_texts
from deepseek_jax.parallel.processes import barrier, first_process, say
from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.language import language_consistency
from deepseek_jax.rollout import generate
from deepseek_jax.synthesis.sieve import Sieve
from deepseek_jax.worlds.bilingual.puzzle_rewards import puzzle_answer

AS_GOOD = 0.5  # what rewards.judge.Judge gives the reference itself

# Why a completion is rejected: the first of these rewards that is not a whole 1.
LAYOUT = {
    "badly laid out": lambda text, example: think_answer_format(text, example) < 1,
    "in mixed languages": lambda text, example: language_consistency(text, example) < 1,
}
RULES = {"wrong": lambda text, example: puzzle_answer(text, example) < 1} | LAYOUT
# The same with what a judge said of the completion in the example's "judged", see _judged
JUDGED = LAYOUT | {
    "without a verdict": lambda _, example: isinstance(example["judged"], ValueError),
    "judged worse than the reference": lambda _, example: example["judged"] < AS_GOOD,
}


def accepted(examples, completions, *, max_per_prompt, judge=None):
    """The completions worth learning: -> (list of (index, completion), Counter of what became of all).

    examples[i] was answered by completions[i]: a puzzle, which a rule checks, or with a judge, a
    rewards.judge.Judge, whatever has an answer to compare with. Of a question's, at most max_per_prompt are
    kept, the first ones. The Counter's keys are "kept", those of RULES or JUDGED, "repeated" and "more than
    enough".
    """
    if judge is not None:
        examples = _judged(examples, completions, judge)
    sieve = Sieve(RULES if judge is None else JUDGED, max_per_prompt=max_per_prompt)
    pairs = enumerate(zip(examples, completions, strict=True))
    kept = [(index, text) for index, (example, text) in pairs if sieve.keeps(text, example)]
    return kept, sieve.fates


def _judged(examples, completions, judge):
    """The examples with what the judge says of their completions, where these are laid out as asked."""
    pairs = enumerate(zip(completions, examples, strict=True))
    tidy = [i for i, pair in pairs if not any(rejects(*pair) for rejects in LAYOUT.values())]
    said = judge.score([examples[i] for i in tidy], [completions[i] for i in tidy])
    said = dict(zip(tidy, said, strict=True))
    return [example | {"judged": said.get(i)} for i, example in enumerate(examples)]


def sample_accepted(
    settings,
    policy,
    params,
    tokenizer,
    examples,
    path,
    *,
    seed,
    judge=None,
):
    """Answer the examples, which carry their prompt_ids, and write what is accepted to path, a jsonl file.

    settings: RejectionSettings. judge: as of accepted. Raises ValueError where
    nothing is accepted of what rules check; a judge may find nothing good enough.
    """
    n = settings.samples_per_prompt
    prompts = [example["prompt_ids"] for example in examples]
    rollout = generate(
        policy,
        params,
        prompts,
        n=n,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        eos_ids=(tokenizer.eos_id, *policy.eos_ids),
        seed=seed,
        slots=settings.slots,
    )
    texts = completion_texts(tokenizer, prompts, rollout)
    repeated = [example for example in examples for _ in range(n)]
    ended = np.flatnonzero(~rollout.truncated)  # what broke off teaches to break off
    kept, fates = accepted(
        [repeated[i] for i in ended],
        [texts[i] for i in ended],
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
    lines = [
        {"question": repeated[ended[index]]["question"], "solution": text} for index, text in kept
    ]
    barrier("what was accepted is written")
    if first_process():
        fresh = path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        os.replace(fresh, path)
    barrier("what was accepted is there")


def read_accepted(path):
    """The examples, dicts of question and solution, that sample_accepted wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
