"""The policy that a run's training started from, found through the records in the run's folder.

The run's config is read as data: no code that it names is run.
"""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from deepseek_jax.checkpoint.left import LEFT, left_in_run, record_of, run_of
from deepseek_jax.checkpoint.locate import check_checkpoint
from deepseek_jax.checkpoint.orbax_params import is_orbax
from deepseek_jax.hub import hub_id
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.recipes.workdir import read_mark
from deepseek_jax.rollout.policy import Policy, find_source, load_policy

# A config with one of these fields answers in conversations
CONVERSING = "tools", "environment", "conversation"


class Start(NamedTuple):
    """Starting point of a training: a checkpoint, or the frozen base of an adapter.

    Attributes:
        checkpoint: Its path or hub name; None for the base of an adapter.
    """

    checkpoint: str | Path | None = None


def find_start(path: str | Path) -> Start:
    """Find the policy that the policy at `path` was trained from.

    Args:
        path: Any path that load_policy reads.

    Returns:
        For an adapter, Start(None). Otherwise the Start of the checkpoint or of the saved
        parameters that the policy's stage began from.

    Raises:
        ValueError: The starting point is unknown, or is no longer there.
    """
    if find_source(path).adapter is not None:
        return Start()
    stage = _stage_of(path)
    run, start = run_of(stage), record_of(stage).get("start")
    if not start:
        raise ValueError(f"{stage} began from no policy; give the path of a checkpoint")
    start_record = record_of(run / start)
    checkpoint = start_record.get("checkpoint")
    if checkpoint is None and not is_orbax(run / start / LEFT[0]):
        raise ValueError(
            f"{stage} began from random parameters, or from what is not there any more; give the path of a "
            "checkpoint"
        )
    # A hub name gets the commit that the run read
    checkpoint = read_mark(run)[1].get("model", {}).get(checkpoint, checkpoint)
    start_path = run / start / LEFT[0] if checkpoint is None else checkpoint
    check_checkpoint(start_path)
    return Start(start_path)


def policy_of_start(start: Start, policy: Policy, mesh: Mesh) -> Policy:
    """Load the policy that `policy` was trained from.

    Args:
        start: The result of find_start.
        policy: The trained policy. The result gets this policy's tokenizer and template. The base
            of an adapter shares arrays with this policy.
        mesh: The mesh for the parameters of a checkpoint.
    """
    if start.checkpoint is not None:
        run_fields = {"dtype": policy.config.dtype}
        return load_policy(
            start.checkpoint, run_fields, mesh, template=policy.template, tokenizer=policy.tokenizer
        )
    # find_start looked at the path of this policy
    assert isinstance(policy.params, AdaptedParams)
    return policy.with_params(policy.params.base)


def conversing_of(path: str | Path) -> dict:
    """Return the fields tools, environment and conversation of the config that trained a policy.

    Args:
        path: What a stage of a run wrote: its folder, its params or its adapter; or the run's
            folder.

    Returns:
        The fields that the config sets; {} if `path` is not in the folder of a run.
    """
    try:
        config, _ = read_mark(run_of(_stage_of(path)))
    except ValueError:
        return {}
    return {name: config[name] for name in CONVERSING if config.get(name)}


def _stage_of(path):
    """Return the folder of the stage that wrote the policy at `path`.

    Raises:
        ValueError: The path is not in the folder of a run.
    """
    if hub_id(path) is None:
        left_path = left_in_run(path)
        stage = left_path.parent if left_path.name in LEFT else left_path
        if record_of(stage):
            return stage
    raise ValueError(f"{path} is not in the folder of a run; give the path of a checkpoint")
