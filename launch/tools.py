"""The tools and the environment that the flags of launch/chat.py name."""

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

    trained = conversing_of(run)
    if not settings.tools and settings.environment is None:
        _note_flags(trained)
        return policies
    named = {"tools": settings.tools, "environment": settings.environment}
    limits = {"conversation": trained.get("conversation", {})}
    with at("config"):
        use = build(Conversing, named | limits, "config")
        environments = open_environments(use, opened)
        return [(name, conversing(policy, environments, use)) for name, policy in policies]


def _note_flags(trained):
    given = {"tools": ",".join(trained.get("tools", ())), "environment": trained.get("environment")}
    said = " ".join(f"--{name}={value}" for name, value in given.items() if value)
    if said:
        note(f"it was trained in conversations, and answers in single turns here: add {said}")
