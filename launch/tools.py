"""The tools and the environment of a chat, which its flags name."""

import contextlib

from deepseek_jax.errors import at
from deepseek_jax.rollout.settings import Conversing
from deepseek_jax.settings import build
from launch.screen import note


def with_named_tools(policies: list, run: str, settings, opened: contextlib.ExitStack):
    """Policies, [(name, Policy)], with the tools and the environment of the settings, under the limits of the
    run that left what is at `run`, or the default ones. opened: ends their processes.

    No file of a run names code that runs here: where the settings name none, what the run was trained with is
    printed as flags.
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
