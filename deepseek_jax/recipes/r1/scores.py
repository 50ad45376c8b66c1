"""Measure a policy of R1 on a world's held-out questions."""

import dataclasses

import numpy as np
from rich.text import Text
from typing_extensions import override

from deepseek_jax.data.texts import joined
from deepseek_jax.errors import shortened
from deepseek_jax.evaluation.accuracy import LENGTHS, length_interval, score_interval
from deepseek_jax.evaluation.problems import Rules
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.kinds.accept import Rule
from deepseek_jax.recipes.kinds.measure import Measure, scored_answer_programs
from deepseek_jax.recipes.r1.samples import layout_rewards, sample_groups
from deepseek_jax.recipes.r1.settings import EvaluationSettings
from deepseek_jax.recipes.r1.sources import HeldOutQuestions
from deepseek_jax.recipes.stage import AnswerPlan
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import VERDICT_STYLES
from deepseek_jax.rollout.completions import MeasuredLog
from deepseek_jax.rollout.policy import Policy, check_answers
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.worlds.registry import open_rewards
from deepseek_jax.worlds.world import Questions, World

# Score -> the format of its numbers
FORMS = {
    "pass@1": ".1%",
    "cons@k": ".1%",
    "language": ".1%",
    "format": ".1%",
    "length": ".1f",
    "helpful": ".1%",
    "harmless": ".1%",
}
# Samples of each kind to print
SHOWN = 2
# report.html has all samples of this many questions of each kind
ON_PAGE = {"puzzles": 12, "requests": 8}
# Reward -> the name of its score
LAYOUT = {
    "language_consistency": "language",
    "think_answer_format": "format",
}


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureWorld(Measure):
    """A measurement of the policy that it begins from: its answers to held-out questions.

    See `measure` for the result.
    """

    settings: EvaluationSettings
    questions: HeldOutQuestions
    rule: Rule

    @override
    def check(self, config, mesh):
        check_answers(config, self.settings)

    @override
    def check_data(self, context):
        super().check_data(context)
        # Raises if answers exceed the model's positions
        self._fitting_questions(context)

    def _fitting_questions(self, context):
        limit = Limit(self.settings.max_completion_length)
        return [
            context.policy.with_fitting_prompts(held_out, limit, "held-out")
            for held_out in self.questions.read(context)
        ]

    @override
    def programs(self, config, mesh, others):
        num_questions = max(self.settings.num_puzzles, self.settings.num_requests)
        answering = AnswerPlan(self.settings, num_questions, self.settings.samples)
        return scored_answer_programs(self, config, mesh, answering)

    @override
    def run(self, context):
        reasoning, general = self._fitting_questions(context)
        with self.waiting(len(reasoning) + len(general)):
            policy, world = context.load_start(), self.questions.world_data.world
            measurement = measure(policy, world, reasoning, general, self.settings, seed=self.seed)
        say_scores(self.start, measurement)
        return measurement

    @override
    def scores(self, contents):
        return contents["scores"]


def measure(
    policy: Policy, world: World, reasoning, general, settings: EvaluationSettings, *, seed: int
) -> dict:
    """Let a policy answer held-out examples k = settings.samples times each, and score the answers.

    Args:
        policy: The policy, with parameters.
        world: The World of the examples.
        reasoning, general: The examples of each kind, with their prompt_ids.
        settings: How answers are sampled.
        seed: The seed of the sampling.

    Returns:
        A dict for JSON with k and these keys. values: score -> one number a prompt, the mean of its
        k samples. Reasoning questions have pass@1, cons@k (whether the most frequent answer is
        right), language, format, and length in tokens; general questions have the world's scores.
        scores: score -> [mean, low, high] of the values, with 95% intervals over prompts. samples:
        the first ON_PAGE prompts with all their completions.
    """
    values: dict[str, np.ndarray] = {}
    samples: dict[str, list[dict]] = {}
    kinds = ("puzzles", world.reasoning, reasoning), ("requests", world.general, general)
    for title, name, examples in kinds:
        if name is None or not examples:
            continue
        questions = world.questions[name]
        answers = policy.answer(
            examples, settings, n=settings.samples, seed=seed, log=MeasuredLog()
        )
        groups, lengths = answers.groups(), answers.lengths()
        if name == world.reasoning:
            ids = answers.rollout.tokens()
            values |= reasoning_values(questions, examples, groups, ids)
            values["length"] = lengths.mean(1)
        else:
            values |= general_values(questions, examples, groups)
        shown = slice(ON_PAGE[title])
        samples[title] = sample_groups(
            questions, examples[shown], groups[shown], lengths[shown], answers.rollout.tokens()
        )
    return {
        "k": settings.samples,
        "scores": {name: _interval(name, values[name]) for name in FORMS if name in values},
        "values": {name: values[name].tolist() for name in values},
        "samples": samples,
    }


def say_scores(name: str, contents: dict):
    """Print the scores of `measure` and a few samples.

    Args:
        name: The name of the stage.
        contents: The result of `measure`.
    """
    for score, interval in contents["scores"].items():
        mean, low, high = (format(value, FORMS[score]) for value in interval)
        say(f"  {name} {score}: {mean} ({low} to {high})")
    console = make_console()
    for kind, groups in contents["samples"].items():
        for group in groups[:SHOWN]:
            completion = group["completions"][0]
            # A rule says whether a puzzle's answer is right; requests have no rule
            style = VERDICT_STYLES[completion["right"] if kind == "puzzles" else None]
            answer = Text(shortened(repr(completion["text"])), style)
            prompt = shortened(repr(group["prompt"]))
            console.print(Text.assemble(f"  {prompt} -> ", answer), soft_wrap=True)


def reasoning_values(questions: Questions, examples, groups, ids) -> dict[str, np.ndarray]:
    """Return {score: float64[p]} of answers to reasoning questions, one number an example.

    Args:
        questions: The world's reasoning questions.
        examples: The examples.
        groups: The completions of each example, k for each.
        ids: The tokens of all completions.
    """
    problems = [{"example": example, "rule": questions.rule} for example in examples]
    with Rules(problems) as rules:
        verdicts = rules.judge(problems, groups, ids)
    values = {"pass@1": np.array([np.mean(verdict["correct"]) for verdict in verdicts])}
    # A rule that reads no answers has no majority
    if verdicts[0]["agreed"] is not None:
        values["cons@k"] = np.array([float(verdict["agreed"]) for verdict in verdicts])
    for reward in layout_rewards(examples):
        values[LAYOUT[reward]] = _by_prompt(reward, examples, groups)
    return values


def general_values(questions: Questions, examples, groups) -> dict[str, np.ndarray]:
    """Return {score: float64[p]} of the world's own scores of answers to general questions.

    Each score is over the examples that it is about. A score about fewer than two of them is left
    out: one number has no interval.

    Args:
        questions: The world's general questions.
        examples: The examples.
        groups: The completions of each example.
    """
    values = {}
    for name, score in questions.scores.items():
        indices = [i for i, example in enumerate(examples) if score.is_about(example)]
        if len(indices) > 1:
            subset = [examples[i] for i in indices], [groups[i] for i in indices]
            values[name] = _by_prompt(score.reward, *subset)
    return values


def _interval(name, values):
    """Return [mean, low, high] of a score's values; a length is no share, even if it is 0 or 1."""
    return list((length_interval if name in LENGTHS else score_interval)(values))


def _by_prompt(reward, examples, groups):
    """Return the mean reward of each prompt's completions, float64[p]."""
    group_size = len(groups[0])
    with open_rewards({reward: 1.0}) as rewards:
        scores = rewards.score_together(
            [example for example in examples for _ in range(group_size)], joined(groups)
        )
    if warning := scores.without_verdict(reward):
        say(warning)
    return scores.as_wrong(reward).astype(np.float64).reshape(-1, group_size).mean(1)
