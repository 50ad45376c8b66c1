"""Parameters from a checkpoint of any format: Orbax, GGUF, Hugging Face, or DeepSeek-V4's folders.

Tests: tests/checkpoint/test_gguf_file.py, tests/checkpoint/test_damage.py, tests/test_hub.py.
"""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from deepseek_jax.checkpoint.gguf import gguf_config, load_gguf
from deepseek_jax.checkpoint.hf_import import load_hf
from deepseek_jax.checkpoint.locate import checkpoint_path
from deepseek_jax.checkpoint.network_config import is_v4, read_network
from deepseek_jax.checkpoint.orbax_params import is_orbax, load_orbax
from deepseek_jax.checkpoint.v4_import import load_v4
from deepseek_jax.models.network_config import Network
from deepseek_jax.progress import waiting_for

# Format -> the function that reads the parameters, and the one that reads the config
LOADERS = {"orbax": load_orbax, "gguf": load_gguf, "hf": load_hf, "v4": load_v4}
CONFIGS = {"orbax": read_network, "gguf": gguf_config, "hf": read_network, "v4": read_network}


def load_params(
    path: str | Path, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[Network, Any]:
    """Load the config and the parameters of a checkpoint in any format.

    Args:
        path: A path or a name, see locate.checkpoint_path.
        dtype: As in load_orbax, load_gguf, load_hf or load_v4.
        mesh: As in load_hf.

    Returns:
        (Network, params).
    """
    found = checkpoint_path(path)
    with waiting_for(f"loading {found}"):
        return LOADERS[_format(found)](found, dtype, mesh)


def read_any_config(path: str | Path) -> Network:
    """Read the Network of a checkpoint in any format; its parameters need not be there."""
    found = checkpoint_path(path, weights=False)
    return CONFIGS[_format(found)](found)


def _format(path):
    if is_orbax(path):
        return "orbax"
    if path.suffix == ".gguf":
        return "gguf"
    return "v4" if is_v4(path) else "hf"
