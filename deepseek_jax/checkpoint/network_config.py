"""config.json of any network, and its conversion back.

Tests: tests/checkpoint/test_orbax_params.py, tests/recipes/grpo/test_v4.py.
"""

from pathlib import Path

from deepseek_jax.checkpoint.hf_config import config_json, read_config, read_json
from deepseek_jax.checkpoint.v4_config import read_v4_config, v4_config_json
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.v4.config import V4Config


def read_network(folder: str | Path) -> Network:
    """Read the Network of folder/config.json.

    Raises:
        ValueError: As hf_config.read_config and v4_config.read_v4_config do.
    """
    return (read_v4_config if is_v4(folder) else read_config)(folder)


def is_v4(folder: str | Path) -> bool:
    """Return whether folder/config.json is of DeepSeek-V4, or of a later model that it refuses."""
    return str(read_json(folder).get("model_type")).startswith("deepseek_v4")


def network_json(config: Network, *, dtype) -> dict:
    """Convert a Network to config.json's dict.

    Args:
        config: The network.
        dtype: Dtype of the parameters.
    """
    if isinstance(config, V4Config):
        return v4_config_json(config, dtype=dtype)
    return config_json(config, dtype=dtype)
