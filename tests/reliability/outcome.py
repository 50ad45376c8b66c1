"""What a run leaves: its measurements, metrics, texts and parameters, for tests that compare two runs."""

import json

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from deepseek_jax.training.metrics import read_phases
from tests.recipes.small import CLOCKS

# Folders whose files have names of their own in every run: of TensorBoard, and within Orbax' checkpoints
UNIQUE = {"tensorboard", "d"}


def assert_equal(workdir, other):
    """Two runs have left the same files, numbers, texts and parameters, bit for bit."""
    assert not _names(workdir) ^ _names(other)
    (ours, our_params), (theirs, their_params) = left(workdir), left(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
    assert our_params.keys() == their_params.keys()
    jax.tree.map(np.testing.assert_array_equal, our_params, their_params)


def left(workdir):
    """(name -> what a run's file of JSON or of text says, name -> parameters that it has saved)."""
    texts = {str(p.relative_to(workdir)): _read(p) for p in sorted(workdir.rglob("*.json*"))}
    texts["metrics.jsonl"] = read_phases(workdir / "metrics.jsonl")
    # The folders of arrays that save_orbax and save_reward_model write
    saved = [p for name in ("params", "head") for p in workdir.rglob(name)]
    saved = [p for p in saved if ocp.is_orbax_checkpoint(p)]
    params = {str(p.relative_to(workdir)): ocp.load(p) for p in saved}
    return _without_clocks(texts, workdir), params


def _read(path):
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else text.splitlines()


def _without_clocks(value, workdir):
    """What JSON holds, without times and memory, and without the name of the work directory."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not k.endswith(CLOCKS)}
        return {k: _without_clocks(v, workdir) for k, v in kept.items()}
    if isinstance(value, list):
        return [_without_clocks(v, workdir) for v in value]
    return value.replace(str(workdir), "") if isinstance(value, str) else value


def _names(workdir):
    paths = [path.relative_to(workdir) for path in workdir.rglob("*")]
    return {str(path) for path in paths if not UNIQUE & set(path.parts)}
