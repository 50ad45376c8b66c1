"""The train step compiled for TPUs, without a TPU: properties of the compiled program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import json
import sys
import jax
from jax.experimental import topologies
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
jax.default_backend = lambda: "tpu"  # the ops choose for the machine that will run the program
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel import batch_sharding, logical_names, make_mesh, shardings
from deepseek_jax.training.state import TrainState, state_shardings
from tests.parallel.updates import GRADIENTS, V3, boxed_shapes, host_params, make_batch, make_step

mesh = make_mesh(data=1, expert=4, devices=topology.devices)
params = host_params()
places = shardings(mesh, logical_names(boxed_shapes()), params)
placed = state_shardings(mesh, places, params, GRADIENTS)
everywhere, rows = placed.step, batch_sharding(mesh)

def described(tree, places):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)

state = described(jax.eval_shape(lambda: TrainState.create(params, GRADIENTS)), placed)
batch = make_batch(packed=True)
batch = described(batch, {name: rows if x.ndim else everywhere for name, x in batch.items()})
rng = described(jax.eval_shape(lambda: jax.random.key(0)), everywhere)
step = make_step(ModelConfig(**V3, scan_layers=True, remat=sys.argv[1]), micro_batches=1)
with jax.set_mesh(mesh):
    traced = jax.jit(step, out_shardings=(placed, None)).trace(state, batch, rng)
    program = traced.lower(lowering_platforms=("tpu",)).compile()
text = program.as_text()
# Newer compilers start some of them beside other work
found = {
    name: text.count(f" {name}(") + text.count(f" {name}-start(")
    for name in ("ragged-all-to-all", "all-to-all")
}
print("result", json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("remat, rows, weights", [("none", 4, 2), ("full", 5, 3)])
def test_tokens_travel_by_a_ragged_exchange_on_tpu(remat, rows, weights):
    """Oracle: the compiler's own program for four v5p chips: in the scanned layer and in the multi-token
    block, one ragged exchange of rows there and one back, forward and backward, and none that is padded.
    A recomputation sends rows there again, and none back. The weights go there, and their gradients back.
    """
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TPU_SKIP_MDS_QUERY": "1",  # ask no cloud what machine this is
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu locks the whole machine otherwise
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, remat], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("result ")[1])
    assert found == {"ragged-all-to-all": 2 * (rows + weights), "all-to-all": 0}
