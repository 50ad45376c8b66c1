"""Write the table of dtypes of deepseek_jax/README.md, from the programs that the code traces.

python -m tests.benchmarks.dtypes            # between its marks
python -m tests.benchmarks.dtypes --check    # exit status 1 if it is out of date

Each row is a part of DeepSeek-V3, whose config computes in bfloat16. Tracing for a machine needs none: a CPU
says what a GPU or a TPU would run.
"""

import argparse
import dataclasses
import functools
import os
import re
import sys
from pathlib import Path

import flax.linen as nn
import jax
import optax
from jax.experimental import topologies

from configs import models
from deepseek_jax.models import abstract_init, build_model, forward, hidden_states
from deepseek_jax.models.layers import linear, rms_norm
from deepseek_jax.ops.attention import attend, attend_latent
from deepseek_jax.ops.fp8_grouped import expert_block, grouped_fp8
from deepseek_jax.ops.grouped_matmul import grouped_matmul
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.ops.platform import FORMS, SIZES, form_of, platform, size_of
from deepseek_jax.ops.rope import rope_tables
from deepseek_jax.rollout import decode
from deepseek_jax.rollout.slots import Decoding
from deepseek_jax.training.optimizer import make_optimizer
from launch.planning.topology import ENVIRONMENT
from tests.benchmarks.traced import (
    array,
    computed,
    gradients,
    products,
    products_among,
    stored,
    traced,
)

GUIDE = Path(__file__).resolve().parents[2] / "deepseek_jax" / "README.md"
BLOCK = re.compile(r"(<!-- dtypes -->\n).*?(<!-- end -->)", re.S)
# Of the 61 layers one that is dense and one with experts
CONFIG = dataclasses.replace(
    build_model(models.deepseek_v3()),
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_nextn_predict_layers=0,
)
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "7x": "tpu7x:2x2x1"}
B, T, D, V = 1, 4096, CONFIG.hidden_size, CONFIG.vocab_size
LINEAR = array(B, T, D), array(D, 2048, dtype="float32")
EXPERTS = array(T, D), array(256, D, 2048, dtype="float32"), array(256, dtype="int32")


def machines():
    """{kind: what jax.default_device takes}; TPUs as their compiler describes them."""
    tpus = {
        kind: topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
        for kind, name in TOPOLOGIES.items()
    }
    return {"CPU": jax.devices("cpu")[0], "GPU": "gpu"} | {f"TPU {k}": d for k, d in tpus.items()}


@functools.cache
def of_weights():
    """Cells of weights, which no machine changes; a whole gradient takes longest to trace."""

    def gradient(params, tokens):
        return jax.grad(lambda params: forward(CONFIG, params, tokens).sum())(params)

    params = nn.unbox(abstract_init(CONFIG))
    gradients = jax.eval_shape(gradient, params, array(B, T, dtype="int32"))
    return {"weights in training": stored(params), "their gradients": stored(gradients)}


def in_training(params):
    """Cells of what an update computes in the config's own dtype."""
    tokens, ids = array(B, T, dtype="int32"), array(B, T, dtype="int32")
    row = array(B, T, 128, 192), array(B, T, 128, 192), array(B, T, 128, 128), ids
    scored = array(T, D), array(V, D, dtype="float32"), array(T, dtype="int32")

    def logits(params, tokens):
        return forward(CONFIG, params, tokens)

    def residual(params, tokens):
        return hidden_states(CONFIG, params, tokens)[0]

    def attended(q, k, v, ids):
        return attend(q, k, v, scale=0.1, segment_ids=ids)

    of_logits = list(traced(logits, params, tokens))
    return {
        "residual stream": stored(jax.eval_shape(residual, params, tokens)),
        "norms": computed("rsqrt", rms_norm, array(B, T, D), array(D, dtype="float32"), 1e-6),
        "rotary angles": computed("cos", rope_tables, ids, array(32, dtype="float32")),
        "Linear layers": products(by(CONFIG), *LINEAR),
        "their backward pass": products(gradients(by(CONFIG)), *LINEAR),
        "experts": products(grouped_matmul, *EXPERTS),
        "router": products_among(of_logits, width=256),
        "attention": products(attended, *row),
        "its softmax": computed("exp", attended, *row),
        "logits": products_among(of_logits, width=V),
        "log-probabilities": computed("exp", token_logprobs, *scored),
    }


def in_fp8():
    """Cells of the products that `model.fp8` changes."""
    fp8 = dataclasses.replace(CONFIG, fp8=True)

    def experts(x, w, counts):
        return grouped_fp8(x, w, counts, block=expert_block(len(x), len(w)))

    return {
        "Linear layers, `fp8`": products(by(fp8), *LINEAR),
        "their backward pass, `fp8`": products(gradients(by(fp8)), *LINEAR),
        "experts, `fp8`": products(experts, *EXPERTS),
    }


def by(config):
    """The product of a Linear layer."""
    return lambda x, w: linear(config, "btd,df->btf", x, w)


def in_the_optimizer(params):
    """Cells of moments and of the step that follows from them."""

    def optimizer(dtype, momentum=None):
        return make_optimizer(
            optax.constant_schedule(1e-4),
            b1=0.9,
            b2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            moment_dtype=dtype,
            momentum=momentum,
        )

    def step(tx):
        return lambda params: tx.update(params, tx.init(params), params)[0]

    default, small = optimizer("float32"), optimizer("bfloat16")
    return {
        "moments": stored(jax.eval_shape(default.init, params)),
        '`moment_dtype="bfloat16"`': stored(jax.eval_shape(small.init, params)),
        "the step from them": computed("sqrt", step(small), params),
        "Muon's products": products(step(optimizer("bfloat16", 0.95)), params),
    }


def in_a_rollout(params):
    """Cells of what decodes."""
    cached = array(8, 128, 576), array(8, T, 576), array(8, T, dtype=bool)

    def attended(*arrays):
        return attend_latent(*arrays[:-1], kv_lora_rank=512, scale=0.1, mask=arrays[-1])

    weights = jax.eval_shape(
        lambda params: decode.decoding_weights(Decoding(CONFIG), params), params
    )
    slots = jax.eval_shape(lambda: decode.empty_slots(Decoding(CONFIG), 8, 512, 512, 512))
    return {
        "weights in a rollout": stored(weights),
        "cache": stored(slots.caches),
        "attention over it": products(attended, *cached),
        "softmax over it": computed("exp", attended, *cached),
    }


def rows():
    """{part: its cell} for the machine of jax.default_device."""
    params = nn.unbox(abstract_init(CONFIG))
    in_updates = of_weights() | in_training(params) | in_fp8() | in_the_optimizer(params)
    return in_updates | in_a_rollout(params)


def table():
    """The table in Markdown; machines whose cells are all equal share a column."""
    columns, traced_for = {}, {}
    for kind, device in machines().items():
        with jax.default_device(device):
            # All that a program knows of its machine; of two machines alike in it, one is traced
            forms = platform(), *map(form_of, FORMS), *map(size_of, SIZES)
            cells = traced_for[forms] = traced_for.get(forms) or rows()
        columns.setdefault(tuple(cells.values()), []).append(kind)
    names = [", ".join(kinds).replace(", TPU ", ", ") for kinds in columns.values()]
    lines = [["part", *names], ["---"] * (1 + len(names))]
    lines += zip(cells, *columns, strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    os.environ.update(ENVIRONMENT)
    old = GUIDE.read_text()
    new = BLOCK.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", old)
    if new == old:
        return
    if given.check:
        sys.exit(f"{GUIDE}: the table of dtypes is out of date")
    GUIDE.write_text(new)


if __name__ == "__main__":
    main()
