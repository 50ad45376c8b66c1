"""LoRA adapters on disk, in the format of Hugging Face's library peft: write, read, check them."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors.numpy import save_file

from deepseek_jax.checkpoint.adapter_file import read_tensors, tensor_digests
from deepseek_jax.checkpoint.adapter_names import (
    module_of,
    parse_name,
    rank_of,
    stem,
    tensor_names,
    to_arrays,
    to_tensors,
)
from deepseek_jax.checkpoint.damage import digests_in
from deepseek_jax.checkpoint.folder import check_new, is_unfinished, whole_folder, write_files
from deepseek_jax.checkpoint.left import left_in_run, params_of_start
from deepseek_jax.checkpoint.locate import lasting_name
from deepseek_jax.files import as_path, read_object, whole_file
from deepseek_jax.hub import hub_id
from deepseek_jax.models.adapter_modules import EXPERTS, adapter_places, module_axes, modules
from deepseek_jax.models.adapters import AdaptedParams
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.quantized import is_quantized, unquantized_leaves
from deepseek_jax.notebooks import plainly
from deepseek_jax.ops.fingerprint import fingerprint
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.trees import PyTree

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Only this project reads this file: fingerprints of the base, and digests of the tensors
BASE = "base.json"
# Fields of adapter_config.json that change what an adapter computes, with the values that mean
# plain LoRA; an absent field has the first one
PLAIN: dict[str, Sequence] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Other values change the weights of the base too
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    **dict.fromkeys(("use_dora", "use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(("lora_bias", "fan_in_fan_out"), (False, None)),
    **dict.fromkeys(("modules_to_save", "trainable_token_indices"), (None, [])),
    **dict.fromkeys(("layers_to_transform", "layer_replication"), (None, [])),
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "kasa_config"), (None,)),
    **dict.fromkeys(("velora_config", "monteclora_config"), (None,)),
}


def is_adapter(folder: str | Path) -> bool:
    """Return whether peft or save_adapter wrote an adapter to this folder."""
    return not is_unfinished(folder) and (as_path(folder) / CONFIG).is_file()


def save_adapter(
    folder: str | Path,
    config: ModelConfig,
    params: AdaptedParams,
    base: str | Path,
    files: dict[str, bytes] | None = None,
) -> None:
    """Write an adapter, without its base, into a new folder that peft can read.

    All processes call it together. A failure leaves nothing behind.

    Args:
        folder: Absent or empty.
        params: The base and its adapter. The base is fingerprinted, not written.
        base: The checkpoint with the frozen parameters, as locate.checkpoint_path takes it.
        files: {name: content} of further files for the folder, see data.carried.carried_files.

    Raises:
        ValueError: The folder is not empty.
    """
    check_new(folder)
    base = lasting_name(base)
    adapter, base_record = params.adapter, {"path": base} | base_fingerprints(params.base)
    if jax.process_count() > 1:
        adapter = multihost_utils.process_allgather(adapter, tiled=True)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for stack, pairs in adapter.items():
        first_layer = config.num_dense_layers if stack == "moe_layers" else 0
        for module, pair in pairs.items():
            a, b = np.asarray(pair["lora_a"]), np.asarray(pair["lora_b"])
            ranks[module] = a.shape[-1]
            for index in range(len(a)):
                names = tensor_names(first_layer + index, stem(module, pairs))
                tensor_pair = to_tensors(config, module, a[index], b[index])
                tensors |= dict(zip(names, tensor_pair, strict=True))
    with whole_folder(folder) as partial:
        if first_process():
            with whole_file(partial / TENSORS) as new_path:
                save_file(tensors, new_path, metadata={"format": "pt"})
            text = json.dumps(_config(ranks, params.scale, base), indent=2)
            (partial / CONFIG).write_text(text + "\n")
            base_record["digests"] = tensor_digests(tensors)
            (partial / BASE).write_text(json.dumps(base_record, indent=2) + "\n")
            write_files(partial, files)


def _config(ranks, scale, base):
    """Return the fields of peft.LoraConfig.

    Args:
        ranks: {module: rank}.
        scale: The factor on the product of the matrices, lora_alpha / rank.
        base: A path or a name on the hub.
    """
    hub_base = hub_id(base)
    rank = min(ranks.values())
    other_ranks = {module: r for module, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base if hub_base is None else hub_base.repo,
        "revision": None if hub_base is None else hub_base.revision,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(m.rpartition(".")[2] for m in ranks if m not in EXPERTS),
        "target_parameters": sorted(m for m in ranks if m in EXPERTS),
        "rank_pattern": {rf".*\.{re.escape(m)}": r for m, r in other_ranks.items()},
        "alpha_pattern": {rf".*\.{re.escape(m)}": scale * r for m, r in other_ranks.items()},
    }


def adapter_scale(folder: str | Path) -> float:
    """Read an adapter's scale, the factor on the product of its matrices, from its small files.

    Raises:
        ValueError: The folder has no adapter, or load_adapter would reject its config.
    """
    found = left_in_run(folder)
    for name in (CONFIG, TENSORS):
        if not (found / name).is_file():
            raise ValueError(
                f"no adapter in {found}: there is no {name}; give the folder adapter of a run, or one of "
                "peft's"
            )
    return _scale(read_object(found / CONFIG), found / CONFIG)


def adapter_base(folder: str | Path) -> str:
    """Return the path or hub name of the base that an adapter's folder names.

    If save_adapter wrote the adapter, and its stage began from the params of a stage of the same
    run, these params come first as long as they are there: the run may have been moved.

    Raises:
        ValueError: adapter_config.json names no base.
    """
    path = as_path(folder)
    start_params = params_of_start(path.parent)
    if (
        (path / BASE).is_file()
        and start_params is not None
        and (start_params / "config.json").is_file()
    ):
        return str(start_params)
    adapter_config = read_object(path / CONFIG)
    name, revision = adapter_config.get("base_model_name_or_path"), adapter_config.get("revision")
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{path / CONFIG}: base_model_name_or_path={name!r} names no base; load the base, and give "
            "this folder as its adapter"
        )
    # peft's config has the commit in a separate field
    hub_base = hub_id(name)
    if hub_base is not None and hub_base.revision is None and isinstance(revision, str):
        return f"{name}@{revision}"
    return name


@plainly()
def load_adapter(
    folder: str | Path, config: ModelConfig, params: PyTree, mesh: Mesh
) -> AdaptedParams:
    """Read an adapter and join it with the parameters of its base.

    The adapter may come from peft, from save_adapter or from a run. If the base is in int8 now but
    was not in training, or the reverse, the weights that int8 rounds are not compared.

    Args:
        folder: The adapter's folder, or the folder of a run or stage, see left.left_in_run.
        mesh: The mesh for the adapter's arrays.

    Returns:
        The AdaptedParams, with params as its base.

    Raises:
        ValueError: The folder has something other than plain LoRA of one scale; a tensor is
            missing; or the adapter belongs to another base. That is a base of another architecture
            or, for an adapter of save_adapter, with other weights.
        DamagedCheckpoint: As adapter_file.read_tensors does.
    """
    found = left_in_run(folder)
    scale = adapter_scale(found)
    base_record = read_object(found / BASE) if (found / BASE).is_file() else None
    if base_record is not None:
        _check_base(found, base_record, params)
    tensors = read_tensors(found / TENSORS, _digests(found, base_record))
    try:
        adapter = _arrays(config, tensors)
        _check_complete(read_object(found / CONFIG), config, adapter)
    except ValueError as error:
        raise ValueError(f"{found / TENSORS}: {error}") from error
    places = adapter_places(config, adapter, mesh)
    placed_adapter = jax.tree.map(_on_mesh, adapter, places)
    return AdaptedParams(params, placed_adapter, scale)


def _on_mesh(array, place):
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def _scale(adapter_config, path):
    """Return the factor on the product of an adapter's matrices.

    Args:
        adapter_config: The dict of adapter_config.json.
        path: The path of that file, for messages.

    Raises:
        ValueError: The adapter is not plain LoRA, or its modules have several scales.
    """
    for field, plain_values in PLAIN.items():
        if (value := adapter_config.get(field, plain_values[0])) not in plain_values:
            raise ValueError(
                f"{path}: {field}={value!r} is not supported; it has to be {plain_values[0]!r}"
            )

    for field in ("r", "lora_alpha"):
        if not _is_positive(adapter_config.get(field)):
            raise ValueError(
                f"{path}: {field}={adapter_config.get(field)!r} must be a number above 0"
            )

    def scale(rank, alpha):
        return alpha / (math.sqrt(rank) if adapter_config.get("use_rslora") else rank)

    default_scale = scale(adapter_config["r"], adapter_config["lora_alpha"])
    ranks, alphas = (adapter_config.get(f"{name}_pattern") or {} for name in ("rank", "alpha"))
    for name, pattern in ("rank", ranks), ("alpha", alphas):
        if not isinstance(pattern, dict) or not all(map(_is_positive, pattern.values())):
            raise ValueError(f"{path}: {name}_pattern={pattern!r} must have numbers above 0")
    for key in ranks.keys() | alphas.keys():
        pattern_scale = scale(
            ranks.get(key, adapter_config["r"]), alphas.get(key, adapter_config["lora_alpha"])
        )
        if not math.isclose(pattern_scale, default_scale):
            raise ValueError(
                f"{path}: rank_pattern and alpha_pattern scale {key!r} by {pattern_scale:g}, and other "
                f"modules by {default_scale:g}; only one scale for all is supported"
            )
    return default_scale


def _is_positive(x):
    return type(x) in (int, float) and 0 < x < math.inf


def base_fingerprints(params):
    """Compute numbers that identify the parameters of an adapter's base.

    They are the same in float32 and in bfloat16, and on any mesh.

    Returns:
        {"unrounded": int, "all": int or None}. "unrounded" covers the parameters that int8 leaves
        as they are: the embedding, the head, norms, biases and routers. "all" covers every
        parameter, and is None if they are in int8.
    """

    @jax.jit
    def rounded_fingerprint(leaves):
        return fingerprint([leaf.astype(jnp.bfloat16) for leaf in leaves])

    full_fingerprint = (
        None if is_quantized(params) else int(rounded_fingerprint(jax.tree.leaves(params)))
    )
    return {
        "unrounded": int(rounded_fingerprint(unquantized_leaves(params))),
        "all": full_fingerprint,
    }


def _digests(folder, base_record):
    """Return the tensors' digests that save_adapter wrote, or None if they do not apply.

    Args:
        folder: The adapter's folder.
        base_record: The content of BASE, or None if there is no such file.
    """
    # Only peft writes inference_mode. It may have replaced our tensors and left our file in place
    if base_record is None or "inference_mode" in read_object(folder / CONFIG):
        return None
    return digests_in(folder, base_record)


def _check_base(folder, base_record, params):
    """Raise ValueError if save_adapter wrote the folder for a base with other parameters.

    Args:
        folder: The adapter's folder, for messages.
        base_record: The content of BASE.
    """
    fingerprints = base_fingerprints(params)
    comparable_names = [
        name for name in fingerprints if None not in (fingerprints[name], base_record[name])
    ]
    if any(fingerprints[name] != base_record[name] for name in comparable_names):
        raise ValueError(
            f"the adapter in {folder} was trained beside the parameters in {base_record['path']}, and these "
            "are others, or have been merged with an adapter; give that checkpoint"
        )
    if (fingerprints["all"] is None) != (base_record["all"] is None):
        say(
            f"the adapter in {folder} was trained beside weights {_kind(base_record)}, and these are "
            f"{_kind(fingerprints)}: the rounding of int8 will show in its answers"
        )


def _kind(fingerprints):
    return "in int8" if fingerprints["all"] is None else "that are not rounded"


def _arrays(config, tensors):
    """Return the adapter's arrays, in numpy: {stack: {module: {"lora_a", "lora_b"}}}."""
    tensors_by_stem: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    for name, tensor in tensors.items():
        name_parts = parse_name(name)
        if name_parts is None or name_parts[0] >= config.num_hidden_layers:
            raise ValueError(f"{name} is no tensor of an adapter that this model can have")
        layer, stem_name, part = name_parts
        tensors_by_stem.setdefault(stem_name, {})[layer, part] = tensor.astype(np.float32)
    num_dense, num_layers = config.num_dense_layers, config.num_hidden_layers
    layers = {"dense_layers": range(num_dense), "moe_layers": range(num_dense, num_layers)}
    adapter: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for stem_name, module_tensors in tensors_by_stem.items():
        module = module_of(config, stem_name, tensors_by_stem)
        stacks = [s for s in layers if len(layers[s]) and module in modules(config, s)]
        if not stacks:
            raise ValueError(f"{module} can have no adapter in this model")
        for stack in stacks:
            module_arrays = _stacked(config, module, stem_name, module_tensors, layers[stack])
            adapter.setdefault(stack, {})[module] = module_arrays
    return adapter


def _check_complete(adapter_config, config, adapter):
    """Raise ValueError if a module that the config names has no tensors, or a rank differs.

    Args:
        adapter_config: The dict of adapter_config.json.
        adapter: From _arrays.
    """
    target_lists = [
        adapter_config.get(field) or [] for field in ("target_modules", "target_parameters")
    ]
    # A string is a pattern, which may match fewer modules than it seems: only lists are checked
    names = [name for targets in target_lists if isinstance(targets, list) for name in targets]
    patterns = adapter_config.get("rank_pattern") or {}
    for stack, module in module_axes(config):
        pair = adapter.get(stack, {}).get(module)
        if pair is None:
            is_target = any(f".{module}".endswith(f".{name}") for name in names)
            if is_target and not adapter_config.get("exclude_modules"):
                raise ValueError(f"{module} has no tensors, and {CONFIG} names it as a target")
        elif (rank := pair["lora_a"].shape[-1]) not in (adapter_config["r"], *patterns.values()):
            raise ValueError(
                f"{module} has rank {rank}, and {CONFIG} has r={adapter_config['r']!r}"
            )
    if not adapter:
        raise ValueError("there are no tensors")


def _stacked(config, module, stem_name, tensors, layers):
    """Stack the two arrays of a module over some layers.

    Args:
        stem_name: The module's name in the tensors' names, see adapter_names.stem.
        tensors: {(layer, "lora_a" or "lora_b"): tensor}.
        layers: The layers of one stack, by their index in the model.

    Returns:
        {"lora_a": array, "lora_b": array}, each with a leading axis of layers.
    """
    arrays = []
    for layer in layers:
        names = tensor_names(layer, stem_name)
        for name, part in zip(names, ("lora_a", "lora_b"), strict=True):
            if (layer, part) not in tensors:
                raise ValueError(f"{name} is missing")
        a, b = tensors[layer, "lora_a"], tensors[layer, "lora_b"]
        try:
            arrays.append(to_arrays(config, module, rank_of(config, module, a), a, b))
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}: the adapter belongs to another base") from error
    a, b = zip(*arrays, strict=True)
    return {"lora_a": np.stack(a), "lora_b": np.stack(b)}
