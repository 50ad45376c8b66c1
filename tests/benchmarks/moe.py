"""A layer of routed experts against a dense FFN of the same FLOPs: 2048 tokens, width 256, 64 experts of
width 128, four a token, forward and backward, float32, interleaved in one process.

python -m tests.benchmarks.moe [--rounds 15]
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import models
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.layers import GatedMLP
from deepseek_jax.models.moe import MoE
from deepseek_jax.ops import grouped_matmul as grouped
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.gated_mlp import swiglu
from tests.benchmarks.timing import interleave, medians, print_table

TOKENS = 2048
SIZES = models.deepseek_v3_tiny() | dict(
    hidden_size=256,
    moe_intermediate_size=128,
    n_routed_experts=64,
    n_shared_experts=0,
    num_experts_per_tok=4,
    n_group=1,
    topk_group=1,
)
CONFIG = ModelConfig(**SIZES)


def equal_rooms(params, x_btd, layout, weights_ma):
    """The experts alone, all with equally many rows: one batched product computes them all."""
    e, d, f = CONFIG.n_routed_experts, CONFIG.hidden_size, CONFIG.moe_intermediate_size
    rows_ecd = grouped.rows_by_expert(x_btd.reshape(-1, d), layout).reshape(e, -1, d)
    hidden_ecz = dot("ecd,edz->ecz", rows_ecd, params["gate_up"].reshape(e, d, 2 * f))
    gate_ecf, up_ecf = jnp.split(hidden_ecz, 2, axis=-1)
    out_ecd = dot("ecf,efd->ecd", swiglu(gate_ecf, up_ecf), params["down"])
    return grouped.combine(out_ecd.reshape(-1, d), weights_ma, layout)


def contestants():
    """name -> a function that runs forward and backward once."""
    rng = np.random.default_rng(0)
    x_btd = jnp.asarray(rng.normal(size=(8, TOKENS // 8, CONFIG.hidden_size)), jnp.float32)
    layer = MoE(CONFIG)
    dense = GatedMLP(CONFIG, CONFIG.num_experts_per_tok * CONFIG.moe_intermediate_size)
    params, dense_params = (nn.unbox(m.init(jax.random.key(0), x_btd)) for m in (layer, dense))
    # Each expert has a capacity of 128 rows and gets 128 rows
    a, e = CONFIG.num_experts_per_tok, CONFIG.n_routed_experts
    experts_ma = (np.arange(TOKENS * a) % e).reshape(TOKENS, a)[rng.permutation(TOKENS)]
    layout = grouped.capacity_layout(jnp.asarray(experts_ma, jnp.int32), e, TOKENS * a // e)
    weights_ma = jnp.full((TOKENS, a), 1 / a)

    def forward_and_backward(layer, params):
        step = jax.jit(jax.value_and_grad(lambda *args: (layer(*args) ** 2).sum(), argnums=(0, 1)))
        return lambda: jax.block_until_ready(step(params, x_btd))

    return {
        "dense": forward_and_backward(dense.apply, dense_params),
        "dropless, router and all": forward_and_backward(lambda *x: layer.apply(*x)[0], params),
        "equal rooms, no router": forward_and_backward(
            lambda params, x: equal_rooms(params["params"], x, layout, weights_ma), params
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    seconds = medians(interleave(contestants(), args.rounds))
    rows = [[k, f"{1e3 * s:.0f}", f"{s / seconds['dense']:.2f}"] for k, s in seconds.items()]
    print_table(f"{TOKENS} tokens, forward and backward", ["", "ms", "times dense"], rows)


if __name__ == "__main__":
    main()
