"""What the policy of each stage of R1 is like, on held-out puzzles and requests of the bilingual world."""

import numpy as np

from deepseek_jax.evaluation.bootstrap import bootstrap_interval, share_interval
from deepseek_jax.evaluation.consensus import majority
from deepseek_jax.evaluation.held_out import completion_texts
from deepseek_jax.recipes.r1.samples import PUZZLE_REWARDS, REQUEST_REWARDS, sample_groups
from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.language import language_consistency
from deepseek_jax.rollout import generate
from deepseek_jax.worlds.bilingual.puzzle_rewards import final_expression, puzzle_answer
from deepseek_jax.worlds.bilingual.request_rewards import harmless, helpfulness

# Of a stage's scores, the format of their numbers
FORMS = {
    "pass@1": ".1%",
    "cons@k": ".1%",
    "language": ".1%",
    "format": ".1%",
    "length": ".1f",
    "helpful": ".1%",
    "harmless": ".1%",
}


def measure(policy, params, tokenizer, puzzles, requests, settings, *, seed):
    """Answer examples, which carry their prompt_ids: -> dict that JSON can say.

    settings: EvaluationSettings, whose samples are k, which is told too. values: name -> a number of each
    prompt, the mean of its k samples: of the puzzles pass@1, cons@k (is the answer most samples give right),
    language, format and length in tokens; of the requests helpful, and harmless where a secret is asked for.
    scores: name -> [mean, low, high] of these, with 95% intervals, bootstrapped over prompts. samples: the
    first shown_puzzles and shown_requests, with all their completions.
    """
    answered = {}
    for name, examples in (("puzzles", puzzles), ("requests", requests)):
        prompts = [example["prompt_ids"] for example in examples]
        rollout = generate(
            policy,
            params,
            prompts,
            n=settings.samples,
            max_completion_length=settings.max_completion_length,
            temperature=settings.temperature,
            eos_ids=(tokenizer.eos_id, *policy.eos_ids),
            seed=seed,
            slots=settings.slots,
        )
        texts = completion_texts(tokenizer, prompts, rollout)
        groups = [texts[i : i + settings.samples] for i in range(0, len(texts), settings.samples)]
        answered[name] = (groups, rollout.completion_mask.sum(1).reshape(len(groups), -1))
    groups, lengths = answered["puzzles"]
    values = puzzle_values(puzzles, groups) | {"length": lengths.mean(1)}
    values |= request_values(requests, answered["requests"][0])
    shown = (
        ("puzzles", puzzles, settings.shown_puzzles, PUZZLE_REWARDS),
        ("requests", requests, settings.shown_requests, REQUEST_REWARDS),
    )
    samples = {
        name: sample_groups(examples[:n], *(part[:n] for part in answered[name]), weights)
        for name, examples, n, weights in shown
    }
    return {
        "k": settings.samples,
        "scores": {name: _interval(name, values[name]) for name in FORMS if name in values},
        "values": {name: values[name].tolist() for name in values},
        "samples": samples,
    }


def puzzle_values(examples, groups):
    """name -> float64[p], one a puzzle. groups[i]: the completions of examples[i], as many of each."""
    right = _by_prompt(puzzle_answer, examples, groups)
    agreed = [
        puzzle_answer(f"<answer>{majority(map(final_expression, texts))}</answer>", example)
        for example, texts in zip(examples, groups, strict=True)
    ]
    return {
        "pass@1": right,
        "cons@k": np.array(agreed),
        "language": _by_prompt(language_consistency, examples, groups),
        "format": _by_prompt(think_answer_format, examples, groups),
    }


def request_values(examples, groups):
    """As puzzle_values, of requests; harmless of those that ask for a secret, if there are two or more."""
    values = {"helpful": _by_prompt(helpfulness, examples, groups)}
    secret = [i for i, example in enumerate(examples) if example["kind"] == "secret"]
    if len(secret) > 1:
        some = [examples[i] for i in secret], [groups[i] for i in secret]
        values["harmless"] = _by_prompt(harmless, *some)
    return values


def _interval(name, values):
    """[mean, low, high]; a length is no share."""
    return list((bootstrap_interval if name == "length" else share_interval)(values))


def _by_prompt(reward, examples, groups):
    """float64[p]: of each prompt, the mean reward of its completions."""
    pairs = zip(examples, groups, strict=True)
    return np.array(
        [np.mean([reward(text, example) for text in texts]) for example, texts in pairs]
    )
