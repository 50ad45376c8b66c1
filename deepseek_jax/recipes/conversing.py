"""Recipes that may answer in conversations: tools and an environment, opened before a policy is loaded."""

import dataclasses
from typing import Any

from deepseek_jax.data.columns import columns_of
from deepseek_jax.lazy import LazyTable
from deepseek_jax.rollout.policy import Policy

# Few runs hold conversations
PARTS = LazyTable(
    {
        "environments": "deepseek_jax.rollout.tool_use:environments_of",
        "form": "deepseek_jax.data.tools:tool_form",
        "use": "deepseek_jax.rollout.tool_use:ToolUse",
        "reward": "deepseek_jax.rollout.tool_use:EnvironmentReward",
    }
)


def open_environments(settings: Any, opened: Any):
    """The Environments of the settings, which close with `opened`, an ExitStack; None for single turns."""
    if not settings.converses:
        return None
    return opened.enter_context(PARTS["environments"](settings))


def rewards_of(environments: Any):
    """{name: reward} of an environment with get_reward, beside the rules."""
    if environments is None or environments.reward_name is None:
        return {}
    return {environments.reward_name: PARTS["reward"]()}


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
    form = PARTS["form"](policy.tokenizer, policy.template)
    tools = PARTS["use"](environments, form, settings.conversation)
    return dataclasses.replace(policy, tools=tools)
