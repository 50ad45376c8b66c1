"""Conversion of DeepSeek-V4's config.json to V4Config and back."""

import dataclasses
from pathlib import Path

from deepseek_jax.checkpoint.hf_config import read_json
from deepseek_jax.files import as_path
from deepseek_jax.models.v4.config import FIXED, HOW_TO_RUN, V4Config, parse_config


def read_v4_config(folder: str | Path) -> V4Config:
    """Read the V4Config of folder/config.json, in the release's spelling or in transformers'.

    Raises:
        ValueError: As hf_config.read_json and models.v4.config.parse_config do, for DeepSeek-V4.1 too. The
            message has the file's path.
    """
    raw = read_json(folder)
    try:
        return parse_config(released_fields(raw))
    except ValueError as error:
        raise ValueError(f"{as_path(folder) / 'config.json'}: {error}") from error


def released_fields(raw: dict) -> dict:
    """Convert config.json's dict to the release's spelling, which parse_config reads.

    transformers writes the kinds of MLPs for num_hash_layers, both tables of rotary frequencies in
    rope_parameters, and compress_rates as an object.

    Raises:
        ValueError: A field has a value that is not modelled.
    """
    fields = dict(raw)
    if isinstance(rates := raw.get("compress_rates"), dict):
        fields["compress_rates"] = tuple(rates.items())
    if mlps := raw.get("mlp_layer_types"):
        tables = fields["num_hash_layers"] = mlps.count("hash_moe")
        if mlps != ["hash_moe"] * tables + ["moe"] * (len(mlps) - tables):
            raise ValueError(
                f"mlp_layer_types={mlps} is not modelled: layers of 'hash_moe' come first, then 'moe'"
            )
    if rope := raw.get("rope_parameters"):
        fields |= _rope(rope)
    return fields


def v4_config_json(config: V4Config, *, dtype, like: dict | None = None) -> dict:
    """Convert a V4Config to config.json's dict, in the release's spelling.

    Args:
        config: The model.
        dtype: Dtype of the parameters.
        like: The dict of the config.json of the folder that the parameters come from, which is returned
            as it is.

    Raises:
        ValueError: `like` describes another model.
    """
    if like is not None:
        _check_same(config, parse_config(released_fields(like)))
        return like
    # Tokens are written as null too: without the field, transformers assumes 0 and 1
    fields = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in HOW_TO_RUN and (value is not None or name.endswith("token_id"))
    }
    if config.compress_rates is not None:
        fields["compress_rates"] = dict(config.compress_rates)
    if config.rope_scaling is not None:
        fields["rope_scaling"] = {k: v for k, v in fields["rope_scaling"].items() if v is not None}
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "torch_dtype": str(dtype),
        **FIXED,
        **fields,
    }


def _check_same(config, before):
    """Raise ValueError unless two V4Configs describe the same network."""
    for name in [field.name for field in dataclasses.fields(V4Config)]:
        # Some folders say that they have multi-token prediction, and leave it out
        if name in (*HOW_TO_RUN, "num_nextn_predict_layers"):
            continue
        ours, theirs = getattr(config, name), getattr(before, name)
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours} in config, and {theirs} in the config.json of `like`, which must be "
                "the folder that the parameters came from"
            )


def _rope(rope):
    """Return the fields of the release for transformers' rope_parameters."""
    main, compress = dict(rope.get("main") or {}), dict(rope.get("compress") or {})
    kind = compress.pop("rope_type", None) or compress.get("type")
    factor = compress.pop("attention_factor", 1.0)
    if main.get("rope_type", "default") != "default" or factor != 1.0:
        raise ValueError(
            f"rope_parameters={rope} is not modelled: main has rope_type 'default', and compress an "
            "attention_factor of 1.0"
        )
    thetas = {
        "rope_theta": main.get("rope_theta"),
        "compress_rope_theta": compress.pop("rope_theta", None),
    }
    for name in ("type", "partial_rotary_factor"):
        compress.pop(name, None)
    scaling = None if kind in (None, "default") else {"rope_type": kind, **compress}
    return {
        **{name: value for name, value in thetas.items() if value is not None},
        "rope_scaling": scaling,
    }
