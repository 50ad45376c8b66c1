"""What a policy that a run left began from. The run's config is read as data: nothing that it names runs."""

from pathlib import Path

from jax.sharding import Mesh

from deepseek_jax.checkpoint.left import LEFT, is_run
from deepseek_jax.checkpoint.phase import phase_params
from deepseek_jax.files import as_path
from deepseek_jax.hub import hub_id
from deepseek_jax.models.adapters import Adapted
from deepseek_jax.recipes.short import BASE
from deepseek_jax.recipes.workdir import read_mark
from deepseek_jax.rollout.policy import Policy, load_policy
from deepseek_jax.rollout.weights import cast

# How far the folder of a run is above what one of its stages left
DEPTH = 3


def began_from(path: str | Path, policy: Policy, mesh: Mesh) -> Policy:
    """The Policy, with the same tokenizer and template, that training began from.

    path: of `policy`, as for load_policy. Of an adapter this is its base, whose arrays both share; of a run
    the checkpoint that it was given, or the base that it pre-trained; of a stage of R1 the stage before.
    Raises ValueError where this is not known, or is not there any more.
    """
    if isinstance(policy.params, Adapted):
        return policy.at(policy.params.base)
    folder, stage = _run_of(path)
    config, commits = read_mark(folder)
    if stage:
        return _loaded(folder / _before(config, stage, path) / LEFT[0], policy, mesh)
    start = config.get("init_from")
    if start is not None:
        # Of a name on the hub the commit that the run read
        return _loaded(commits.get("model", {}).get(start, start), policy, mesh)
    base = config.get("base")
    if base is None:
        raise ValueError(f"{folder} began from random parameters; give the path of a checkpoint")
    kept = base.get("checkpoints", {})
    best_is = kept.get("best_is", "lowest") if kept.get("best") else None
    params = phase_params(folder / BASE, policy.config, mesh, best_is)
    return policy.at(cast(policy.config, params))


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


def _loaded(path, policy, mesh):
    how = {"dtype": policy.config.dtype}
    return load_policy(path, how, mesh, template=policy.template, tokenizer=policy.tokenizer)
