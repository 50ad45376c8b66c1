"""The tools and the environment that the flags of launch/chat.py name.

Tests: tests/launch/test_chat.py.
"""

import contextlib

from deepseek_jax.errors import at
from deepseek_jax.rollout.settings import Conversing
from deepseek_jax.settings import build
from launch.screen import note


def with_named_tools(policies: list, run: str, settings, opened: contextlib.ExitStack):
    """Give policies the tools and the environment that the settings name.

    The limits of the conversations come from the config of the run, or are the defaults. No file of
    a run can name code that runs here. If the settings name no tools and no environment, the
    policies are returned as they are, and the flags with which the run was trained are printed.

    Args:
        policies: [(name, Policy)].
        run: The path of the policy that is talked to, in the run's folder.
        settings: A ChatSettings.
        opened: Ends the processes of the tools and the environment.

    Returns:
        [(name, Policy)].
    """
    from deepseek_jax.recipes.began import conversing_of
    from deepseek_jax.recipes.conversing import conversing, open_environments

    trained_fields = conversing_of(run)
    if not settings.tools and settings.environment is None:
        _note_flags(trained_fields)
        return policies
    code_names = {"tools": settings.tools, "environment": settings.environment}
    limits = {"conversation": trained_fields.get("conversation", {})}
    with at("config"):
        conversing_settings = build(Conversing, code_names | limits, "config")
        environments = open_environments(conversing_settings, opened)
        return [
            (name, conversing(policy, environments, conversing_settings))
            for name, policy in policies
        ]


def _note_flags(trained_fields):
    values_by_flag = {
        "tools": ",".join(trained_fields.get("tools", ())),
        "environment": trained_fields.get("environment"),
    }
    flags_text = " ".join(f"--{name}={value}" for name, value in values_by_flag.items() if value)
    if flags_text:
        note(f"it was trained in conversations, and answers in single turns here: add {flags_text}")
