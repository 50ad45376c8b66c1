"""What the policy of each stage of R1 is like, on a world's held-out questions."""

import numpy as np

from deepseek_jax.evaluation.bootstrap import bootstrap_interval, share_interval
from deepseek_jax.evaluation.problems import Rules
from deepseek_jax.recipes.r1.samples import layout_rewards, sample_groups
from deepseek_jax.worlds.registry import open_rewards

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
LAYOUT = {
    "language_consistency": "language",
    "think_answer_format": "format",
}  # reward -> its score


def measure(policy, world, reasoning, general, settings, *, seed):
    """Answer examples, which carry their prompt_ids: -> dict that JSON can say.

    policy: rollout.Policy. reasoning, general: held-out examples of the world's questions of that name.
    settings: EvaluationSettings, whose samples are k. values: name -> a number of each prompt, the mean of
    its k samples: of reasoning pass@1, cons@k (is the answer most samples give right), language, format and
    length in tokens; of general ones the world's scores. scores: name -> [mean, low, high] of these, with
    95% intervals, bootstrapped over prompts. samples: the first shown_puzzles and shown_requests, with all
    their completions.
    """
    values, samples = {}, {}
    parts = (
        ("puzzles", world.reasoning, reasoning, settings.shown_puzzles),
        ("requests", world.general, general, settings.shown_requests),
    )
    for title, name, examples, num_shown in parts:
        if not examples:
            continue
        questions = world.questions[name]
        answers = policy.answer(examples, settings, n=settings.samples, seed=seed)
        groups, lengths = answers.groups(), answers.lengths()
        if name == world.reasoning:
            values |= reasoning_values(questions, examples, groups) | {"length": lengths.mean(1)}
        else:
            values |= general_values(questions, examples, groups)
        shown = examples[:num_shown], groups[:num_shown], lengths[:num_shown]
        samples[title] = sample_groups(questions, *shown)
    return {
        "k": settings.samples,
        "scores": {name: _interval(name, values[name]) for name in FORMS if name in values},
        "values": {name: values[name].tolist() for name in values},
        "samples": samples,
    }


def reasoning_values(questions, examples, groups):
    """name -> float64[p], one an example. groups[i]: the completions of examples[i], as many of each."""
    problems = [example | {"rule": questions.rule} for example in examples]
    with Rules(problems) as rules:
        judged = rules.judge(problems, groups)
    values = {"pass@1": np.array([np.mean(verdict["correct"]) for verdict in judged])}
    if judged[0]["agreed"] is not None:
        values["cons@k"] = np.array([float(verdict["agreed"]) for verdict in judged])
    for reward in layout_rewards(examples):
        values[LAYOUT[reward]] = _by_prompt(reward, examples, groups)
    return values


def general_values(questions, examples, groups):
    """As reasoning_values, of the world's own scores: each of the examples that it is about, if there are
    two.
    """
    values = {}
    for name, score in questions.scores.items():
        about = [i for i, example in enumerate(examples) if score.is_about(example)]
        if len(about) > 1:
            some = [examples[i] for i in about], [groups[i] for i in about]
            values[name] = _by_prompt(score.reward, *some)
    return values


def _interval(name, values):
    """[mean, low, high]; a length is no share."""
    return list((bootstrap_interval if name == "length" else share_interval)(values))


def _by_prompt(reward, examples, groups):
    """float64[p]: of each prompt, the mean reward of its completions."""
    size = len(groups[0])
    texts = [text for group in groups for text in group]
    with open_rewards({reward: 1.0}) as rewards:
        scores = rewards.score([example for example in examples for _ in range(size)], texts)
    return scores.parts[reward].astype(np.float64).reshape(-1, size).mean(1)
