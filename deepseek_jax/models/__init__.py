"""The network: one decoder for DeepSeek, Qwen and Llama."""

from deepseek_jax.models.config import (
    ModelConfig,
    RopeScaling,
    RunSettings,
    build_model,
    check_architecture,
    how_to_run,
    names_architecture,
)
from deepseek_jax.models.decoder import Report, count_params, init_params, random_params
from deepseek_jax.models.heads import (
    forward,
    head_weight,
    hidden_states,
    last_attention,
    layer_states,
    predict_further,
    reported_states,
)
from deepseek_jax.models.layers import decays, has_gradient, matrix_input_axes
from deepseek_jax.models.moe import Routing

__all__ = [
    "ModelConfig",
    "Report",
    "RopeScaling",
    "Routing",
    "RunSettings",
    "build_model",
    "check_architecture",
    "count_params",
    "decays",
    "forward",
    "has_gradient",
    "head_weight",
    "hidden_states",
    "how_to_run",
    "init_params",
    "last_attention",
    "layer_states",
    "matrix_input_axes",
    "names_architecture",
    "predict_further",
    "random_params",
    "reported_states",
]
