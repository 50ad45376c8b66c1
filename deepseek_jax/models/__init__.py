"""The network: one decoder for DeepSeek, Qwen and Llama."""

from deepseek_jax.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "ModelConfig": "config",
        "Report": "decoder",
        "RopeScaling": "config",
        "Routing": "moe",
        "RunSettings": "config",
        "abstract_init": "params",
        "build_model": "network_config",
        "check_architecture": "network_config",
        "count_params": "params",
        "decays": "layers",
        "forward": "heads",
        "has_gradient": "layers",
        "head_weight": "heads",
        "hidden_states": "heads",
        "how_to_run": "config",
        "init_params": "params",
        "last_attention": "heads",
        "layer_states": "heads",
        "matrix_input_axes": "layers",
        "names_architecture": "config",
        "predict_further": "heads",
        "random_params": "params",
        "reported_states": "heads",
    },
)
