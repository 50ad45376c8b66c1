"""What a policy that a run left began from. The run's config is read as data: nothing that it names runs."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint.left import LEFT, is_run
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.checkpoint.phase import newest_in, phase_params
from deepseek_jax.files import as_path
from deepseek_jax.hub import hub_id
from deepseek_jax.recipes.short import BASE
from deepseek_jax.recipes.workdir import read_mark
from deepseek_jax.rollout.policy import Policy, find_source, load_policy
from deepseek_jax.rollout.weights import cast

# The fields of a config by which its answers are conversations
CONVERSING = "tools", "environment", "conversation"
# How far the folder of a run is above what one of its stages left
DEPTH = 3


class Start(NamedTuple):
    """What a policy began from: a checkpoint, or the step of a base's training, a folder; neither for the
    base beside its adapter.
    """

    checkpoint: str | Path | None = None
    step: Path | None = None


def find_start(path: str | Path) -> Start:
    """The Start of what load_policy reads at a path: of a run the checkpoint that it was given, or the base
    that it pre-trained; of a stage of R1 the stage before.

    Raises ValueError where this is not known, or is not there any more.
    """
    if find_source(path).adapter is not None:
        return Start()
    folder, stage = _run_of(path)
    config, commits = read_mark(folder)
    given, base = config.get("init_from"), config.get("base")
    if stage:
        given = str(folder / _before(config, stage, path) / LEFT[0])
    elif given is None and base is None:
        raise ValueError(f"{folder} began from random parameters; give the path of a checkpoint")
    elif given is None:
        kept = base.get("checkpoints", {})
        best_is = kept.get("best_is", "lowest") if kept.get("best") else None
        return Start(step=newest_in(folder / BASE, best_is))
    # A name on the hub at the commit that the run read
    given = commits.get("model", {}).get(given, given)
    check_checkpoint(given)
    return Start(given)


def policy_of_start(start: Start, policy: Policy, mesh: Mesh) -> Policy:
    """The Policy of a Start. policy: what was trained from it, whose tokenizer and template it gets; the base
    of an adapter shares its arrays.
    """
    if start.checkpoint is not None:
        how = {"dtype": policy.config.dtype}
        return load_policy(
            start.checkpoint, how, mesh, template=policy.template, tokenizer=policy.tokenizer
        )
    if start.step is None:
        return policy.at(policy.params.base)
    return policy.at(cast(policy.config, phase_params(start.step, policy.config, mesh)))


def conversing_of(path: str | Path) -> dict:
    """The fields tools, environment and conversation of the config of the run that left what is at a path; {}
    where there is none.
    """
    try:
        config, _ = read_mark(_run_of(path)[0])
    except ValueError:
        return {}
    return {name: config[name] for name in CONVERSING if config.get(name)}


def _run_of(path):
    """(the folder of the run that left what is at a path, the stage that did or "")."""
    if hub_id(path) is None:
        below = as_path(path)
        left = below.parent if below.name in LEFT else below
        for folder in [left, *left.parents][:DEPTH]:
            if is_run(folder):
                return folder, "" if folder == left else left.relative_to(folder).as_posix()
    raise ValueError(f"{path} is not in the folder of a run; give the path of a checkpoint")


def _before(config, stage, path):
    """The stage of R1 that a stage began from."""
    if config["recipe"] == "r1":
        # Here: it brings all of R1
        from deepseek_jax.recipes.r1.run import R1

        starts = {each.name: each.start for each in R1}
        if starts.get(stage):
            return starts[stage]
    raise ValueError(f"what {path} began from is not recorded; give the path of a checkpoint")
