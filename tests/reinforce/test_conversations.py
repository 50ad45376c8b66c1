"""Rewards and mistakes of an environment in conversations: failures are counted, and named."""

import contextlib

import numpy as np
import pytest

from deepseek_jax.errors import UnusableRewards
from deepseek_jax.recipes.conversing import rewards_of
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce.groups import make_groups
from deepseek_jax.reinforce.metrics import describe
from deepseek_jax.reinforce.sampler import Sampler
from deepseek_jax.rewards import Rewards
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.conversations import Conversations
from deepseek_jax.settings import build
from tests.recipes.small import small_config
from tests.rollout.conversing import answered, asked, talking
from tests.tiny import tiny_model

ENVIRONMENT = """
class Game:
    def reset(self, question, **row):
        {reset}
        self.question, self.steps = question, 0

    def step(self, text: str) -> str | None:
        self.steps += 1
        return "7"

    def get_reward(self) -> float:
        {reward}
        return self.steps / 4
"""


@contextlib.contextmanager
def playing(folder, reset="pass", reward="pass"):
    """A Policy that talks with a Game whose methods begin with these lines."""
    path = folder / "game.py"
    path.write_text(ENVIRONMENT.format(reset=reset, reward=reward))
    with talking(*tiny_model("gqa"), environment=f"{path}:Game") as policy:
        yield policy


def scored(policy):
    """(Answers, Scores) of all questions, three answers each."""
    answers = answered(policy)
    with Rewards({"Game": 2.0}, rewards_of(policy.tools.environments)) as rewards:
        return answers, answers.scored_by(rewards, asked(policy))


def test_get_reward_is_a_reward_beside_the_rules(tmp_path):
    """Oracle: by hand: half the number of steps, which the messages tell."""
    with playing(tmp_path) as policy:
        answers, scores = scored(policy)
        examples = asked(policy)
    steps = [sum(m["role"] == "user" for m in c.messages) for c in answers.conversations]
    assert len(set(steps)) > 2 and scores.errors == 0
    np.testing.assert_allclose(scores.total, np.array(steps) / 2)
    groups = make_groups(examples, answers, scores)
    metrics = describe(groups, "Game")
    assert metrics["reward_Game"] == metrics["accuracy"] == pytest.approx(np.mean(steps) / 4)
    assert metrics["tool_calls"] == np.mean(steps)
    assert metrics["completion_length"] == answers.rollout.completion_mask.sum() / 15


def test_a_reward_that_raises_is_counted_and_its_conversation_dropped(tmp_path):
    """Oracle: by hand: it raises for the three answers of one question, with its line."""
    with playing(tmp_path, reward="assert self.question != '14', 'no 14'") as policy:
        _, scores = scored(policy)
    assert np.isnan(scores.total).tolist() == [False] * 3 + [True] * 3 + [False] * 9
    assert scores.errors == 3
    assert all("game.py, line 12: AssertionError: no 14" in text for text in scores.messages)
    scores.require_one()


def test_a_reward_that_always_raises_ends_the_run(tmp_path):
    """Oracle: the message, with the line of the first failure."""
    with playing(tmp_path, reward="1 / 0") as policy:
        _, scores = scored(policy)
    with pytest.raises(UnusableRewards, match="none of 15 completions.*line 12: ZeroDivisionError"):
        scores.require_one()


def test_a_reset_that_raises_names_the_environment_and_its_line(tmp_path):
    """Oracle: the message; the next rollout of the same policy begins anew, and says the same."""
    with playing(tmp_path, reset="{}[question]") as policy:
        for _ in range(2):
            with pytest.raises(ValueError, match="^environment: .*game.py, line 4: KeyError: '3'"):
                answered(policy)


def test_a_prompt_that_reset_makes_too_long_ends_the_run(tmp_path):
    """Oracle: the message; by hand: a question of up to five letters, a line break and those of reset."""
    settings = build(GrpoSettings, small_config(), "config")
    room = settings.rollout.max_prompt_length
    with playing(tmp_path, reset=f"return 'a' * {room - 6}") as policy:
        Sampler(policy, settings, None).answer(policy.params, asked(policy), step=0)
    message = f"environment: .*a prompt has {room + 1} tokens, and there is room for {room}; raise"
    with playing(tmp_path, reset=f"return 'a' * {room - 5}") as policy:
        with pytest.raises(ValueError, match=message):
            Sampler(policy, settings, None).answer(policy.params, asked(policy), step=0)


def test_conversations_take_no_drafts(tmp_path):
    """Oracle: the message."""

    with playing(tmp_path) as policy:
        log = RolloutLog()
        use, examples = policy.tools, asked(policy)
        with Conversations(use, policy.tokenizer, examples, 1, 20) as log.conversations:
            with pytest.raises(ValueError, match="speculative=True drafts in single turns"):
                generate(
                    policy.config,
                    policy.params,
                    [example["prompt_ids"] for example in examples],
                    max_completion_length=20,
                    eos_ids=policy.eos_ids,
                    speculative=True,
                    log=log,
                )
