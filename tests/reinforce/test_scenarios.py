"""Reinforcement for all scenarios: the order of the questions, and the rewards of each."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deepseek_jax.reinforce.scenarios import (
    ScenarioRewards,
    deciding,
    place,
    say_deciding,
    scenario_rewards,
)
from deepseek_jax.reinforce.settings import GeneralSettings, RewardSettings
from deepseek_jax.rewards import Scores
from deepseek_jax.worlds.registry import open_rewards

PUZZLES = [{"question": f"p{i}", "answer": "3", "language": "en"} for i in range(5)]
REQUESTS = [{"question": f"r{i}", "answer": "a", "key": "a", "kind": "lookup"} for i in range(3)]


def test_general_questions_come_in_the_last_steps_alone_and_nothing_is_left_out():
    """Oracle: the places of five steps of four questions, written down by hand."""
    general = GeneralSettings(num_steps=3, per_step=1, rewards={"helpfulness": 1.0})
    settings = SimpleNamespace(num_steps=5, prompts_per_step=4, general=general)
    places = [place(settings, index) for index in range(20)]
    assert "".join(scenario[0] for scenario, _ in places) == "rrrrrrrrrrrgrrrgrrrg"
    assert [number for scenario, number in places if scenario == "reasoning"] == list(range(17))
    assert [number for scenario, number in places if scenario == "general"] == [0, 1, 2]


def test_each_example_is_paid_by_its_scenarios_rewards():
    """Oracle: by hand: 2 for a right sum, 3 for a helpful answer; NaN, no error, for the other's parts."""
    examples = [
        PUZZLES[0] | {"scenario": "reasoning"},
        REQUESTS[0] | {"scenario": "general"},
        PUZZLES[1] | {"scenario": "reasoning"},
        REQUESTS[1] | {"scenario": "general"} | {"answer": 3},  # no text: helpfulness raises
    ]
    rewards = ScenarioRewards(
        {
            "reasoning": open_rewards({"puzzle_answer": 2.0}),
            "general": open_rewards({"helpfulness": 3.0, "think_answer_format": 1.0}),
        }
    )
    scores = rewards.score_together(examples, ["3", "a", "4", "a"])
    nan = np.nan
    np.testing.assert_array_equal(scores.total, [2, 3, 0, nan])
    np.testing.assert_array_equal(scores.rewards_by_name["puzzle_answer"], [1, nan, 0, nan])
    np.testing.assert_array_equal(scores.rewards_by_name["helpfulness"], [nan, 1, nan, nan])
    np.testing.assert_array_equal(scores.rewards_by_name["think_answer_format"], [nan, 0, nan, 0])
    assert scores.errors == 1 and len(scores.messages) == 1


def test_a_model_pays_where_its_name_is_among_the_rewards():
    """Oracle: by hand, of a model whose rewards are 7."""

    class Seven:
        def score(self, examples, completions):
            return [7.0] * len(examples)

    general = dict(num_steps=1, per_step=1, rewards={"helpfulness": 1.0, "seven": 0.5})
    settings = SimpleNamespace(
        rewards={"puzzle_answer": 1.0}, general=GeneralSettings(**general), seed=0
    )
    examples = [PUZZLES[0], REQUESTS[0] | {"scenario": "general"}]
    with scenario_rewards(settings, {"seven": Seven()}) as rewards:
        scores = ScenarioRewards(rewards).score_together(examples, ["3", "a"])
    np.testing.assert_array_equal(scores.total, [1, 1 + 3.5])
    with pytest.raises(ValueError, match="^rewards: the reward model 'eight' is not used"):
        with scenario_rewards(settings, {"seven": Seven(), "eight": Seven()}):
            pass


def test_a_step_without_requests_has_scores_too():
    """Oracle: by hand."""
    rewards = ScenarioRewards(
        {
            "reasoning": open_rewards({"puzzle_answer": 1.0}),
            "general": open_rewards({"helpfulness": 1.0}),
        }
    )
    scores = rewards.score_together([PUZZLES[0] | {"scenario": "reasoning"}], ["3"])
    assert (
        scores.total == [1]
        and scores.errors == 0
        and np.isnan(scores.rewards_by_name["helpfulness"])
    )


def test_what_an_own_reward_logged_of_its_scenario_stands_in_its_rows():
    """Oracle: by hand: the completions that the function logged as "asked", and None for the others."""
    listed = f"{Path(__file__).parents[1] / 'rewards' / 'own_rewards.py'}:listed"
    examples = [PUZZLES[0], REQUESTS[0] | {"scenario": "general", "target": "x"}, PUZZLES[1]]
    general = open_rewards({listed: 1.0})
    with general:
        rewards = ScenarioRewards(
            {"reasoning": open_rewards({"puzzle_answer": 1.0}), "general": general}
        )
        columns = rewards.score_together(examples, ["3", "a", "4"], [[1], [2], [3]]).columns
    assert columns == {"asked": [None, REQUESTS[0]["question"], None]}


def test_the_reward_that_decides_is_given_or_the_best_share_of_the_reasoning_questions(capsys):
    """Oracle: by hand, and the line; what has no share is an error that names the field."""

    class Unknown:
        def score(self, examples, completions):
            return [7.0] * len(examples)

    blocks = dict(puzzle_answer=1.0, think_answer_format=0.5), dict(helpfulness=3.0)
    rewards = ScenarioRewards(
        dict(zip(("reasoning", "general"), map(open_rewards, blocks), strict=True))
    )
    given = RewardSettings(accuracy="think_answer_format", rewards=blocks[0])
    say_deciding(given, rewards)
    assert deciding(given, rewards) == "think_answer_format" and capsys.readouterr().out == ""
    settings = RewardSettings(rewards=blocks[0])
    say_deciding(settings, rewards)
    assert deciding(settings, rewards) == "puzzle_answer"
    assert capsys.readouterr().out.startswith("accuracy is not set: puzzle_answer says whether an")
    settings = RewardSettings(rewards={"seven": 1.0})
    with open_rewards(settings.rewards, models={"seven": Unknown()}) as unknown:
        with pytest.raises(
            ValueError, match="accuracy=None, and none of rewards .*: seven; set accuracy"
        ):
            deciding(settings, unknown)


class Counted:
    """Rewards whose scores are the numbers that the completions spell, times `weight`."""

    def __init__(self, name, weight, errors, unread):
        self.weights, self.weight, self.errors, self.unread = {name: weight}, weight, errors, unread
        self.asked = []

    def score_together(self, examples, completions, completion_ids, owners):
        ids = completion_ids if completion_ids is None else list(completion_ids)
        owners = owners if owners is None else owners.tolist()
        self.asked.append(([example["question"] for example in examples], ids, owners))
        (name,) = self.weights
        part = np.float32([float(text) for text in completions])
        unread = part > 2 if self.unread else None
        messages, metrics = [name] * self.errors, {"weight": self.weight}
        return Scores(self.weight * part, {name: part}, self.errors, messages, metrics, {}, unread)


@pytest.mark.parametrize("ids", [None, [[1], [2], [3]]])
def test_the_scores_of_scenarios_are_put_together(ids):
    """Oracle: by hand: errors add up, messages follow each other, metrics of one name get two names, and what
    could not be read is known of the scenario that reads; an example without a scenario is for reasoning.
    """
    reasoning, general = Counted("a", 2.0, 1, unread=True), Counted("b", 3.0, 2, unread=False)
    rewards = ScenarioRewards({"reasoning": reasoning, "general": general})
    examples = [dict(question="x"), dict(question="y", scenario="general"), dict(question="z")]
    owners = ids and np.array([0, 1, 2])
    scores = rewards.score_together(examples, ["1", "5", "4"], ids, owners)
    assert scores.total.tolist() == [2, 15, 8]
    np.testing.assert_array_equal(scores.rewards_by_name["a"], [1, np.nan, 4])
    np.testing.assert_array_equal(scores.rewards_by_name["b"], [np.nan, 5, np.nan])
    assert (scores.errors, scores.messages) == (3, ["a", "b", "b"])
    assert scores.metrics == dict(weight=2.0, general_weight=3.0)
    assert scores.unread.tolist() == [False, False, True]
    assert reasoning.asked == [(["x", "z"], ids and [[1], [3]], ids and [0, 2])]
    assert general.asked == [(["y"], ids and [[2]], ids and [1])]


def test_a_mistake_in_rewards_names_its_scenario():
    """Oracle: the config's path."""
    general = SimpleNamespace(rewards={"nothing": 1.0})
    for rewards, words in (({"puzzle_answer": 1.0}, "general.rewards"), ({"none": 1.0}, "rewards")):
        settings = SimpleNamespace(rewards=rewards, general=general)
        with pytest.raises(ValueError, match=f"^{words}[.:]"):
            with scenario_rewards(settings, {}):
                pass
    with scenario_rewards(
        SimpleNamespace(rewards={"puzzle_answer": 1.0}, general=None), {}
    ) as made:
        assert made.keys() == {"reasoning"}
