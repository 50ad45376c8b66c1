"""Evaluation in conversations: the tools and the environment of its config, and what is counted of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from deepseek_jax.data.chat import asked_messages
from deepseek_jax.errors import at
from deepseek_jax.lazy import LazyTable
from deepseek_jax.rollout.policy import Policy

# Few evaluations hold conversations
PARTS = LazyTable(
    {
        "environments": "deepseek_jax.rollout.conversations:environments_of",
        "form": "deepseek_jax.data.tools:tool_form",
        "use": "deepseek_jax.rollout.conversations:ToolUse",
        "reward": "deepseek_jax.rollout.conversations:EnvironmentReward",
    }
)


def open_environments(settings: Any, opened: Any):
    """The Environments of the settings, which close with `opened`, an ExitStack; None for single turns."""
    if not settings.converses:
        return None
    return opened.enter_context(PARTS["environments"](settings))


def rewards_of(environments: Any):
    """{name: reward} of an environment with get_reward, which accuracy may name."""
    if environments is None or environments.reward_name is None:
        return {}
    return {environments.reward_name: PARTS["reward"]()}


def conversing(policy: Policy, problems: list, environments: Any, settings: Any) -> Policy:
    """The policy with these tools, in the template of all problems. Raises ValueError where they have
    several.
    """
    templates = list(dict.fromkeys(problem["template"] for problem in problems))
    with at("config"):
        if len(templates) > 1:
            raise ValueError(
                f"template={settings.template} leaves each task its own, "
                f"{', '.join(map(repr, templates))}, and conversations have one; set template to it"
            )
        form = PARTS["form"](policy.tokenizer, templates[0])
    use = PARTS["use"](environments, form, settings.conversation)
    return dataclasses.replace(policy, template=templates[0], tools=use)


def asked_example(problem: dict):
    """The example that a policy is asked: an environment gets the columns of the problem as they stand."""
    asked = {"messages": asked_messages(problem["asked"]), "prompt_ids": problem["prompt_ids"]}
    return problem["example"] | asked


def counts_of(conversations: Sequence[Any] | None):
    """What an entry of results.json has of a problem's conversations: one value for each. None: nothing."""
    if conversations is None:
        return {}
    return {
        "turns": [c.turns for c in conversations],
        "tool_calls": [c.tool_calls for c in conversations],
        "tool_errors": [c.tool_errors for c in conversations],
        "truncated_turns": [c.cut is not None for c in conversations],
        "get_reward": [c.reward for c in conversations],
        "messages": [c.messages for c in conversations],
    }
