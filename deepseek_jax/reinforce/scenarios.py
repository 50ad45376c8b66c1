"""Reinforcement for all scenarios (arXiv:2501.12948, section 3.2.2): questions and rewards of each.

Every step has reasoning questions, which rules reward. Only the last steps also have general
requests, which reward models score: with more steps the policy would learn to exploit these models.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from deepseek_jax.data.texts import picked
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import from_each, say
from deepseek_jax.reinforce.settings import SCENARIOS, ReinforceSettings, RewardSettings
from deepseek_jax.rewards.scoring import Rewards, Scores
from deepseek_jax.worlds.registry import open_rewards


def place(settings: ReinforceSettings, index: int) -> tuple[str, int]:
    """Return (scenario of the index-th question, the question's number within that scenario).

    At first there are only reasoning questions. Each of the last general.num_steps steps ends with
    general.per_step general ones.
    """
    per_step, general = settings.prompts_per_step, settings.general
    if general is None:
        return "reasoning", index
    first_general = (settings.num_steps - general.num_steps) * per_step
    if index < first_general:
        return "reasoning", index
    reasoning_per_step = per_step - general.per_step
    step, number = divmod(index - first_general, per_step)
    if number < reasoning_per_step:
        return "reasoning", first_general + step * reasoning_per_step + number
    return "general", step * general.per_step + number - reasoning_per_step


@contextlib.contextmanager
def scenario_rewards(
    settings: ReinforceSettings, models: Mapping[str, object]
) -> Iterator[dict[str, Rewards]]:
    """Open the rewards of each scenario: {scenario: rewards.Rewards}.

    Args:
        models: reward models by name. Each goes to the scenarios with rewards that name it.

    Raises:
        ValueError: as Rewards does.
    """
    weights_by_scenario = {"reasoning": settings.rewards}
    if settings.general is not None:
        weights_by_scenario["general"] = settings.general.rewards
    # A model that no scenario names goes to all of them, so that Rewards raises its error for it
    unused_names = set(models).difference(*weights_by_scenario.values())
    with contextlib.ExitStack() as stack:
        rewards = {}
        for scenario, weights in weights_by_scenario.items():
            scenario_models = {n: m for n, m in models.items() if n in weights or n in unused_names}
            with at("rewards" if scenario == "reasoning" else "general.rewards"):
                rewards[scenario] = stack.enter_context(
                    open_rewards(weights, models=scenario_models)
                )
        yield rewards


def best_share(rewards: "Rewards | ScenarioRewards") -> str | None:
    """Return rewards.best_share(), with the same result on all processes.

    A user's own function may be random, so the results may differ between processes.
    """
    return from_each(rewards.best_share())[0]


def deciding(settings: RewardSettings, rewards: "Rewards | ScenarioRewards") -> str:
    """Return the reward that decides whether an answer is right.

    It is settings.accuracy, or else Rewards.best_share. Every process calls this, after
    rewards.check.

    Raises:
        ValueError: if there is neither.
    """
    name = settings.accuracy or best_share(rewards)
    if name is None:
        raise ValueError(
            f"accuracy=None, and none of rewards is known to be a share, from 0 to 1: "
            f"{', '.join(settings.rewards)}; set accuracy to the one that says whether an answer is right"
        )
    return name


def say_deciding(settings: RewardSettings, rewards: "Rewards | ScenarioRewards"):
    """Print which reward decides whether an answer is right, unless settings.accuracy says so.

    Raises:
        ValueError: as `deciding` does.
    """
    name = deciding(settings, rewards)
    if settings.accuracy is None:
        say(
            f"accuracy is not set: {name} says whether an answer is right, the reward of the largest weight "
            "among those from 0 to 1"
        )


class ScenarioRewards:
    """Rewards that score each example by the Rewards of its scenario.

    An example without a scenario is for reasoning.

    Args:
        rewards: from scenario_rewards.
    """

    def __init__(self, rewards: dict[str, Rewards]):
        self.rewards = rewards

    def best_share(self) -> str | None:
        """Return Rewards.best_share of the reasoning questions."""
        return self.rewards[SCENARIOS[0]].best_share()

    def score_together(
        self,
        examples: Sequence[Mapping],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        owners: np.ndarray | None = None,
    ) -> Scores:
        """Score all examples, shared between the processes as in Rewards.score_together.

        A part that an example's scenario does not have is NaN, which is not an error. What functions
        log for general requests has the prefix "general_".
        """
        names = dict.fromkeys(name for rewards in self.rewards.values() for name in rewards.weights)
        total = np.full(len(examples), np.nan, np.float32)
        rewards_by_name = {name: total.copy() for name in names}
        errors = 0
        messages: list[str] = []
        metrics: dict[str, float] = {}
        columns: dict[str, list] = {}
        unread = np.zeros(len(examples), bool)
        for scenario, rewards in self.rewards.items():
            rows = [i for i, example in enumerate(examples) if scenario_of(example) == scenario]
            scenario_examples = [examples[i] for i in rows]
            scenario_ids = None if completion_ids is None else picked(completion_ids, rows)
            scenario_owners = None if owners is None else owners[rows]
            scores = rewards.score_together(
                scenario_examples, picked(completions, rows), scenario_ids, scenario_owners
            )
            total[rows] = scores.total
            for name, part_rewards in scores.rewards_by_name.items():
                rewards_by_name[name][rows] = part_rewards
            errors, messages = errors + scores.errors, messages + scores.messages
            # Both scenarios may have a function that logs the same name
            prefix = "" if scenario == SCENARIOS[0] else f"{scenario}_"
            metrics |= {f"{prefix}{name}": value for name, value in scores.metrics.items()}
            if scores.unread is not None:
                unread[rows] = scores.unread
            for name, values in scores.columns.items():
                column = columns.setdefault(name, [None] * len(examples))
                for row, value in zip(rows, values, strict=True):
                    column[row] = value
        return Scores(total, rewards_by_name, errors, messages, metrics, columns, unread)


def scenario_of(example: Mapping) -> str:
    """Return the scenario of an example; reasoning where it names none."""
    return example.get("scenario", SCENARIOS[0])
