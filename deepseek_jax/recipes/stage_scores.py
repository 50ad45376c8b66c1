"""What the policy of each stage of R1 is like, on held-out puzzles and requests of the bilingual world."""

import numpy as np

from deepseek_jax.evaluation.bootstrap import bootstrap_interval, share_interval
from deepseek_jax.evaluation.consensus import majority
from deepseek_jax.evaluation.held_out import completion_texts
from deepseek_jax.recipes.stage_samples import PUZZLE_REWARDS, REQUEST_REWARDS, sample_groups
from deepseek_jax.rewards.format import think_answer_format
from deepseek_jax.rewards.helpful import harmless, helpfulness
from deepseek_jax.rewards.language import language_consistency
from deepseek_jax.rewards.puzzle import final_expression, puzzle_answer
from deepseek_jax.rollout import generate

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

    settings: EvaluationSettings; k = samples. scores: name -> [mean, low, high] with 95% intervals,
    bootstrapped over prompts, each the mean of its k samples: of the puzzles pass@1, cons@k (is the answer
    most samples give right), language, format and length in tokens; of the requests helpful, and harmless
    where a secret is asked for. samples: the first shown_puzzles and shown_requests, with all their
    completions.
    """
    answered = {}
    for name, examples in (("puzzles", puzzles), ("requests", requests)):
        rollout = generate(
            policy,
            params,
            [example["prompt_ids"] for example in examples],
            n=settings.samples,
            max_completion_length=settings.max_completion_length,
            temperature=settings.temperature,
            eos_ids=(tokenizer.eos_id, *policy.eos_ids),
            seed=seed,
            slots=settings.slots,
        )
        texts = completion_texts(tokenizer, rollout)
        groups = [texts[i : i + settings.samples] for i in range(0, len(texts), settings.samples)]
        answered[name] = (groups, rollout.completion_mask.sum(1).reshape(len(groups), -1))
    groups, lengths = answered["puzzles"]
    scores = puzzle_scores(puzzles, groups) | {"length": bootstrap_interval(lengths.mean(1))}
    scores |= request_scores(requests, answered["requests"][0])
    shown = (
        ("puzzles", puzzles, settings.shown_puzzles, PUZZLE_REWARDS),
        ("requests", requests, settings.shown_requests, REQUEST_REWARDS),
    )
    samples = {
        name: sample_groups(examples[:n], *(part[:n] for part in answered[name]), weights)
        for name, examples, n, weights in shown
    }
    return {"scores": {name: list(scores[name]) for name in FORMS if name in scores}} | {
        "samples": samples
    }


def puzzle_scores(examples, groups):
    """name -> (mean, low, high). groups[i]: the completions of examples[i], as many of each."""
    right = _by_prompt(puzzle_answer, examples, groups)
    agreed = [
        puzzle_answer(f"<answer>{majority(map(final_expression, texts))}</answer>", example)
        for example, texts in zip(examples, groups, strict=True)
    ]
    return {
        "pass@1": share_interval(right),
        "cons@k": share_interval(agreed),
        "language": share_interval(_by_prompt(language_consistency, examples, groups)),
        "format": share_interval(_by_prompt(think_answer_format, examples, groups)),
    }


def request_scores(examples, groups):
    """As puzzle_scores, of requests; without harmless where fewer than two ask for a secret."""
    scores = {"helpful": share_interval(_by_prompt(helpfulness, examples, groups))}
    secret = [i for i, example in enumerate(examples) if example["kind"] == "secret"]
    if len(secret) > 1:
        kept = _by_prompt(harmless, [examples[i] for i in secret], [groups[i] for i in secret])
        scores["harmless"] = share_interval(kept)
    return scores


def _by_prompt(reward, examples, groups):
    """float64[p]: of each prompt, the mean reward of its completions."""
    pairs = zip(examples, groups, strict=True)
    return np.array(
        [np.mean([reward(text, example) for text in texts]) for example, texts in pairs]
    )
