"""GGUF files of the Llama architecture: read their config and weights with the gguf library."""

import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jax.sharding import Mesh

from deepseek_jax.checkpoint.fill import load_tensors
from deepseek_jax.checkpoint.gguf_file import read_gguf
from deepseek_jax.checkpoint.hf_names import tensors
from deepseek_jax.files import staged
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.notebooks import plainly

# Field of ModelConfig -> key of the file's metadata. Keys of OPTIONAL may be absent.
FIELDS = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
}
OPTIONAL = {
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "rope_theta": "llama.rope.freq_base",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
}


@plainly()
def load_gguf(
    path: str | Path, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Any]:
    """Read the config and the weights of a .gguf file.

    Weights are dequantised one tensor at a time.

    Args:
        path: A local path or an address in a bucket.
        dtype: Dtype of the parameters; None is float32.
        mesh: As in load_hf.

    Returns:
        (ModelConfig, params), where params is the tree of models.init_params, unboxed.

    Raises:
        ValueError: The file is not GGUF or is cut short; its architecture is not llama; it has
            scaled RoPE; or a tensor is missing, extra or wrongly shaped. In the last case the
            message has the tensor's name and the file.
    """
    path = staged(path)
    file, config = _opened(path)
    return load_tensors(config, _Tensors(path, file, config), dtype, mesh)


def gguf_config(path: str | Path):
    """Read the ModelConfig of a .gguf file, without its weights.

    Raises:
        ValueError: As load_gguf does.
    """
    return _opened(staged(path))[1]


def _opened(path):
    """Read a file's metadata: (GgufFile, ModelConfig)."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a .gguf file")
    file = read_gguf(path)
    return file, _config(path, file)


def unpermute(rows, heads: int):
    """Undo llama.cpp's order of the rows of a query or key projection.

    For heads of size x, llama.cpp's converter puts rows i and i + x / 2 of a head, a rotary pair,
    next to each other. The result is half-split again.

    Args:
        rows: [heads x, d].
        heads: Number of heads.
    """
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _config(path, file):
    # Lists have the vocabulary, which data.gguf_tokenizer reads
    read = {key: value for key, value in file.metadata.items() if not isinstance(value, list)}
    if read.get("general.architecture") != "llama":
        raise ValueError(
            f"{path}: general.architecture={read.get('general.architecture')!r}; only 'llama' is read"
        )
    scaling = read.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(
            f"{path}: llama.rope.scaling.type={scaling!r} is not read; give the Hugging Face folder"
        )
    missing = [key for key in FIELDS.values() if key not in read]
    if missing:
        raise ValueError(f"{path} lacks the metadata {', '.join(missing)}")
    names = [tensor.name for tensor in file.tensors]
    if "token_embd.weight" not in names:
        raise ValueError(f"token_embd.weight is missing from {path}")
    return ModelConfig(
        model_type="llama",
        # [d, v], because GGUF lists the fastest axis first
        vocab_size=int(file.tensors[names.index("token_embd.weight")].shape[1]),
        tie_word_embeddings="output.weight" not in names,
        **{field: read[key] for field, key in (FIELDS | OPTIONAL).items() if key in read},
    )


class _Tensors:
    """The source of load_tensors: a file's tensors under their Hugging Face names."""

    # One read at a time: devices that need other rows of the same tensor follow each other, so that
    # it is dequantised once
    READS = 1

    def __init__(self, path, file, config):
        stored = {tensor.name: tensor for tensor in file.tensors}
        gguf_name = gguf.get_tensor_name_map(
            gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers
        ).get_name
        self._stored, self._path = {}, path
        for name, places in tensors(config).items():
            ours = gguf_name(name, try_suffixes=(".weight",))
            if ours not in stored:
                raise ValueError(f"{ours} is missing from {path}, whose metadata say it is there")
            tensor = self._stored[name] = stored.pop(ours)
            # GGUF lists a tensor's sizes from the fastest axis to the slowest
            shape = tuple(int(size) for size in reversed(tensor.shape))
            if shape != places[0].turn.shape:
                raise ValueError(
                    f"{ours} in {path} has shape {list(shape)}; "
                    f"by the metadata it is {list(places[0].turn.shape)}"
                )
        if stored:
            raise ValueError(f"{next(iter(stored))} in {path} is no tensor of a plain llama model")
        self._dequantized = functools.lru_cache(maxsize=1)(self._dequantize)
        self._heads = {
            "self_attn.q_proj.weight": config.num_attention_heads,
            "self_attn.k_proj.weight": config.num_key_value_heads,
        }

    def where(self, name):
        return self._path

    def dtype(self, name):
        return np.dtype(np.float32)

    def read_rows(self, name, rows):
        return self._dequantized(name)[rows], None

    def _dequantize(self, name):
        tensor = self._stored[name]
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for suffix, heads in self._heads.items():
            if name.endswith(suffix):
                weights = unpermute(weights, heads)
        return weights
