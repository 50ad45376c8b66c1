"""The kernels of attention over gathered keys, compiled for TPUs that are not there."""

import jax
import pytest

from deepseek_jax.ops.selected import Queries, attend_selected
from launch.planning.hlo import program_cost
from tests.quick import others_slow
from tests.tpu import TOPOLOGIES, compiled


@pytest.mark.parametrize("topology", others_slow(TOPOLOGIES, TOPOLOGIES[0]))
def test_attention_over_gathered_keys_on_a_tpu_writes_no_scores(topology):
    """Oracle: the compiled program of V3.2's attention and of its gradient: no array of heads by selected
    keys. The FLOPs of both kernels are those of their products, by hand.
    """
    t, s, h, c, r, k, j, y = 96, 8192, 128, 512, 64, 2048, 64, 128

    def value_and_gradients(q, index_q, index_w, keys, slots, *d_out):
        def value(q, index_q, index_w, keys):
            queries = Queries(q, index_q, index_w)
            return attend_selected(queries, keys, slots, kv_lora_rank=c, scale=0.1)

        out, pull_back = jax.vjp(value, q, index_q, index_w, keys)
        return out, pull_back(d_out)

    of_queries = (1, t, h, c + r), (1, t, j, y)
    queries = *((shape, "bfloat16") for shape in of_queries), ((1, t, j), "float32")
    d_out = ((1, t, h, c), "bfloat16"), ((1, t), "float32")
    keys = ((1, s, c + r + y), "bfloat16"), ((1, t, k), "int32")

    text = compiled(topology, value_and_gradients, *queries, *keys, *d_out).as_text()
    assert "selected_results" in text and "selected_gradients" in text
    for heads in (h, j):
        assert f"{heads},{k}]" not in text
    # Attention's results; then its scores again, and two gradients of both products. The indexer's products
    # have no values
    attention = 2 * c + r + c + r + 2 * (2 * c + r)
    flops = 2 * t * k * (h * attention + j * y * (1 + 1 + 2))
    assert sum(program_cost(text, {"data": 1}).flops.values()) == flops
