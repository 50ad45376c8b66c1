"""launch/plan.py as a user starts it: a small experiment compiled for TPUs that are not there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from deepseek_jax.costs.chips import DEVICES, GIB
from deepseek_jax.costs.compiled import compile_programs
from deepseek_jax.costs.program import argument_bytes
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes.pretrain import programs as of_pretrain
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
from launch.plan import ENVIRONMENT
from launch.topology import planned_mesh
from tests.quick import others_slow

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
# Sampling alone, with as many slots as the argument says
ANSWERS = """
from configs import grpo_small

def get_config(arg=None):
    config = grpo_small.get_config()
    config.rollout.slots = int(arg or 128)
    config.rollout.max_completion_length = 4080
    config.model.max_position_embeddings = 4096
    config.model.dtype = "bfloat16"
    config.prompts_per_step = 4096
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "answers.py").write_text(ANSWERS)
    return folder


def planned(folder, *args, config="tiny.py", before=""):
    """(exit status, stdout, stderr) of one launch. before: Python to run first, in the same process."""
    path = str(ROOT / "launch" / "plan.py")
    program = f"import runpy, sys\n{before}\nrunpy.run_path({path!r}, run_name='__main__')"
    flags = [f"--config={config}", "--cache=cache", *args]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout, done.stderr


def small_programs():
    """The Programs of CONFIG on four of conftest's devices, by name."""
    module = {}
    exec(CONFIG, module)
    config = module["get_config"]()
    mesh = make_mesh(**config.mesh, devices=jax.devices()[:4])
    programs = of_pretrain.programs(build(PretrainSettings, config, "config"), mesh)
    return {program.name: program for program in programs}


def rows_of(table):
    """{name: text} of the rows of a printed table."""
    return dict(re.findall(r"│ ([^│]+?) +│ (.+?) +│", table))


def bytes_in(text):
    return int(text.split()[0].replace(",", ""))


@pytest.mark.slow
def test_a_plan_shows_what_one_device_holds_and_does(folder):
    """Oracle: the sizes of the shards of state and batch, by hand from the shardings: the compiler pads small
    arrays to whole tiles, here by at most a twentieth of the total. The state is updated in place. Of the
    stages only the one that --program names; a second plan reads the cache's file.
    """
    args = ("--topology=v5e:2x2", "--program=stage_1", "--config.seed=1")
    status, out, err = planned(folder, *args)
    assert status == 0, err
    assert "4 x TPU v5 lite fsdp=2 expert=2" in out and "stage_2_long" not in out
    program = small_programs()["stage_1"]
    assert program.sizes in out
    found = rows_of(out)
    arguments, updated, peak = (
        bytes_in(found[f"{name}, bytes"]) for name in ("arguments", "updated", "peak")
    )
    by_hand = argument_bytes(program.arguments)
    # A key of random numbers is 8 bytes, and counts as one number of 4 in its shape
    assert 0.999 * by_hand < arguments < 1.05 * by_hand
    assert argument_bytes(program.arguments[0]) <= updated <= arguments <= peak
    share = peak / DEVICES["TPU v5 lite"].hbm_bytes
    assert found["fits"] == f"{share:.1%} of 15.75 GiB"
    needed, executed = map(
        float, re.match(r"(\S+), (\S+):", found["FLOPs needed, carried out"]).groups()
    )
    assert needed == pytest.approx(program.flops / 4, rel=1e-3)
    assert needed < executed < 20 * needed
    (row,) = [line for line in out.splitlines() if line.strip().startswith("stage_1 ")][-1:]
    assert " yes " in row and f" {peak / GIB:.2f} " in row
    files = list((folder / "cache").iterdir())
    assert planned(folder, *args) == (0, out, err) and list((folder / "cache").iterdir()) == files


@pytest.mark.slow
def test_a_single_chip_and_the_programs_that_one_needs(folder):
    """Oracle: by hand: a decoding step takes weights and empty slots, and no other program is compiled; with
    4096 slots of 4096 tokens each, caches of 2 layers x (32 + 16) numbers of 2 bytes are 3 GiB and up.
    """
    args = ("--topology=v5e:1x1", "--program=decode")
    status, out, err = planned(folder, *args, config="answers.py:128")
    assert status == 0, err
    listed = [line.split()[0] for line in out.splitlines() if re.search(r" (yes|NO) ", line)]
    assert listed == ["weights", "slots", "decode"]
    assert "1 x TPU v5 lite" in out and "128 slots x 4,096" in out


def test_what_does_not_fit_is_said_with_what_would_help(folder):
    """Oracle: exit status 1; fields of the config by name; the device's memory."""
    args = ("--topology=v5e:1x1", "--program=slots")
    status, out, err = planned(folder, *args, config="answers.py:65536")
    assert status == 1 and "Traceback" not in err, err
    assert "does not fit" in out and re.search(r"slots .* NO ", out)
    assert "fewer slots, or a lower max_completion_length or max_prompt_length" in out
    assert "mesh.fsdp (now 1) or mesh.expert (now 1)" in out


@pytest.mark.slow
def test_gpus_are_planned_by_shapes_alone(folder):
    """Oracle: by hand: the bytes of the arguments on a device, in GiB; FLOPs needed over the peak of an H100,
    989.4 TFLOP a second; eight devices where two named axes make four and data has the rest. Without libtpu.
    """
    status, out, err = planned(
        folder, "--topology=h100:4", before="import sys; sys.modules['libtpu'] = None"
    )
    assert status == 0, err
    for name, program in small_programs().items():
        (row,) = [line.split() for line in out.splitlines() if line.strip().startswith(name + " ")]
        held, tera, seconds = row[-3:]
        assert float(held) == pytest.approx(argument_bytes(program.arguments) / GIB, abs=0.0051)
        assert float(tera) == pytest.approx(program.flops / 4 / 1e12, rel=1e-2)
        assert float(seconds) == pytest.approx(program.flops / 4 / 989.4e12, rel=1e-2)
    assert "NVIDIA H100, without a compiler" in out


def test_without_libtpu_a_plan_says_what_to_install(folder):
    """Oracle: the words a reader needs and exit status 2, where Python finds no libtpu."""
    hide = "import importlib.util as u; f = u.find_spec"
    hide += "; u.find_spec = lambda name, *a: None if name == 'libtpu' else f(name, *a)"
    status, _, err = planned(folder, "--topology=v5e:2x2", before=hide)
    assert status == 2 and err.strip().endswith("pip install libtpu==0.0.42"), err


MISTAKES = [
    ("--topology=v9:2x2", "--topology=v9:2x2 is unknown to libtpu"),
    ("--topology=v5e:5x7", "examples: v5e:1x1, v5e:4x4, v5e:16x16"),
    ("--topology=v4:2x2x1", "has TPU v4 chips, whose memory and speed are not in"),
    ("--topology=v5e:4x4", "which does not equal the 16 devices"),
    ("--topology=h100:8", "which does not equal the 8 devices"),
    ("--topology=h100:many", "--topology=h100:many needs a number of GPUs"),
    ("--topology=v5e:2x2 --program=stage1", "did you mean stage_1?"),
    (
        "--topology=v5e:2x2 --config.recipe=evaluate",
        "config.recipe='evaluate' cannot be planned",
    ),
    ("--topology=v5e:2x2 --config.recipe=grop", "did you mean grpo?"),
    ("--topology=v5e:2x2 --config.mesh.fsdp=0", "config.mesh.fsdp=0"),
    ("", "Flag --topology must have a value other than None"),
]


@pytest.mark.parametrize(("args", "words"), others_slow(MISTAKES, *(MISTAKES[i] for i in (0, 3))))
def test_a_mistake_is_one_message_and_exit_status_two(folder, args, words):
    """Oracle: the words a reader needs, on one line, and no traceback."""
    status, _, err = planned(folder, *args.split())
    assert status == 2 and words in err and "Traceback" not in err, err
    _, message = err.split("error: ")
    assert message.strip().count("\n") == 0


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x2"])
def test_a_chips_collectives_overlap_with_other_work(monkeypatch, topology):
    """Oracle: the compiled program, where without costs.chips' options none does: every gather of weights and
    every reduce-scatter of gradients along fsdp starts and ends apart.
    """
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    module = {}
    exec(CONFIG, module)
    config = module["get_config"]()
    mesh, _ = planned_mesh(topology, config.mesh)
    programs = of_pretrain.programs(build(PretrainSettings, config, "config"), mesh)
    _, compiled = next(compile_programs(programs[:1], None))
    for kind in ("all-gather", "reduce-scatter"):
        moved = compiled.cost.collectives[kind, ("fsdp",)]
        assert moved.count and moved.asynchronous == moved.count
