"""Faults in conversations that no loss shows: each is planted where a step of GRPO samples, and named."""

import contextlib

import numpy as np
import optax
import pytest

from deepseek_jax.environments import Environments, worker
from deepseek_jax.errors import BrokenTerm
from deepseek_jax.recipes.conversing import rewards_of
from deepseek_jax.recipes.grpo.settings import GrpoSettings
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.rewards import Rewards
from deepseek_jax.rollout import engine
from deepseek_jax.rollout.conversations import Conversations
from deepseek_jax.rollout.engine import Engine
from deepseek_jax.rollout.tool_use import EnvironmentReward
from deepseek_jax.settings import build
from deepseek_jax.training.state import TrainState
from tests.environments import mixed_up
from tests.recipes.small import one_device, small_config
from tests.rollout.conversing import TURNS, asked, talking
from tests.tiny import tiny_model

# Its replies and rewards differ between the conversations of a question
GAME = """
class Game:
    def reset(self, question, **row):
        self.said = []

    def step(self, text: str) -> str | None:
        self.said.append(text)
        return str(sum(map(ord, text)))

    def get_reward(self) -> float:
        return len("".join(self.said)) / 100
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(a function that makes the GroupSource of four games of each of two questions, its TrainState)."""
    file = tmp_path_factory.mktemp("games") / "game.py"
    file.write_text(GAME)
    config = small_config(accuracy="Game", environment=f"{file}:Game", conversation=TURNS)
    config.rewards = {"Game": 1.0}
    config.rollout.update(dict(max_completion_length=80, max_prompt_length=16, slots=4))
    settings = build(GrpoSettings, config, "config")
    model, params = tiny_model("gqa")
    with contextlib.ExitStack() as stack:
        policy = stack.enter_context(talking(model, params, environment=f"{file}:Game"))
        rewards = Rewards(settings.rewards, rewards_of(policy.tools.environments))
        questions = {"reasoning": asked(policy)}
        given = policy, questions, stack.enter_context(rewards), settings, one_device(), None
        yield lambda: GroupSource(*given), TrainState.create(params, optax.sgd(0.1))


def step(source):
    make, state = source
    return make().next(state, 0)


def named(source, words):
    with pytest.raises(BrokenTerm, match=words):
        step(source)


def around(monkeypatch, of, name, change):
    """Let change(the real function, self, arguments...) take the place of a method."""
    real = getattr(of, name)
    monkeypatch.setattr(of, name, lambda self, *args: change(real, self, *args))


def test_a_step_without_a_fault_passes(source, record_property):
    """Oracle: by hand: all games of the step, of two to four turns, which have read and are paid."""
    # No row of the table
    record_property("number", 0)
    (batch,), metrics = step(source)
    assert metrics["turns"] > 1 and np.asarray(batch["observed_mask"]).any()
    assert metrics["reward_Game"] > 0 and np.asarray(batch["advantages"]).any()


def test_a_first_turn_that_is_masked_out_as_read_is_named(source, monkeypatch):
    """Oracle: planted where the engine's slots become completions, in the last conversation alone: all sums
    of the masks still agree, and another conversation's messages are read at this step.
    """
    real = engine.copy_completions

    def masked(result, rows, *more):
        real(result, rows, *more)
        for row in set(rows) & {7}:
            first = np.argmax(result.observed_mask[row]) or len(result.observed_mask[row])
            result.observed_mask[row, :first] |= result.completion_mask[row, :first]
            result.completion_mask[row, :first] = False

    monkeypatch.setattr(engine, "copy_completions", masked)
    named(
        source, "conversation 7: [0-9]+ tokens were sampled in its . turns, and its update learns"
    )


def test_replies_of_another_slot_are_named(source, monkeypatch):
    """Oracle: the texts of the slots that read together, each given to the next."""

    def shifted(real, self, texts):
        slots = list(texts)
        return real(self, dict(zip(slots, [texts[s] for s in (*slots[1:], slots[0])], strict=True)))

    around(monkeypatch, Engine, "read", shifted)
    named(source, "step 0: conversation . has read [0-9]+ tokens that its messages do not have")


def test_a_limit_of_turns_that_is_ignored_is_named(source, monkeypatch):
    """Oracle: by hand: the limit is told of three turns at most."""

    def unlimited(real, self, row, ids):
        turns, self.of[row].turns = self.of[row].turns, min(self.of[row].turns, 3)
        found = real(self, row, ids)
        self.of[row].turns = turns
        return found

    around(monkeypatch, Conversations, "_fitting", unlimited)
    named(
        source, "step 0: conversation . has [0-9]+ turns of the model, above conversation.turns=4"
    )


def test_a_reward_of_another_environment_is_named(source, monkeypatch):
    """Oracle: get_reward of the environment of another conversation in the same process."""
    monkeypatch.setattr(worker, "reward", mixed_up.reward)
    named(source, "reward that the environment of conversation . gave: rewards are mixed up")


def test_a_reward_that_comes_one_conversation_late_is_named(source, monkeypatch):
    """Oracle: what each environment gave, for the conversation that ends next."""
    held = []

    def late(real, self, key):
        held.append(real(self, key))
        return held[max(len(held) - 2, 0)]

    around(monkeypatch, Environments, "reward", late)
    named(source, "reward that the environment of conversation . gave: rewards are mixed up")


def test_rewards_that_go_to_the_next_conversation_are_named(source, monkeypatch):
    """Oracle: the values of all conversations, shifted by one behind their records."""

    def shifted(real, self, examples, completions):
        values = real(self, examples, completions)
        return values[-1:] + values[:-1]

    around(monkeypatch, EnvironmentReward, "score", shifted)
    named(source, "conversation . got .* of its environment and is paid .*: rewards are mixed up")


def test_records_that_go_to_the_next_conversation_are_named(source, monkeypatch):
    """Oracle: the records of all conversations, with messages and rewards, shifted by one."""
    around(
        monkeypatch, Conversations, "records", lambda real, self: np.roll(real(self), 1).tolist()
    )
    named(source, "conversation 0 has the record of conversation 7")
