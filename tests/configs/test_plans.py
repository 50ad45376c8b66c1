"""Every experiment can be planned for the devices of its mesh, and holds its arguments there."""

import json

import pytest

from configs import models
from configs.adapted_models import MODELS
from deepseek_jax.models import build_model, count_params
from tests.configs import snapshots
from tests.experiments import CONFIGS, RUNS
from tests.rollout.test_tpu_decode import compile_apart

# The slice of each experiment that names a mesh of many chips; a single v5e for all others
SLICES = {name.partition(":")[0]: topology for name, topology in snapshots.SLICES.items()}
V3 = CONFIGS / "pretrain_v3.py"
ADAPTED = [
    (CONFIGS / f"{name}_lora.py", f"model={model}") for name in ("grpo", "sft") for model in MODELS
]
PLANNED = [*RUNS, (V3, "context=32k"), (V3, "context=128k"), *ADAPTED]
# Of an argument that names another mesh than its file
WIDE = {"model=deepseek_v2_lite": "v5e:4x4"} | {
    arg: "v5e:2x4" for _, arg in RUNS if arg and "mesh=" in arg
}
LIST = """
import json, sys
from deepseek_jax.costs.program import argument_bytes
from launch.planning import topology as slices
from tests.experiments import CONFIGS, load

found = []
for name, arg, topology in json.loads(sys.argv[1]):
    config = load(CONFIGS / f"{name}.py", arg)
    mesh, chip = slices.planned_mesh(topology, config.get("mesh", {}), config.get("model", {}))
    programs = slices.recipes_programs(config, mesh)
    held = {p.name: argument_bytes(p.arguments) + p.beside_bytes for p in programs if not p.needs}
    found.append([chip.hbm_bytes, held, [[p.name, p.tokens, p.after] for p in programs]])
print("result", json.dumps(found))
"""


# Two minutes: 38 experiments are built
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned():
    """{(name, arg): [bytes of a device's memory, {program: bytes of its arguments and of what lies beside
    it}, [[program, tokens, after]]]} of every experiment, listed by one process without checkpoints,
    tokenizers or data.
    """
    jobs = [
        (path.stem, arg, WIDE.get(arg) or SLICES.get(path.stem, "v5e:1x1")) for path, arg in PLANNED
    ]
    found = compile_apart(LIST, json.dumps(jobs), timeout=900)
    return {(name, arg): each for (name, arg, _), each in zip(jobs, found, strict=True)}


def test_the_arguments_of_every_experiments_programs_fit_its_devices(planned):
    """Oracle: the memory of a chip, see costs/chips.py; each config has an update or answers questions.
    Reward models, judges and the training state beside a program count.
    """
    for run, (memory, held, programs) in planned.items():
        assert held and max(held.values()) < memory, (run, held)
        names = {name.rpartition(": ")[2] for name, _, _ in programs}
        assert any(name in ("update", "decode") or name.startswith("stage_") for name in names), run


def test_no_program_stands_before_one_whose_results_it_needs(planned):
    """Oracle: the order of the list, in which names are distinct."""
    for _, _, programs in planned.values():
        names = [name for name, _, _ in programs]
        assert len(set(names)) == len(names)
        for index, (_, _, earlier) in enumerate(programs):
            assert set(earlier) <= set(names[:index])


def test_the_state_of_v3_is_its_parameters_and_two_moments(planned):
    """Oracle: by hand, of 1024 devices: 4 bytes for a master weight and 2 for each moment. Experts, heads and
    MLPs are over all devices; embedding, head, both down-projections of 62 attentions and the input of the
    prediction module over 32. Norms, routers and biases are within 5%. With them 17 bytes for each of 15,360
    x 4,096 tokens.
    """
    _, held, ((_, counted, _), (first, *_)) = planned["pretrain_v3", None]
    over_32 = 2 * 129_280 * 7168 + 62 * 7168 * (1536 + 512 + 64) + 2 * 7168**2
    over_all = count_params(build_model(models.deepseek_v3())) - over_32
    tokens = 15_360 * 4096
    assert counted == tokens and first == "stage_1, before update 1000"
    state = (4 + 2 + 2) * (over_all / 1024 + over_32 / 32)
    assert held["stage_1"] == pytest.approx(state + 17 * tokens / 1024, rel=0.05)
