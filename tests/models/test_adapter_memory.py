"""An update of adapters compiled for a TPU, without one: what it holds beside its arguments."""

import json

import pytest

from tests.rollout.test_tpu_decode import compile_apart

COMPILE = """
import json, sys
from deepseek_jax.costs.program import argument_bytes
from launch.planning import topology as slices
from launch.planning.compiled import compile_programs
from tests.caches import CACHES
from tests.experiments import CONFIGS, load

name, model, fields, quantize, topology = json.loads(sys.argv[1])
config = load(CONFIGS / f"{name}_lora.py", f"model={model}")
config.update(fields)
if quantize:
    config.adapter = dict(config.adapter.to_dict(), quantize=quantize)
mesh, _ = slices.planned_mesh(topology, config.get("mesh", {}))
(update,) = [p for p in slices.recipes_programs(config, mesh) if p.name == "update"]
((_, compiled),) = compile_programs([update], CACHES / "plans")
memory = compiled.memory
state = argument_bytes(update.arguments[:1])
print("result", json.dumps([memory.temporaries, memory.updated, state, memory.peak]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_an_update_holds_neither_a_second_model_nor_a_whole_gradient(quantize):
    """Oracle: by hand: in bfloat16 the 28 layers take 2.6 GB, and their gradients in float32 5.2 GB; beside
    256 tokens there is room for the work of few layers. The state, base included, is updated in place.
    """
    fields = dict(batch_size=1, sequence_length=256, micro_batches=1)
    job = json.dumps(["sft", "r1_distill_qwen_1_5b", fields, quantize, "v5e:1x1"])
    temporaries, aliased, state, _ = compile_apart(COMPILE, job, timeout=600)
    assert temporaries < 0.6e9
    assert aliased >= 0.99 * state
    # 1.31 B weights of layers, 0.47 B of embedding and head in bfloat16, 3 x 4 bytes for each of 18.5 M
    layers = 1.31e9 * (1 if quantize else 2)
    assert state == pytest.approx(layers + 0.47e9 * 2 + 12 * 18.46e6, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, model, topology, gib",
    [
        ("grpo", "qwen2_5_1_5b", "v5e:1x1", 6),
        ("grpo", "qwen3_0_6b", "v5e:1x1", 11),
        ("grpo", "r1_distill_qwen_7b", "v5e:1x1", 13),
        ("grpo", "deepseek_v2_lite", "v5e:4x4", 5),
        ("sft", "qwen2_5_1_5b", "v5e:1x1", 6),
        ("sft", "qwen3_0_6b", "v5e:1x1", 11),
        ("sft", "r1_distill_qwen_1_5b", "v5e:1x1", 6),
        ("sft", "r1_distill_qwen_7b", "v5e:1x1", 12),
        ("sft", "deepseek_v2_lite", "v5e:4x4", 9),
    ],
)
def test_an_update_of_a_config_fits_its_slice(name, model, topology, gib):
    """Oracle: the peak that the compiler counts, below a round number near what launch/pods.md says of the
    plan. A v5e chip has 15.75 GiB.
    """
    *_, peak = compile_apart(COMPILE, json.dumps([name, model, {}, None, topology]), timeout=900)
    assert peak < gib * 2**30
