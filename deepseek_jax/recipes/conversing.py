"""Recipes that may answer in conversations: tools and an environment, opened before a policy is loaded."""

import dataclasses
from typing import Any

from deepseek_jax.data.columns import columns_of
from deepseek_jax.data.tools import tool_form
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.rollout.tool_use import EnvironmentReward, ToolUse, environments_of


def open_environments(settings: Any, opened: Any):
    """The Environments of the settings, which close with `opened`, an ExitStack; None for single turns."""
    if not settings.converses:
        return None
    return opened.enter_context(environments_of(settings))


def rewards_of(environments: Any):
    """{name: reward} of an environment with get_reward, beside the rules."""
    if environments is None or environments.reward_name is None:
        return {}
    return {environments.reward_name: EnvironmentReward()}


def try_environment(environments: Any, examples: list):
    """Hold the conversation of one question before a run starts. Raises ValueError as Environments.check."""
    if environments is not None:
        first = examples[0]
        environments.check(columns_of(first), str(first.get("answer", "")))


def conversing(policy: Policy, environments: Any, settings: Any) -> Policy:
    """The policy with these tools and this environment; as it is for None. Raises ValueError as tool_form
    does.
    """
    if environments is None:
        return policy
    form = tool_form(policy.tokenizer, policy.template)
    tools = ToolUse(environments, form, settings.conversation)
    return dataclasses.replace(policy, tools=tools)
