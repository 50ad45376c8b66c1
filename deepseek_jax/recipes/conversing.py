"""Tools and environments for a recipe's policy, opened before the policy is loaded.

Tests: tests/reinforce/test_conversations.py, tests/recipes/evaluate/test_conversations.py.
"""

import dataclasses
from contextlib import ExitStack

from deepseek_jax.data.columns import columns_of
from deepseek_jax.data.tools import tool_form
from deepseek_jax.environments.pool import Environments
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.settings import Conversing
from deepseek_jax.rollout.tool_use import EnvironmentReward, ToolUse, environments_of


def open_environments(settings: Conversing, opened: ExitStack) -> Environments | None:
    """Open the tools and the environment that the settings name.

    Args:
        settings: The settings of the answers.
        opened: Closes them.

    Returns:
        None if the answers are single turns.
    """
    if not settings.converses:
        return None
    return opened.enter_context(environments_of(settings))


def rewards_of(environments: Environments | None) -> dict[str, EnvironmentReward]:
    """Return the reward of an environment that has get_reward, as {name: reward}.

    It is used in addition to the rules. The dict is empty without such an environment.
    """
    if environments is None or environments.reward_name is None:
        return {}
    return {environments.reward_name: EnvironmentReward()}


def try_environment(environments: Environments | None, examples: list[dict]):
    """Test an environment before a run starts, with a conversation about the first question.

    Args:
        environments: What to test; None for single turns, where nothing happens.
        examples: The questions of the run.

    Raises:
        ValueError: As Environments.check does.
    """
    if environments is not None:
        first = examples[0]
        environments.check(columns_of(first), str(first.get("answer", "")))


def conversing(policy: Policy, environments: Environments | None, settings: Conversing) -> Policy:
    """Return the policy with tools and an environment; unchanged if `environments` is None.

    Args:
        policy: A policy with a template that can write tool calls.
        environments: The result of open_environments.
        settings: They have the limits `conversation`.

    Raises:
        ValueError: As tool_form does.
    """
    if environments is None:
        return policy
    form = tool_form(policy.tokenizer, policy.template)
    tools = ToolUse(environments, form, settings.conversation)
    return dataclasses.replace(policy, tools=tools)
