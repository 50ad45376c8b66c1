"""launch/plan.py as a user starts it: a small experiment compiled for TPUs that are not there."""

import re
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from deepseek_jax import recipes
from deepseek_jax.costs.chips import DEVICES, GIB
from deepseek_jax.costs.program import Program, ResidentArrays, argument_bytes, everywhere
from deepseek_jax.errors import CannotPlan
from deepseek_jax.parallel import make_mesh
from deepseek_jax.recipes import driver
from deepseek_jax.recipes.pretrain import run as pretrain
from deepseek_jax.recipes.pretrain.settings import PretrainSettings
from deepseek_jax.settings import build
from launch.plan import ENVIRONMENT
from launch.planning.compiled import compile_programs
from launch.planning.records import CompiledProgram, Memory
from launch.planning.remedies import remedies
from launch.planning.topology import planned_mesh, recipes_programs
from tests import warm
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
UNPLANNED = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Unplanned:
    recipe: str

SETTINGS = Unplanned

def stages(s):
    return []
"""


# An embedding of 4 GiB, with what reinforcement holds beside a rollout; the dtype of a reward model
BESIDE = """
from configs import grpo_small

def get_config(arg=None):
    config = grpo_small.get_config()
    config.unlock()
    del config.base
    config.init_from = "nowhere"
    config.model.update(dict(vocab_size=2**20, hidden_size=1024, tie_word_embeddings=True))
    config.loss.kl_coef = 0.1
    config.reward_models = dict(liked=dict(path="nowhere", dtype=arg))
    config.rewards.liked = 1.0
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "answers.py").write_text(ANSWERS)
    (folder / "beside.py").write_text(BESIDE)
    return folder


def planned(folder, *args, config="tiny.py", before=""):
    """(exit status, stdout, stderr) of one launch. before: Python to run first, in the same process."""
    path = str(ROOT / "launch" / "plan.py")
    program = f"import runpy, sys\n{before}\nrunpy.run_path({path!r}, run_name='__main__')"
    flags = [f"--config={config}", "--cache=cache", *args]
    done = warm.run("-c", program, *flags, cwd=folder, timeout=600)
    return done.returncode, done.stdout, done.stderr


def small_programs():
    """The Programs of CONFIG on four of conftest's devices, by name."""
    module = {}
    exec(CONFIG, module)
    config = module["get_config"]()
    mesh = make_mesh(**config.mesh, devices=jax.devices()[:4])
    programs = driver.plan(pretrain, build(PretrainSettings, config, "config"), mesh)
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
    stages only the one that --program names; a second plan reads the cache's file, and says so. The page is
    100 columns wide, and a line follows the compilation.
    """
    args = ("--topology=v5e:2x2", "--program=stage_1", "--config.seed=1")
    status, out, err = planned(folder, *args)
    assert status == 0, err
    assert "4 x TPU v5 lite fsdp=2 expert=2" in out and "stage_2_long" not in out
    assert "placement: fsdp 1 x 2, expert 2 x 1 of 2 x 2" in out
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
    status, again, err = planned(folder, *args)
    assert status == 0 and list((folder / "cache").iterdir()) == files, err
    assert "stage_1: compiled in " in out and "stage_1: from the cache, " in again
    page, same = (text[text.index("one TPU") :] for text in (out, again))
    assert page == same and max(map(len, page.splitlines())) <= 100


@pytest.mark.slow
def test_a_single_chip_and_the_programs_that_one_needs(folder):
    """Oracle: by hand: a decoding step takes weights and empty slots, beside it lie a chunk's prompts, whose
    size needs no compiler, and no other program is compiled; with 4096 slots of 4096 tokens each, caches of 2
    layers x (32 + 16) numbers of 2 bytes are 3 GiB and up.
    """
    args = ("--topology=v5e:1x1", "--program=decode")
    status, out, err = planned(folder, *args, config="answers.py:128")
    assert status == 0, err
    rows = [line.split(" yes ")[0].strip() for line in out.splitlines() if " yes " in line]
    assert rows == ["weights", "slots", "decode, token"]
    assert bytes_in(rows_of(out)["beside it, the results of prefill, by its shapes"]) > 0
    assert "1 x TPU v5 lite" in out and "128 slots x 4,096" in out
    # 4096 x 8 requests over 128 slots, of which 4 end together: 8,160 waits, a growth and the end
    assert "at most 8,162 in a step" in out and f"at most {256 * 4080:,} in a step" in out


def test_what_does_not_fit_is_said_with_what_would_help(folder):
    """Oracle: exit status 1; fields of the config by name; the device's memory."""
    args = ("--topology=v5e:1x1", "--program=slots")
    status, out, err = planned(folder, *args, config="answers.py:65536")
    assert status == 1 and "Traceback" not in err, err
    assert "does not fit" in out and re.search(r"slots .* NO ", out)
    assert "fewer slots, or a lower max_completion_length or max_prompt_length" in out
    assert "mesh.fsdp (now 1) or mesh.expert (now 1)" in out


def test_what_lies_beside_a_program_is_added_to_it(folder):
    """Oracle: by hand, in GiB: an embedding of 2^20 x 1024 numbers in float32, which is the head too, is 4:
    the parameters, their copy for decoding, two moments, a fixed reference and a reward model exceed a v5e's
    15.75 beside small caches. What makes each smaller comes with its name, the largest first, and helps.
    """
    status, out, err = planned(
        folder, "--topology=v5e:1x1", "--program=slots", config="beside.py:float32"
    )
    assert status == 1 and "Traceback" not in err, err
    found = rows_of(out)
    parts = {
        "the parameters": 4,
        "the results of weights, by its shapes": 4,
        "the optimizer's moments": 8,
        "the reference": 4,
        "reward model liked": 4,
    }
    held = {name: bytes_in(found[f"beside it, {name}"]) for name in parts}
    for name, gib in parts.items():
        assert held[name] / GIB == pytest.approx(gib, rel=0.05), name
    at_once = bytes_in(found["peak, bytes"]) + sum(held.values())
    assert found["does not fit"] == f"{at_once / (15.75 * GIB):.1%} of 15.75 GiB"
    excess = at_once / GIB - 15.75
    assert f"{excess:.2f} GiB are too much" in out and re.search(r" slots .* NO ", out)
    moments, reward = (
        "optimizer.moment_memory='host', or optimizer.moment_dtype='bfloat16', for the optimizer's moments",
        "reward_models.liked.dtype='bfloat16', for reward model liked",
    )
    assert 0 < out.find(moments) < out.find(reward)
    # With what it proposes, it fits
    args = "--topology=v5e:1x1", "--program=slots", "--config.optimizer.moment_memory=host"
    status, out, err = planned(folder, *args, config="beside.py:bfloat16")
    assert status == 0, err
    found = rows_of(out)
    assert bytes_in(found["beside it, the optimizer's moments"]) < GIB / 1000
    assert bytes_in(found["beside it, reward model liked"]) / GIB == pytest.approx(2, rel=0.05)


def test_the_excess_of_what_compiles_is_said_in_gib():
    """Oracle: by hand: a peak of 20 GiB and 1.5 beside it are 5.75 above a v5e's 15.75; 12 of the 20 are
    arguments.
    """
    chip, mesh = DEVICES["TPU v5 lite"], make_mesh(devices=jax.devices()[:1])
    tree = everywhere(mesh, (3 * 2**28,), "bfloat16")
    held = ResidentArrays("the reference", tree, "reference_memory='host'")
    program = Program("a", None, (), mesh, tokens=0, flops=0.0, sizes="", beside=(held,))
    compiled = CompiledProgram(memory=Memory(12 * GIB, 0, 0, 8 * GIB, 20 * GIB))
    first, second, *_ = remedies(program, compiled, chip)
    assert first == (
        "5.75 GiB are too much; arguments hold 12.00, 8.00 are temporaries and new results, 1.50 are the "
        "reference"
    )
    assert second == "reference_memory='host', for the reference"


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
        held, beside, tera, seconds = row[-4:]
        assert float(held) == pytest.approx(argument_bytes(program.arguments) / GIB, abs=0.0051)
        assert float(beside) == 0
        assert float(tera) == pytest.approx(program.flops / 4 / 1e12, rel=1e-2)
        assert float(seconds) == pytest.approx(program.flops / 4 / 989.4e12, rel=1e-2)
    assert "NVIDIA H100, without a compiler" in out


def test_without_libtpu_a_plan_says_what_to_install(folder):
    """Oracle: the words a reader needs and exit status 2, where Python finds no libtpu."""
    hide = "import importlib.util as u; f = u.find_spec"
    hide += "; u.find_spec = lambda name, *a: None if name == 'libtpu' else f(name, *a)"
    status, _, err = planned(folder, "--topology=v5e:2x2", before=hide)
    assert status == 2 and err.strip().endswith(f'pip install "jax[tpu]=={jax.__version__}"'), err


MISTAKES = [
    ("--topology=v9:2x2", "--topology=v9:2x2 is unknown to libtpu"),
    ("--topology=v4:2x2x1", "has TPU v4 chips, whose memory and speed are not in"),
    ("--topology=v5e:4x4", "which does not equal the 16 devices"),
    ("--topology=h100:8", "which does not equal the 8 devices"),
    ("--topology=v5e:2x2 --program=stage1", "did you mean stage_1?"),
]


@pytest.mark.parametrize(("args", "words"), others_slow(MISTAKES, MISTAKES[0], MISTAKES[2]))
def test_a_mistake_is_one_message_and_exit_status_two(folder, args, words):
    """Oracle: the words a reader needs, on one line, and no traceback."""
    status, _, err = planned(folder, *args.split())
    assert status == 2 and words in err and "Traceback" not in err, err
    _, message = err.split("error: ")
    assert message.strip().count("\n") == 0


def test_a_recipe_that_compiles_nothing_runs_without_a_plan(tmp_path, monkeypatch):
    """Oracle: the words a reader needs, of a recipe without stages."""
    (tmp_path / "unplanned.py").write_text(UNPLANNED)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    with pytest.raises(CannotPlan, match="config.recipe='unplanned' lists no programs"):
        recipes_programs(ConfigDict({"recipe": "unplanned"}), None)


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
    programs = driver.plan(pretrain, build(PretrainSettings, config, "config"), mesh)
    _, compiled = next(compile_programs(programs[:1], None))
    for kind in ("all-gather", "reduce-scatter"):
        moved = compiled.cost.collectives[kind, ("fsdp",)]
        assert moved.count and moved.asynchronous == moved.count
