"""Conversion of config.json to ModelConfig and back, in the spellings of transformers 4 and 5."""

import dataclasses
from pathlib import Path

from deepseek_jax.checkpoint.folder import UNFINISHED, is_unfinished
from deepseek_jax.checkpoint.left import stages_left
from deepseek_jax.files import as_path, parse_json
from deepseek_jax.models.config import HOW_TO_RUN, ModelConfig, RopeScaling
from deepseek_jax.ops.rope import yarn_mscale
from deepseek_jax.settings import build

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# What the decoder always does: config.json may omit these fields, but not contradict them
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "moe_layer_freq": 1,
    "rope_interleave": True,
    # Rotary pairs are adjacent in MLA, and half-split in an indexer
    "indexer_rope_interleave": False,
    "partial_rotary_factor": 1.0,
}
# model_type -> (scoring_func, supported topk_methods with the default first)
ROUTERS = {
    "deepseek_v3": ("sigmoid", ("noaux_tc",)),
    "deepseek_v32": ("sigmoid", ("noaux_tc",)),
    "deepseek_v2": ("softmax", ("greedy", "group_limited_greedy")),
}
# Name of a field in transformers 5 -> our name, which the released files use
ALIASES = {"num_mtp_layers": "num_nextn_predict_layers"}
FP8_QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
# quantization_config.scale_fmt of DeepSeek-V3.1 and V3.2: scales are powers of two, stored as
# float32. Some scales of V3.1's o_proj are not, so only new scales have to follow it
POWERS_OF_TWO = "ue8m0"
# The file that an adapter's folder has in place of config.json, and the one of a reward model
ADAPTER, REWARDING = "adapter_config.json", "reward_model.json"
FIELDS = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in HOW_TO_RUN]
# ModelConfig lists these together, with multi-token prediction among them, up to rope_theta
MOE_FIELDS = FIELDS[FIELDS.index("n_routed_experts") : FIELDS.index("rope_theta")]
ROPE_FIELDS = [f.name for f in dataclasses.fields(RopeScaling)]


def read_config(folder: str | Path) -> ModelConfig:
    """Read the ModelConfig of folder/config.json.

    Raises:
        ValueError: As read_json and parse_config do. The message has the file's path.
    """
    raw = read_json(folder)
    try:
        return parse_config(raw)
    except ValueError as error:
        raise ValueError(f"{as_path(folder) / 'config.json'}: {error}") from error


def read_json(folder: str | Path) -> dict:
    """Read folder/config.json.

    Raises:
        ValueError: The file is missing or is not a JSON object; the folder was not written
            completely; or it is the folder of a run, an adapter or a reward model. The message has
            the path.
    """
    if is_unfinished(folder):
        raise ValueError(f"{folder} is not complete: {UNFINISHED} is there; write it again")
    path = as_path(folder) / "config.json"
    if not path.is_file():
        if (path.parent / ADAPTER).is_file():
            raise ValueError(
                f"{folder} holds an adapter; give the checkpoint that it was trained beside, or merge them "
                "by launch/convert.py"
            )
        if (path.parent / REWARDING).is_file():
            raise ValueError(
                f"{folder} holds a reward model, which answers nothing; give it as the `path` of a "
                "run's reward model"
            )
        raise ValueError(
            f"{path} does not exist; give a Hugging Face folder: config.json and safetensors"
        )
    try:
        raw = parse_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; take another copy of it") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds a {type(raw).__name__}; it must be an object with fields")
    # The config of a run, see recipes.workdir
    if "recipe" in raw:
        raise ValueError(f"{folder} is the folder of a run; {stages_left(path.parent)}")
    return raw


def parse_config(raw: dict) -> ModelConfig:
    """Convert config.json's dict to a ModelConfig.

    Raises:
        ValueError: The dict describes something that is not modelled here. The message has the
            field.
    """
    family = raw.get("model_type")
    if family == "deepseek_v4":
        raise ValueError(
            "model_type='deepseek_v4' is another architecture, which checkpoint.load_v4 reads"
        )
    if family not in ARCHITECTURES:
        raise ValueError(f"model_type={family!r} is not one of {sorted(ARCHITECTURES)}")
    raw = {ALIASES.get(key, key): value for key, value in raw.items()}
    for name in ("rope_parameters", "rope_scaling", "quantization_config"):
        if not isinstance(raw.get(name) or {}, dict):
            raise ValueError(f"{name}={raw[name]!r} must be an object with fields, or null")
    _check_fixed(raw)
    fields = {name: raw[name] for name in FIELDS if raw.get(name) is not None}
    missing = [name for name in _required(raw) if name not in fields]
    if missing:
        raise ValueError(f"a {family} model lacks {', '.join(missing)}; set them there")
    if family in ROUTERS:
        fields |= _router(raw)
        heads = raw["num_attention_heads"]
        if fields.pop("num_key_value_heads", heads) != heads:
            raise ValueError(
                f"num_key_value_heads={raw['num_key_value_heads']} must equal num_attention_heads={heads}: "
                f"a {family} model has latent attention"
            )
        # transformers writes qk_rope_head_dim into head_dim
        fields.pop("head_dim", None)
    if isinstance(raw.get("eos_token_id"), list):
        fields["eos_token_id"] = tuple(raw["eos_token_id"])
    return build(ModelConfig, fields | _rope(raw), "config.json")


def config_json(config: ModelConfig, *, dtype, fp8: bool = False, like: dict | None = None) -> dict:
    """Convert a ModelConfig to config.json's dict, in a spelling for transformers 4 and 5.

    Args:
        dtype: Dtype of the parameters.
        fp8: Whether projections are quantised.
        like: The dict of another config.json. Its fields stay as they are, with dtype, quantisation
            and spelling, except for the fields that config changes.
    """
    written = _fields_json(config)
    if like is None:
        written |= {"architectures": [ARCHITECTURES[config.model_type]], "torch_dtype": str(dtype)}
    else:
        written = _changed(config, written, like)
    if fp8 and not written.get("quantization_config"):
        written |= {"quantization_config": FP8_QUANTIZATION}
        if config.has_indexer:
            written["quantization_config"] = FP8_QUANTIZATION | {"scale_fmt": POWERS_OF_TWO}
    return written


def scales_are_powers_of_two(raw: dict) -> bool:
    """Return whether a config.json, as a dict, says that FP8 scales are powers of two."""
    return (raw.get("quantization_config") or {}).get("scale_fmt") == POWERS_OF_TWO


def _required(raw):
    """Return the fields that config.json must have, as transformers' defaults for them differ."""
    required = [f.name for f in dataclasses.fields(ModelConfig) if f.default is dataclasses.MISSING]
    if raw.get("n_routed_experts"):
        required += ["num_experts_per_tok", "first_k_dense_replace", "routed_scaling_factor"]
        is_v2 = raw["model_type"] == "deepseek_v2"
        required += [] if is_v2 else ["n_group", "topk_group"]
    # Qwen3's head_dim is not hidden_size / num_attention_heads: the 0.6B model has 16 heads of 128
    # at a hidden_size of 1024
    return required + (["head_dim"] if raw["model_type"] == "qwen3" else [])


def _check_fixed(raw):
    for key, value in FIXED.items():
        if raw.get(key) not in (value, None):
            raise ValueError(f"{key}={raw[key]!r} is not modelled, only {value!r}")
    kind = "indexed_attention" if raw["model_type"] == "deepseek_v32" else "full_attention"
    kinds = set(raw.get("layer_types") or ()) - {kind}
    if kinds:
        raise ValueError(
            f"layer_types={sorted(kinds)} are not modelled for {raw['model_type']}, only {kind!r}"
        )
    first_dense = raw.get("first_k_dense_replace")
    for layer, mlp in enumerate(raw.get("mlp_layer_types") or ()):
        if mlp != ("dense" if layer < (first_dense or 0) else "sparse"):
            raise ValueError(
                f"mlp_layer_types has {mlp!r} for layer {layer}, which is not modelled with "
                f"first_k_dense_replace={first_dense}: dense layers come first"
            )
    quantization = raw.get("quantization_config") or FP8_QUANTIZATION
    for key in ("quant_method", "weight_block_size"):
        if quantization.get(key) != FP8_QUANTIZATION[key]:
            raise ValueError(
                f"quantization_config.{key}={quantization.get(key)!r} is not read, "
                f"only {FP8_QUANTIZATION[key]!r}; dequantise the checkpoint first"
            )


def _router(raw):
    """Return DeepSeek's router fields, with defaults for the ones that config.json omits."""
    scoring, methods = ROUTERS[raw["model_type"]]
    method = raw.get("topk_method") or methods[0]
    if method not in methods or raw.get("scoring_func", scoring) != scoring:
        raise ValueError(
            f"topk_method={method!r} with scoring_func={raw.get('scoring_func', scoring)!r} "
            f"is not modelled for {raw['model_type']}, only {', '.join(methods)} with {scoring!r}"
        )
    fields = {
        "scoring_func": scoring,
        "norm_topk_prob": raw.get("norm_topk_prob", scoring == "sigmoid"),
    }
    return fields | ({"n_group": 1, "topk_group": 1} if method == "greedy" else {})


def _rope(raw):
    """Return rope_theta and rope_scaling as a dict of ModelConfig's fields.

    transformers 5 has them in rope_parameters, older files in fields of these names.
    """
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    # 10000 is the default of transformers
    theta = rope.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
    # `type` is the older name, and a file may have both
    kind = rope.pop("type", None)
    kind = rope.pop("rope_type", None) or kind or "default"
    # These fields only state what the model does anyway
    for key, value in {"partial_rotary_factor": 1.0, "truncate": True}.items():
        if rope.get(key) == value:
            del rope[key]
    unknown = {key: value for key, value in rope.items() if key not in ROPE_FIELDS}
    if kind == "yarn" and "attn_factor" in unknown and rope.get("factor"):
        both = yarn_mscale(rope["factor"], 1.0) * unknown["attn_factor"]
        raise ValueError(
            f"attn_factor={unknown['attn_factor']} in the RoPE parameters is read in two ways: vLLM "
            "multiplies YaRN's own amplitude by it, and transformers ignores it. In config.json, replace it "
            f"by attention_factor={both:.6g}, which is vLLM's amplitude, or delete it for transformers'"
        )
    if unknown:
        raise ValueError(f"{unknown} in the RoPE parameters are not modelled, only {ROPE_FIELDS}")
    if kind != "default" and rope.get("factor") is None:
        raise ValueError(
            f"the RoPE parameters of type {kind!r} lack factor; set it beside rope_type"
        )
    scaling = None if kind == "default" else dict(rope, rope_type=kind)
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def _fields_json(config):
    """Return the fields of config that matter to its family, by Hugging Face's older names."""
    fields = {name: getattr(config, name) for name in FIELDS}
    if not config.n_routed_experts:
        fields = {name: value for name, value in fields.items() if name not in MOE_FIELDS}
    fields = {name: value for name, value in fields.items() if value is not None}
    fields |= {"hidden_act": "silu", "attention_dropout": 0.0}
    if config.rope_scaling:
        scaling = dataclasses.asdict(config.rope_scaling)
        fields["rope_scaling"] = {
            name: value for name, value in scaling.items() if value is not None
        }
    if isinstance(config.eos_token_id, tuple):
        fields["eos_token_id"] = list(config.eos_token_id)
    # Qwen2 always has biases on queries, keys and values, and no field for them
    if config.model_type != "qwen2":
        fields["attention_bias"] = False
    if config.is_mla:
        fields |= {"num_key_value_heads": config.num_attention_heads, "moe_layer_freq": 1}
        # null if queries have no low rank: without the field, transformers assumes a rank of 1536
        fields["q_lora_rank"] = config.q_lora_rank
        method = ROUTERS[config.model_type][1]
        fields["topk_method"] = method[-1] if config.n_group > 1 else method[0]
    return fields


def _changed(config, written, like):
    """Return a copy of `like` with new values for the fields in which config differs from it."""
    before = parse_config(like)
    changed = {name for name in FIELDS if getattr(before, name) != getattr(config, name)}
    result = dict(like)
    # Files spell these two values in any of three fields, so all three are replaced together
    if changed & {"rope_theta", "rope_scaling"}:
        for key in ("rope_parameters", "rope_theta", "rope_scaling"):
            result.pop(key, None)
            result |= {key: written[key]} if key in written else {}
    names = {ours: theirs for theirs, ours in ALIASES.items() if theirs in like}
    for name in changed - {"rope_theta", "rope_scaling"}:
        result[names.get(name, name)] = written.get(name)
    return result
