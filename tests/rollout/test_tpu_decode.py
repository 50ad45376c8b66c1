"""Decoding compiled for a TPU, without one: what the compiler makes of it there."""

import json
import os
from pathlib import Path

import pytest

from launch.planning.topology import ENVIRONMENT
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
COMPILE = """
import json
import jax
from jax.experimental import topologies
from deepseek_jax.models import ModelConfig
from deepseek_jax.rollout import decode
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding
from tests.ops.test_platform import shapes_of_params

config = ModelConfig(
    model_type="llama", vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, dtype="bfloat16",
)
how = Decoding(config)
device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
place = jax.sharding.SingleDeviceSharding(device)

def shapes(function, *arguments):
    made = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), made)

with jax.default_device(device):
    weights = shapes(lambda params: decode.decoding_weights(how, params), shapes_of_params(config))
    tables = shapes(lambda: decode.rotations(config, 2048))
    slots = shapes(lambda: decode.empty_slots(how, 16, 1024, 1024, 1024))
    stop = shapes(lambda: jax.numpy.int32(16))
    traced = decode.decode.trace(how, Sampling(), (), weights, tables, slots, stop)
    program = traced.lower(lowering_platforms=("tpu",)).compile()
cache = slots.caches[0]["k"]
print("result", json.dumps([program.memory_analysis().temp_size_in_bytes, 2 * cache.size]))
"""


ON_A_POD = """
import json, sys
import jax
from jax.experimental import topologies
from configs import models
from configs.r1_zero import get_config
from deepseek_jax.checkpoint.tree import abstract_params, from_paths
from deepseek_jax.models import build_model
from deepseek_jax.parallel import make_mesh
from deepseek_jax.parallel.decoding import decoding_mesh
from deepseek_jax.rollout import decode, engine
from deepseek_jax.rollout.sampling import Sampling
from deepseek_jax.rollout.slots import Decoding

name, topology, sizes, slots, prompt_room, completion_room = json.loads(sys.argv[1])
config = build_model(getattr(models, name)() | {"dtype": "bfloat16"})
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = make_mesh(**sizes, devices=devices)
params = from_paths(abstract_params(config, mesh=mesh))
mesh = decoding_mesh(mesh, config.num_attention_heads)
how = Decoding(engine.rollout_config(config, mesh))
everywhere = jax.NamedSharding(mesh, jax.P())

def compiled(function, *arguments):
    lowered = function.trace(*arguments).lower(lowering_platforms=("tpu",))
    program = lowered.compile()
    place = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
    return program, jax.tree.map(place, lowered.out_info, program.output_shardings)

with jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]):
    _, weights = compiled(decode.decoding_weights, how, params)
    _, tables = compiled(decode.rotations, config, prompt_room + completion_room)
    room = prompt_room, completion_room, completion_room
    _, state = compiled(decode.empty_slots, how, slots, *room)
    ends = jax.ShapeDtypeStruct((), "int32", sharding=everywhere)
    program, _ = compiled(decode.decode, how, Sampling(), (1,), weights, tables, state, ends)
cost = program.cost_analysis()
peak = program.memory_analysis().peak_memory_in_bytes / 2**30
print("result", json.dumps([peak, cost["flops"], cost["bytes accessed"]]))
"""


def compile_apart(program, *arguments, timeout):
    """What the program prints after "result", run in a process of its own."""
    env = os.environ | ENVIRONMENT
    done = warm.run("-c", program, *arguments, cwd=ROOT, env=env, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("result ")[1])


def test_a_decoding_step_on_tpu_copies_no_cache():
    """Oracle: the bytes that the compiler counts: beside its arguments the loop holds less than one of its
    eight caches.
    """
    temporary, cache = compile_apart(COMPILE, timeout=300)
    assert temporary < cache


AT_128K = "v5p:8x8x8", dict(data=1, fsdp=4, expert=32, context=4), 512, 122_880, 8192


@pytest.mark.pod
def test_sparse_decoding_at_128k_computes_less_than_dense():
    """Oracle: the compiler's own numbers, of 512 sequences of 128K tokens on 512 chips, all layers: 3.57 and
    1.51 TFLOP a chip and step, 17.1 and 19.3 GiB. By hand, V3.2's index keys take 1.9 GiB of the difference:
    128 numbers a token and layer.
    """
    dense, sparse = (
        compile_apart(ON_A_POD, json.dumps([name, *AT_128K]), timeout=3000)
        for name in ("deepseek_v3", "deepseek_v3_2")
    )
    assert sparse[1] < 0.5 * dense[1]
    assert dense[0] < sparse[0] < dense[0] + 3


@pytest.mark.slow
def test_a_pods_rollout_fits():
    """Oracle: the peak memory that the compiler counts for a 7B model, with all layers: 7.5 GiB a chip, of
    15.75. That of DeepSeek-V3's rollouts stands with their snapshots, in tests/configs.
    """
    sizes = ["r1_distill_qwen_7b", "v5e:4x4", dict(data=1, fsdp=16), 256, 512, 2048]
    assert compile_apart(ON_A_POD, json.dumps(sizes), timeout=1200)[0] < 12
