"""What a policy that a run left began from. The run's config is read as data: nothing that it names runs."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint import is_orbax
from deepseek_jax.checkpoint.left import LEFT, left_in_run, record_of, run_of
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.hub import hub_id
from deepseek_jax.recipes.workdir import read_mark
from deepseek_jax.rollout.policy import Policy, find_source, load_policy

# The fields of a config by which its answers are conversations
CONVERSING = "tools", "environment", "conversation"


class Start(NamedTuple):
    """What a policy began from: a checkpoint; None for the base beside its adapter."""

    checkpoint: str | Path | None = None


def find_start(path: str | Path) -> Start:
    """The Start of what load_policy reads at a path: what the stage left that its own stage began from.

    Raises ValueError where this is not known, or is not there any more.
    """
    if find_source(path).adapter is not None:
        return Start()
    stage = _stage_of(path)
    run, start = run_of(stage), record_of(stage).get("start")
    if not start:
        raise ValueError(f"{stage} began from no policy; give the path of a checkpoint")
    before = record_of(run / start)
    given = before.get("checkpoint")
    if given is None and not is_orbax(run / start / LEFT[0]):
        raise ValueError(
            f"{stage} began from random parameters, or from what is not there any more; give the path of a "
            "checkpoint"
        )
    # A name on the hub at the commit that the run read
    given = read_mark(run)[1].get("model", {}).get(given, given)
    found = run / start / LEFT[0] if given is None else given
    check_checkpoint(found)
    return Start(found)


def policy_of_start(start: Start, policy: Policy, mesh: Mesh) -> Policy:
    """The Policy of a Start. policy: what was trained from it, whose tokenizer and template it gets; the base
    of an adapter shares its arrays.
    """
    if start.checkpoint is not None:
        how = {"dtype": policy.config.dtype}
        return load_policy(
            start.checkpoint, how, mesh, template=policy.template, tokenizer=policy.tokenizer
        )
    return policy.at(policy.params.base)


def conversing_of(path: str | Path) -> dict:
    """The fields tools, environment and conversation of the config of the run that left what is at a path; {}
    where there is none.
    """
    try:
        config, _ = read_mark(run_of(_stage_of(path)))
    except ValueError:
        return {}
    return {name: config[name] for name in CONVERSING if config.get(name)}


def _stage_of(path):
    """The folder of the stage that left what is at a path."""
    if hub_id(path) is None:
        left = left_in_run(path)
        stage = left.parent if left.name in LEFT else left
        if record_of(stage):
            return stage
    raise ValueError(f"{path} is not in the folder of a run; give the path of a checkpoint")
