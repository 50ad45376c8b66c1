"""What a run leaves: its measurements, metrics, texts and parameters, for tests that compare two runs."""

import json
import re
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from deepseek_jax.checkpoint import load_orbax
from deepseek_jax.checkpoint.left import left_in_run
from deepseek_jax.checkpoint.reward_params import load_reward_model
from deepseek_jax.training.boards import OTHER, group_of
from deepseek_jax.training.metrics import read_phases
from tests.recipes.small import CLOCKS, one_device

# float32, summed in another order between processes than within one
CLOSE = dict(rtol=1e-3, atol=2e-5)
# Of a count of tokens an expert: rounding sends a few of those that lie between two experts to the other
COUNTED = {"max_vio": dict(rtol=0, atol=0.02)}
# Of a parameter's norm: Adam makes a whole step of the rounding errors of a gradient that is nearly 0
FAR = 1e-3
# Folders whose files have names of their own in every run: of TensorBoard, and within Orbax' checkpoints
UNIQUE = {"tensorboard", "d"}
ADAPTER = "adapter_model.safetensors"
ROOT = Path(__file__).resolve().parents[2]


def assert_names(error, words):
    """A message has these words, and no more than one path in the config before them."""
    message = str(error.value)
    assert words in message and "config.config" not in message


def scores_in(workdir, stage):
    """What a stage that measures has found."""
    return json.loads((workdir / stage / "scores.json").read_text())


def assert_equal(workdir, other):
    """Two runs have left the same files, numbers, texts and parameters, bit for bit."""
    left_by_one = _names(workdir) ^ _names(other)
    assert not left_by_one, f"only one of the runs has {sorted(left_by_one)}"
    (ours, our_params), (theirs, their_params) = left(workdir), left(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
    assert our_params.keys() == their_params.keys()
    jax.tree.map(np.testing.assert_array_equal, our_params, their_params)


def without_group(workdir):
    """The metrics of a run that the boards show in no group of training.boards."""
    lines = [line for phase in read_phases(workdir / "metrics.jsonl").values() for line in phase]
    names = {name for line in lines for name in line} - {"step", "phase"}
    return {name for name in names if group_of(name) == OTHER}


def unlisted(workdir):
    """The files of a run that the table "What a run leaves" of launch/README.md does not name."""
    text = (ROOT / "launch" / "README.md").read_text().partition("## What a run leaves\n")[2]
    rows = re.findall(r"^\| (`[^|]+) \|", text.partition("\n## ")[0], re.M)
    names = [name for row in rows for name in re.findall("`([^`]+)`", row)]
    assert len(names) > 20
    # A folder stands for all that is in it, STAGE for the folder of a stage
    patterns = [re.escape(name) + (".*" if name.endswith("/") else "") for name in names]
    patterns = [name.replace("STAGE", ".+").replace(r"\*", "[a-z]+") for name in patterns]
    files = [p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file()]
    return [file for file in files if not any(re.fullmatch(p, file) for p in patterns)]


def left(workdir):
    """(name -> what a run's file of JSON or of text says, name -> parameters that it has saved)."""
    texts = {str(p.relative_to(workdir)): _read(p) for p in sorted(workdir.rglob("*.json*"))}
    texts["metrics.jsonl"] = read_phases(workdir / "metrics.jsonl")
    # The folders of arrays that save_orbax and save_reward_model write
    saved = [p for name in ("params", "head") for p in workdir.rglob(name)]
    saved = [p for p in saved if ocp.is_orbax_checkpoint(p)]
    params = {str(p.relative_to(workdir)): load_arrays(p) for p in saved}
    params |= {str(p.relative_to(workdir)): load_file(p) for p in workdir.rglob(ADAPTER)}
    return without_clocks(texts, workdir), params


def load_arrays(folder):
    """The arrays of a folder, wherever they were saved, on one device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def here(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return ocp.load(folder, jax.tree.map(here, ocp.metadata(folder).metadata))


def _read(path):
    text = path.read_text()
    if path.suffix == ".json":
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


def without_clocks(value, workdir):
    """What JSON holds, without times and memory, without the name of the work directory, and without what
    run.json says of each start.
    """
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not k.endswith(CLOCKS) and k != "starts"}
        return {k: without_clocks(v, workdir) for k, v in kept.items()}
    if isinstance(value, list):
        return [without_clocks(v, workdir) for v in value]
    return value.replace(str(workdir), "") if isinstance(value, str) else value


def _names(workdir):
    paths = [path.relative_to(workdir) for path in workdir.rglob("*")]
    return {str(path) for path in paths if not UNIQUE & set(path.parts)}


def assert_near(case, ours, theirs):
    """Two work directories of a case hold the same numbers, texts and parameters, but for rounding."""
    lines = [read_phases(each / "metrics.jsonl") for each in (ours, theirs)]
    assert_close(*({p: [_timeless(r) for r in of] for p, of in each.items()} for each in lines))
    for pattern in case.says:
        paths = [path.relative_to(theirs) for path in sorted(theirs.glob(pattern))]
        assert paths, pattern
        for path in paths:
            assert_close(_read(ours / path), _read(theirs / path), str(path))
    for stage in case.leaves:
        params = (_params(left_in_run(each / stage)) for each in (ours, theirs))
        jax.tree.map(_assert_close_arrays, *params)


def _timeless(record):
    return {name: value for name, value in record.items() if not name.endswith(CLOCKS)}


def _params(folder):
    if (folder / ADAPTER).exists():
        return load_file(folder / ADAPTER)
    load = load_reward_model if (folder / "head").exists() else load_orbax
    return load(folder, mesh=one_device())[1]


def _assert_close_arrays(ours, theirs):
    distance = np.linalg.norm(np.float64(ours) - np.float64(theirs))
    assert distance <= FAR * np.linalg.norm(theirs), distance


def assert_close(ours, theirs, where=""):
    """Two trees of JSON: floats are close, everything else is equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours:
            assert_close(ours[name], theirs[name], f"{where}/{name}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_close(*pair, f"{where}/{number}")
    elif isinstance(ours, float) and isinstance(theirs, float):
        limits = COUNTED.get(where.rpartition("/")[2], CLOSE)
        np.testing.assert_allclose(ours, theirs, **limits, err_msg=where)
    else:
        assert ours == theirs, where
