"""The description of any network: a ModelConfig, or DeepSeek-V4's V4Config.

Tests: tests/models/test_config.py, tests/models/v4/test_config.py.
"""

import dataclasses
import math
from pathlib import Path

from deepseek_jax.errors import suggest
from deepseek_jax.models.config import (
    ATTENTION_OF,
    OF_THE_RUN,
    ModelConfig,
    RunSettings,
    names_architecture,
)
from deepseek_jax.models.v4.config import HOW_TO_RUN as HOW_TO_RUN_V4
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.settings import build

Network = ModelConfig | V4Config
MODEL_TYPES = (*ATTENTION_OF, "deepseek_v4")
# Fields of RunSettings that V4Config does not have, because its decoder does nothing else
NOT_OF_V4 = ("fp8", "pipeline_micro_batches")


def build_model(block: dict, path: str = "model") -> Network:
    """Build the Network that a config's block `model` describes, and the RopeScaling in it.

    Args:
        block: The fields.
        path: The block's place in the config, for messages.

    Raises:
        ValueError: Naming the field, for what settings.build, ModelConfig or V4Config refuses.
    """
    model_type = block.get("model_type")
    if model_type == "deepseek_v4":
        return build(V4Config, block, path)
    # Checked before the other fields, because each type has its own
    if "model_type" in block and model_type not in MODEL_TYPES:
        raise ValueError(
            f"{path}.model_type={model_type!r} is not allowed; {suggest(model_type, MODEL_TYPES)}"
        )
    return build(ModelConfig, block, path)


def run_as(config: Network, settings: RunSettings) -> Network:
    """Return a network that runs as the settings say.

    Raises:
        ValueError: Naming the field that DeepSeek-V4 does not have.
    """
    fields = dataclasses.asdict(settings)
    if isinstance(config, V4Config):
        for name in NOT_OF_V4:
            if given := fields.pop(name):
                raise ValueError(
                    f"model.{name}={given!r} is not a field of DeepSeek-V4; leave it out"
                )
    return dataclasses.replace(config, **fields)


def require_model_config(config: Network, what: str) -> ModelConfig:
    """Return the network, which has to be a ModelConfig.

    Args:
        config: The network.
        what: What needs a ModelConfig, for the message.

    Raises:
        ValueError: The network is DeepSeek-V4's.
    """
    if isinstance(config, V4Config):
        raise ValueError(
            f"model.model_type='deepseek_v4' does not go with {what} yet; give a model of another "
            "model_type"
        )
    return config


def check_architecture(block: dict, config: Network, checkpoint: str | Path) -> None:
    """Raise ValueError if a config's block `model` and its checkpoint have different architectures.

    Args:
        block: The block; it passes if it has no architecture.
        config: The network as the checkpoint describes itself.
        checkpoint: The checkpoint's name, for the message.

    Raises:
        ValueError: Naming the first field that differs.
    """
    if not names_architecture(block):
        return
    named = build_model(block)
    # The kind of network first: two kinds have different fields
    for name in ("model_type", *(field.name for field in dataclasses.fields(named))):
        if name in OF_THE_RUN or name in HOW_TO_RUN_V4:
            continue
        ours, theirs = getattr(named, name), getattr(config, name)
        # A .gguf file stores these numbers in float32
        near = type(ours) is type(theirs) is float and math.isclose(ours, theirs, rel_tol=1e-6)
        if ours != theirs and not near:
            raise ValueError(
                f"the checkpoint {checkpoint} has {name}={theirs!r}, and model.{name}={ours!r} "
                "names another architecture; set it to the checkpoint's, or give another checkpoint"
            )
