"""The scores of a policy of R1 on a world's held-out questions."""

import dataclasses

import numpy as np

from deepseek_jax.data.texts import joined
from deepseek_jax.evaluation.accuracy import LENGTHS, length_interval, score_interval
from deepseek_jax.evaluation.problems import Rules
from deepseek_jax.parallel.processes import say
from deepseek_jax.recipes.kinds.accept import Rule
from deepseek_jax.recipes.kinds.measure import Measure, scored_answer_programs
from deepseek_jax.recipes.r1.samples import layout_rewards, sample_groups
from deepseek_jax.recipes.r1.settings import EvaluationSettings
from deepseek_jax.recipes.r1.sources import HeldOutQuestions
from deepseek_jax.recipes.stage import Answering
from deepseek_jax.rollout.completions import MeasuredLog
from deepseek_jax.rollout.policy import Policy, check_answers
from deepseek_jax.rollout.settings import Limit
from deepseek_jax.worlds.registry import open_rewards
from deepseek_jax.worlds.world import Questions, World

# score -> how its numbers are printed
FORMS = {
    "pass@1": ".1%",
    "cons@k": ".1%",
    "language": ".1%",
    "format": ".1%",
    "length": ".1f",
    "helpful": ".1%",
    "harmless": ".1%",
}
SHOWN = 2  # samples of each kind that are printed
# Questions of each kind whose samples all stand in report.html
ON_PAGE = {"puzzles": 12, "requests": 8}
LAYOUT = {
    "language_consistency": "language",
    "think_answer_format": "format",
}  # reward -> its score


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureWorld(Measure):
    """The answers of the policy that it begins from to held-out questions, see `measure`."""

    settings: EvaluationSettings
    questions: HeldOutQuestions
    rule: Rule

    def check(self, config, mesh):
        check_answers(config, self.settings)

    def check_data(self, context):
        super().check_data(context)
        # Raises where answers exceed the model's positions
        self._asked(context)

    def _asked(self, context):
        limit = Limit(self.settings.max_completion_length)
        return [
            context.policy.ask(held_out, limit, "held-out")
            for held_out in self.questions.read(context)
        ]

    def programs(self, config, mesh, others):
        number = max(self.settings.num_puzzles, self.settings.num_requests)
        asked = Answering(self.settings, number, self.settings.samples)
        return scored_answer_programs(self, config, mesh, asked)

    def run(self, context):
        asked = self._asked(context)
        with self.waiting(sum(map(len, asked))):
            policy, world = context.begin(), self.questions.world_data.world
            found = measure(policy, world, *asked, self.settings, seed=self.seed)
        say_scores(self.start, found)
        return found

    def scores(self, found):
        return found["scores"]


def measure(
    policy: Policy, world: World, reasoning, general, settings: EvaluationSettings, *, seed: int
):
    """Answer held-out examples, which carry their prompt_ids, k = settings.samples times each.

    Returns a dict for JSON. values: score -> one number a prompt, the mean of its k samples. Reasoning
    questions have pass@1, cons@k (is the most frequent answer right), language, format and length in tokens;
    general ones have the world's scores. scores: score -> [mean, low, high] of these, with 95% intervals,
    over prompts. samples: the first ON_PAGE prompts with all their completions.
    """
    values, samples = {}, {}
    parts = ("puzzles", world.reasoning, reasoning), ("requests", world.general, general)
    for title, name, examples in parts:
        if not examples:
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
        shown = (each[: ON_PAGE[title]] for each in (examples, groups, lengths))
        samples[title] = sample_groups(questions, *shown, answers.rollout.tokens())
    return {
        "k": settings.samples,
        "scores": {name: _interval(name, values[name]) for name in FORMS if name in values},
        "values": {name: values[name].tolist() for name in values},
        "samples": samples,
    }


def say_scores(name: str, found: dict):
    """Print the scores of measure, and a few samples, for the stage `name`."""
    for score, interval in found["scores"].items():
        mean, low, high = (format(value, FORMS[score]) for value in interval)
        say(f"  {name} {score}: {mean} ({low} to {high})")
    for groups in found["samples"].values():
        for group in groups[:SHOWN]:
            say(f"  {group['prompt']!r} -> {group['completions'][0]['text']!r}")


def reasoning_values(questions: Questions, examples, groups, ids):
    """score -> float64[p], one number an example. groups[i]: the completions of examples[i], k of each.
    ids: the tokens of all of them.
    """
    problems = [{"example": example, "rule": questions.rule} for example in examples]
    with Rules(problems) as rules:
        judged = rules.judge(problems, groups, ids)
    values = {"pass@1": np.array([np.mean(verdict["correct"]) for verdict in judged])}
    # A rule that reads no answers has no majority
    if judged[0]["agreed"] is not None:
        values["cons@k"] = np.array([float(verdict["agreed"]) for verdict in judged])
    for reward in layout_rewards(examples):
        values[LAYOUT[reward]] = _by_prompt(reward, examples, groups)
    return values


def general_values(questions: Questions, examples, groups):
    """score -> float64[p] for the world's own scores, each over the examples that it is about.

    Leaves out a score that is about fewer than two of them: one number has no interval.
    """
    values = {}
    for name, score in questions.scores.items():
        about = [i for i, example in enumerate(examples) if score.is_about(example)]
        if len(about) > 1:
            some = [examples[i] for i in about], [groups[i] for i in about]
            values[name] = _by_prompt(score.reward, *some)
    return values


def _interval(name, values):
    """[mean, low, high]. A length is no share, even one of 0 or 1 tokens."""
    return list((length_interval if name in LENGTHS else score_interval)(values))


def _by_prompt(reward, examples, groups):
    """float64[p]: the mean reward of each prompt's completions."""
    size = len(groups[0])
    with open_rewards({reward: 1.0}) as rewards:
        scores = rewards.score_together(
            [example for example in examples for _ in range(size)], joined(groups)
        )
    if missing := scores.without_verdict(reward):
        say(missing)
    return scores.as_wrong(reward).astype(np.float64).reshape(-1, size).mean(1)
