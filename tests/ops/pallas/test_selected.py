"""The kernels of attention over gathered keys, compiled for TPUs that are not there."""

import jax
import jax.numpy as jnp
import pytest

from deepseek_jax.ops.selected import Queries, attend_selected
from launch.planning.hlo import program_cost
from tests.quick import others_slow
from tests.tpu import TOPOLOGIES, compiled


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("topology", others_slow(TOPOLOGIES, TOPOLOGIES[0]))
def test_attention_over_gathered_keys_on_a_tpu_writes_no_scores(topology, learns):
    """Oracle: the compiled program of V3.2's attention and of its gradient, with an indexer that learns and
    with one that does not, as in reinforcement: no array of heads by selected keys. The FLOPs of both
    kernels are those of their products, by hand.
    """
    t, s, h, c, r, k, j, y = 96, 8192, 128, 512, 64, 2048, 64, 128

    def value_and_gradients(keys, slots, d_out, *queries):
        def value(keys, *queries):
            arrays = queries if learns else (*queries, None, None)
            return attend_selected(Queries(*arrays), keys, slots, kv_lora_rank=c, scale=0.1)

        out, pull_back = jax.vjp(value, keys, *queries)
        return out, pull_back((d_out, jnp.ones((1, t)) if learns else None))

    queries = [((1, t, h, c + r), "bfloat16")]
    if learns:
        queries += [((1, t, j, y), "bfloat16"), ((1, t, j), "float32")]
    keys = ((1, s, c + r + y * learns), "bfloat16"), ((1, t, k), "int32")
    d_out = (1, t, h, c), "bfloat16"

    text = compiled(topology, value_and_gradients, *keys, d_out, *queries).as_text()
    assert "selected_results" in text and "selected_gradients" in text
    for heads in (h, j):
        assert f"{heads},{k}]" not in text
    # Attention's results; then its scores again, and two gradients of both products. The indexer's products
    # have no values
    attention = 2 * c + r + c + r + 2 * (2 * c + r)
    flops = 2 * t * k * (h * attention + learns * j * y * (1 + 1 + 2))
    assert sum(program_cost(text, {"data": 1}).flops.values()) == flops
