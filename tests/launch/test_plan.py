"""launch/plan.py as a user starts it: a small experiment compiled for TPUs that are not there."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from deepseek_jax.data.batches import joined
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.parallel import make_mesh, put_batch
from deepseek_jax.recipes.pretrain.run import abstract_updates
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
from deepseek_jax.worlds.registry import named_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
from configs import pretrain_small

def get_config(arg=None):
    config = pretrain_small.get_config("fp8=False")
    sizes = dict(hidden_size=256, q_lora_rank=128, kv_lora_rank=128, moe_intermediate_size=128)
    sizes |= dict(qk_nope_head_dim=128, qk_rope_head_dim=128, v_head_dim=128, num_attention_heads=4)
    config.model.update(sizes | dict(num_hidden_layers=2, intermediate_size=512, scan_layers=True))
    config.mesh = dict(data=1, fsdp=2, expert=2)
    return config
"""
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs the wheel libtpu (0.0.42 belongs to jax 0.10.2)",
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path


def planned(folder, *args, before=""):
    """(exit status, stdout, stderr) of one launch. before: Python to run first, in the same process."""
    path = str(ROOT / "launch" / "plan.py")
    program = f"import runpy, sys\n{before}\nrunpy.run_path({path!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


def small_updates():
    """The abstract updates of CONFIG on four of conftest's devices: -> (config, mesh, updates)."""
    module = {}
    exec(CONFIG, module)
    config = module["get_config"]()
    mesh = make_mesh(**config.mesh, devices=jax.devices()[:4])
    return config, mesh, abstract_updates(build(PretrainSettings, config, "config"), mesh)


def shard_bytes(tree):
    """What one device holds of a tree, by the shapes of its shards."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


@needs_libtpu
def test_a_plan_tells_the_bytes_and_operations_of_a_stage(folder):
    """Oracle: the sizes of the shards of state and batch, by hand from the shardings. The compiler pads small
    arrays to whole tiles, here by at most a twentieth of the total. Operations, by their own formula.
    """
    status, out, err = planned(
        folder, "--config=tiny.py", "--topology=v5e:2x2", "--stage=stage_1", "--config.seed=1"
    )
    assert status == 0, err
    assert "4 x TPU v5 lite fsdp=2 expert=2" in out and "stage_2_long" not in out
    _, _, (update, _) = small_updates()
    by_hand = shard_bytes(update.state) + shard_bytes(update.batch)
    found = {
        name.strip(): int(number.replace(",", ""))
        for name, number in re.findall(r"│ ([a-z, ]+) │ ([\d,]+) B", out)
    }
    assert by_hand < found["state and batch"] < 1.05 * by_hand
    assert shard_bytes(update.state) < found["of these, updated in place"]
    total = found["state and batch"] + found["temporaries"]
    assert total <= found["all together"] < 1.01 * total
    assert re.search(r"│ fits +│ \d\.\d% of 16 GiB", out)


def test_without_libtpu_a_plan_says_what_to_install(folder):
    """Oracle: the words a reader needs and exit status 2, where Python finds no libtpu."""
    hide = "import importlib.util as u; f = u.find_spec"
    hide += "; u.find_spec = lambda name, *a: None if name == 'libtpu' else f(name, *a)"
    status, _, err = planned(folder, "--config=tiny.py", "--topology=v5e:2x2", before=hide)
    assert status == 2 and err.strip().endswith("pip install libtpu==0.0.42"), err


@needs_libtpu
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--topology=v9:2x2", "--topology=v9:2x2 is unknown to libtpu"),
        ("--topology=v5e:5x7", "examples: v5e:2x2, v5e:16x16, v5p:2x2x1"),
        ("--topology=v4:2x2x1", "has TPU v4 chips, whose memory and speed are not in"),
        ("--topology=v5e:4x4", "which does not equal the 16 devices"),
        ("--topology=v5e:2x2 --stage=stage1", "did you mean stage_1?"),
        ("--topology=v5e:2x2 --config.recipe=grpo", "config.recipe='grpo' cannot be planned"),
        ("--topology=v5e:2x2 --config.mesh.fsdp=0", "config.mesh.fsdp=0"),
        ("", "Flag --topology must have a value other than None"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_two(folder, args, words):
    """Oracle: the words a reader needs, no traceback."""
    status, _, err = planned(folder, "--config=tiny.py", *args.split())
    assert status == 2 and words in err and "Traceback" not in err, err


def test_an_abstract_batch_is_a_real_one_without_its_numbers():
    """Oracle: the batch that the loop gets: the same keys, shapes, dtypes and places, at the largest size."""
    config, mesh, updates = small_updates()
    tokenizer = named_tokenizer(config.data.tokenizer)
    for update, stage in zip(updates, config.stages.values(), strict=True):
        rows = 16 if update.name == "stage_1" else 4
        documents = [{"text": "0123456789" * 200}] * 50
        sizes = Rows(sequence_length=stage.sequence_length, batch_size=rows)
        batch = next(iter(pack(documents, tokenizer, sizes, seed=0)))
        real = put_batch(mesh, joined(mesh, [batch]))
        planned = dict(update.batch)
        assert planned.pop("mtp_weight").shape == ()
        for name, array in real.items():
            shape = planned.pop(name)
            assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
            assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)
        assert not planned
