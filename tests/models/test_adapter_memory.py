"""An update of adapters compiled for a TPU, without one: what it holds beside its arguments."""

import json

import pytest

from tests.rollout.test_tpu_decode import compile_apart

COMPILE = """
import json, sys
from deepseek_jax.costs.compiled import compile_programs
from deepseek_jax.costs.program import argument_bytes
from launch import topology as slices
from tests.experiments import CONFIGS, load

config = load(CONFIGS / "sft_lora.py", "model=r1_distill_qwen_1_5b")
config.update(dict(batch_size=1, sequence_length=256, micro_batches=1, num_steps=4))
if json.loads(sys.argv[1]):
    config.adapter.quantize = "int8"
mesh, _ = slices.planned_mesh("v5e:1x1", {})
(update,) = [p for p in slices.recipes_programs(config, mesh) if p.name == "update"]
((_, compiled),) = compile_programs([update])
memory = compiled.memory
state = argument_bytes(update.arguments[:1])
print("result", json.dumps([memory.temporaries, memory.updated, state]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [False, True])
def test_an_update_holds_neither_a_second_model_nor_a_whole_gradient(quantize):
    """Oracle: by hand: in bfloat16 the 28 layers take 2.6 GB, and their gradients in float32 5.2 GB; beside
    256 tokens there is room for the work of few layers. The state, base included, is updated in place.
    """
    temporaries, aliased, state = compile_apart(COMPILE, json.dumps(quantize), timeout=600)
    assert temporaries < 0.6e9
    assert aliased >= 0.99 * state
    # 1.31 B weights of layers, 0.47 B of embedding and head in bfloat16, 3 x 4 bytes for each of 18.5 M
    layers = 1.31e9 * (1 if quantize else 2)
    assert state == pytest.approx(layers + 0.47e9 * 2 + 12 * 18.46e6, rel=0.02)
