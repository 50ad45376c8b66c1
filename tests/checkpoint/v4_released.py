"""A small folder of DeepSeek-V4 as released, written by hand: names, shapes and dtypes of the checkpoint."""

import json
import math

import numpy as np
import torch
from safetensors.torch import save_file

from deepseek_jax.models.v4.config import CSA, MTP_LAYER, V4Config
from tests.models.v4 import tiny

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
# Several blocks of 128 and of 32 in rows and columns, some of them cut off
CONFIG = tiny.config(hidden_size=160, moe_intermediate_size=80, num_nextn_predict_layers=1)
WEIGHTS, SCALES = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"


def layer_tensors(c: V4Config, kind, experts: str):
    """{name in a layer: (shape, how it is stored)}."""
    d, f, x, q = c.hidden_size, c.moe_intermediate_size, c.head_dim, c.q_lora_rank
    h, s, e = c.num_attention_heads, c.hc_mult, c.n_routed_experts
    found = {}
    for part in ("attn", "ffn"):
        found |= {
            f"{part}_norm.weight": ((d,), "bf16"),
            f"hc_{part}_fn": ((2 * s + s * s, s * d), "f32"),
            f"hc_{part}_base": ((2 * s + s * s,), "f32"),
            f"hc_{part}_scale": ((3,), "f32"),
        }
    found |= {
        "attn.wq_a.weight": ((q, d), "fp8"),
        "attn.q_norm.weight": ((q,), "bf16"),
        "attn.wq_b.weight": ((h * x, q), "fp8"),
        "attn.wkv.weight": ((x, d), "fp8"),
        "attn.kv_norm.weight": ((x,), "bf16"),
        "attn.attn_sink": ((h,), "f32"),
        "attn.wo_a.weight": ((c.o_groups * c.o_lora_rank, h // c.o_groups * x), "fp8"),
        "attn.wo_b.weight": ((d, c.o_groups * c.o_lora_rank), "fp8"),
        "ffn.gate.weight": ((e, d), "bf16"),
    }
    if kind.has_table:
        found["ffn.gate.tid2eid"] = ((c.vocab_size, c.num_experts_per_tok), "table")
    else:
        found["ffn.gate.bias"] = ((e,), "f32")
    for expert in [f"experts.{i}" for i in range(e)] + ["shared_experts"]:
        stored = "fp8" if expert == "shared_experts" else experts
        for name, shape in {"w1": (f, d), "w3": (f, d), "w2": (d, f)}.items():
            found[f"ffn.{expert}.{name}.weight"] = (shape, stored)

    def compressor(width, series):
        return {
            "wkv.weight": ((series * width, d), "bf16"),
            "wgate.weight": ((series * width, d), "bf16"),
            "ape": ((kind.rate, series * width), "f32"),
            "norm.weight": ((width,), "bf16"),
        }

    below = {}
    if kind.rate:
        below |= {
            f"compressor.{n}": v for n, v in compressor(x, 1 + (kind.attention == CSA)).items()
        }
    if kind.attention == CSA:
        j, y = c.index_n_heads, c.index_head_dim
        below |= {
            "indexer.wq_b.weight": ((j * y, q), "fp8"),
            "indexer.weights_proj.weight": ((j, d), "bf16"),
        }
        below |= {f"indexer.compressor.{n}": v for n, v in compressor(y, 2).items()}
    return found | {f"attn.{n}": v for n, v in below.items()}


def end_tensors(c: V4Config):
    """{name: (shape, how it is stored)} of the sum of streams and the norm after it."""
    s, d = c.hc_mult, c.hidden_size
    found = {"hc_head_fn": ((s, s * d), "f32"), "hc_head_base": ((s,), "f32")}
    return found | {"hc_head_scale": ((1,), "f32"), "norm.weight": ((d,), "bf16")}


def all_tensors(c: V4Config, experts="fp4", later="mtp"):
    """{released name: (shape, how it is stored)} of a whole folder; see `write`."""
    d, v = c.hidden_size, c.vocab_size
    found = {"embed.weight": ((v, d), "bf16"), "head.weight": ((v, d), "bf16")} | end_tensors(c)
    layers = {f"layers.{i}.": kind for i, kind in enumerate(c.layers)}
    layers |= {f"mtp.{i}.": MTP_LAYER for i in range({"mtp": 1, "dspark": 3, None: 0}[later])}
    for prefix, kind in layers.items():
        below = layer_tensors(c, kind, experts)
        if prefix.startswith("mtp.") and later == "mtp":
            below |= end_tensors(c) | {f"{n}norm.weight": ((d,), "bf16") for n in "eh"}
            below |= {f"{n}_proj.weight": ((d, d), "fp8") for n in "eh"}
        if prefix == "mtp.0." and later == "dspark":
            below |= {"main_proj.weight": ((d, 3 * d), "fp8"), "main_norm.weight": ((d,), "bf16")}
        found |= {prefix + name: value for name, value in below.items()}
    return found


def write(folder, c=CONFIG, experts="fp4", later="mtp", expert_dtype=True, seed=0):
    """Write a folder: weights in one file, scales in another. Returns {name: torch tensor}.

    experts: "fp4", or "fp8" as in -Base. later: "mtp" for a module of multi-token prediction, "dspark" for
    a drafter in its place, or None. expert_dtype: whether config.json has it.
    """
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, (shape, stored) in all_tensors(c, experts, later).items():
        tensors |= random_tensor(name, shape, stored, c, generator)
    folder.mkdir(exist_ok=True)
    weight_map = {n: SCALES if n.endswith(".scale") else WEIGHTS for n in tensors}
    for file in (WEIGHTS, SCALES):
        part = {n: t for n, t in tensors.items() if weight_map[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config_json(c, experts, later, expert_dtype)))
    return tensors


def random_tensor(name, shape, stored, c, generator):
    """{name: tensor}, and its scale: every code, and scales that no quantiser has chosen."""
    normal = torch.tensor(generator.normal(size=shape), dtype=torch.float32)
    if stored == "table":
        a, e = c.num_experts_per_tok, c.n_routed_experts
        return {name: (torch.arange(math.prod(shape), dtype=torch.int32) * 3 % e).reshape(-1, a)}
    if stored in ("bf16", "f32"):
        around, size = (1.0 if "norm" in name or name.endswith("scale") else 0.0), 0.1
        number = around + size * normal
        return {name: number.bfloat16() if stored == "bf16" else number}
    rows, columns = shape
    scale_name = name.removesuffix("weight") + "scale"
    if stored == "fp8":
        scale_shape, codes = (-(-rows // 128), -(-columns // 128)), (normal * 60).to(E4M3)
        exponents = generator.integers(127 - 12, 127 - 8, scale_shape)
    else:
        scale_shape = (rows, -(-columns // 32))
        codes = torch.tensor(generator.integers(-128, 128, (rows, columns // 2)), dtype=torch.int8)
        exponents = generator.integers(127 - 8, 127 - 4, scale_shape)
    return {name: codes, scale_name: torch.tensor(exponents, dtype=torch.uint8).view(E8M0)}


def config_json(c: V4Config, experts, later, expert_dtype):
    """config.json as released, but for the kinds of layers: 8 is no ratio of compress_ratios."""
    raw = {name: getattr(c, name) for name in tiny.SIZES} | dict(
        architectures=["DeepseekV4ForCausalLM"],
        model_type="deepseek_v4",
        qk_rope_head_dim=c.qk_rope_head_dim,
        layer_types=list(c.layer_types),
        compress_rates=dict(c.compress_rates),
        num_hash_layers=c.num_hash_layers,
        num_nextn_predict_layers=1,
        num_key_value_heads=1,
        n_shared_experts=1,
        scoring_func="sqrtsoftplus",
        topk_method="noaux_tc",
        norm_topk_prob=True,
        rope_theta=10000,
        compress_rope_theta=160000,
        rope_scaling={"type": "yarn"} | {k: v for k, v in tiny.YARN.items() if k != "rope_type"},
        torch_dtype="bfloat16",
        quantization_config=dict(
            activation_scheme="dynamic",
            fmt="e4m3",
            quant_method="fp8",
            scale_fmt="ue8m0",
            weight_block_size=[128, 128],
        ),
    )
    if expert_dtype:
        raw["expert_dtype"] = experts
    return raw | (dict(dspark_block_size=5, dspark_markov_rank=4) if later == "dspark" else {})


# By hand: what four bits are
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def decoded(name, tensors):
    """A stored tensor as float32 numbers, by a loop over its tiles."""
    tensor, scales = tensors[name], tensors.get(name.removesuffix("weight") + "scale")
    if scales is None or not name.endswith("weight"):
        return tensor.float().numpy()
    tile = (1, 32) if tensor.dtype == torch.int8 else (128, 128)
    if tensor.dtype == torch.int8:
        pairs = [
            (E2M1[byte % 16], E2M1[byte // 16])
            for byte in tensor.view(torch.uint8).flatten().tolist()
        ]
        numbers = np.array(pairs, np.float32).reshape(len(tensor), -1)
    else:
        numbers = tensor.float().numpy()
    for (i, j), byte in np.ndenumerate(scales.view(torch.uint8).numpy()):
        rows, columns = slice(i * tile[0], (i + 1) * tile[0]), slice(j * tile[1], (j + 1) * tile[1])
        numbers[rows, columns] *= np.float32(2.0 ** (int(byte) - 127))
    return numbers
