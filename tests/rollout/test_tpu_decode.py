"""Decoding compiled for a TPU, without one: what the compiler makes of it there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import json
import jax
from jax.experimental import topologies
from deepseek_jax.models import ModelConfig
from deepseek_jax.rollout import steps
from deepseek_jax.rollout.sampling import Sampling
from tests.ops.test_platform import shapes_of_params

config = ModelConfig(
    model_type="llama", vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, dtype="bfloat16",
)
device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
place = jax.sharding.SingleDeviceSharding(device)

def shapes(function, *arguments):
    made = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), made)

with jax.default_device(device):
    weights = shapes(lambda params: steps.decoding_weights(config, params), shapes_of_params(config))
    tables = shapes(lambda: steps.rotations(config, 2048))
    slots = shapes(lambda: steps.empty_slots(config, 16, 1024, 1024, 1024))
    stop = shapes(lambda: jax.numpy.int32(16))
    traced = steps.decode.trace(config, Sampling(), (), weights, tables, slots, stop)
    program = traced.lower(lowering_platforms=("tpu",)).compile()
cache = slots.caches[0]["k"]
print("result", json.dumps([program.memory_analysis().temp_size_in_bytes, 2 * cache.size]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU needs the wheel libtpu (0.0.42 belongs to jax 0.10.2)",
)
def test_a_decoding_step_on_tpu_copies_no_cache():
    """Oracle: the bytes that the compiler counts: beside its arguments the loop holds less than one of its
    eight caches.
    """
    here = str(Path(__file__).parents[2])
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
        "TPU_SKIP_MDS_QUERY": "1",  # ask no cloud what machine this is
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu locks the whole machine otherwise
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    temporary, cache = json.loads(done.stdout.split("result ")[1])
    assert temporary < cache
