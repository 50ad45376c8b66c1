"""Reinforcement for all scenarios (arXiv:2501.12948, section 3.2.2): questions and rewards by scenario.

Every step has reasoning questions, which rules reward. Only the last steps have general requests as well,
which reward models score: with more steps the policy would learn to exploit these models.
"""

import contextlib

import numpy as np

from deepseek_jax.data.tasks import QuestionStream
from deepseek_jax.errors import at
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rewards import Rewards, Scores
from deepseek_jax.worlds.registry import open_rewards

SCENARIOS = ("reasoning", "general")


def scenario_questions(settings: ReinforceSettings, reasoning, general):
    """The stream of a reinforcement's questions. reasoning, general: examples; the general ones are used only
    if settings.general is set.
    """
    if settings.general is None:
        return QuestionStream(reasoning, settings.seed)
    return ScenarioStream(
        *(QuestionStream(examples, settings.seed) for examples in (reasoning, general)),
        first=(settings.num_steps - settings.general.num_steps) * settings.prompts_per_step,
        per_step=settings.prompts_per_step,
        general_per_step=settings.general.per_step,
    )


@contextlib.contextmanager
def scenario_rewards(settings: ReinforceSettings, models):
    """Open the rewards of each scenario: {scenario: rewards.Rewards}.

    models: reward models by name; each goes to the scenarios whose rewards name it. Raises ValueError as
    Rewards does.
    """
    blocks = {"reasoning": settings.rewards}
    if settings.general is not None:
        blocks["general"] = settings.general.rewards
    # A model that no scenario names goes to all of them, so that Rewards raises its error for it
    unused = set(models).difference(*blocks.values())
    with contextlib.ExitStack() as opened:
        rewards = {}
        for scenario, weights in blocks.items():
            own = {n: m for n, m in models.items() if n in weights or n in unused}
            with at("rewards" if scenario == "reasoning" else "general.rewards"):
                rewards[scenario] = opened.enter_context(open_rewards(weights, models=own))
        yield rewards


class ScenarioStream:
    """An endless stream of examples: reasoning alone at first, later each step ends with general ones.

    first: number of questions before the first step with general ones. per_step: questions of a step.
    general_per_step: how many of them are general. Each example has its scenario. The state is position
    alone, the number of examples so far.
    """

    def __init__(
        self,
        reasoning: QuestionStream,
        general: QuestionStream,
        *,
        first: int,
        per_step: int,
        general_per_step: int,
    ):
        assert first % per_step == 0 and 0 < general_per_step < per_step
        self.streams = dict(zip(SCENARIOS, (reasoning, general), strict=True))
        self.first, self.per_step, self.general_per_step = first, per_step, general_per_step
        self.position = 0

    def take(self, n: int):
        """The next n examples, as a list."""
        start, self.position = self.position, self.position + n
        return [self._example(index) for index in range(start, self.position)]

    def _example(self, index):
        scenario, number = self._place(index)
        stream = self.streams[scenario]
        stream.position = number
        return stream.take(1)[0] | {"scenario": scenario}

    def _place(self, index):
        """(scenario of the index-th question, its number among that scenario's)"""
        reasoning_per_step = self.per_step - self.general_per_step
        if index < self.first:
            return "reasoning", index
        step, place = divmod(index - self.first, self.per_step)
        if place < reasoning_per_step:
            return "reasoning", self.first + step * reasoning_per_step + place
        return "general", step * self.general_per_step + place - reasoning_per_step


class ScenarioRewards:
    """Scores like rewards.Rewards, each example by the Rewards of its scenario. An example without a scenario
    is for reasoning. rewards: from scenario_rewards.
    """

    def __init__(self, rewards: dict[str, Rewards]):
        self.rewards = rewards

    def score(self, examples, completions):
        """Scores of all examples. A part that an example's scenario lacks is NaN, which is not an error."""
        names = dict.fromkeys(name for rewards in self.rewards.values() for name in rewards.weights)
        total = np.full(len(examples), np.nan, np.float32)
        parts = {name: total.copy() for name in names}
        errors, messages = 0, []
        for scenario, rewards in self.rewards.items():
            rows = [i for i, example in enumerate(examples) if _scenario(example) == scenario]
            scores = rewards.score([examples[i] for i in rows], [completions[i] for i in rows])
            total[rows] = scores.total
            for name, part in scores.parts.items():
                parts[name][rows] = part
            errors, messages = errors + scores.errors, messages + scores.messages
        return Scores(total, parts, errors, messages)


def _scenario(example):
    return example.get("scenario", SCENARIOS[0])
