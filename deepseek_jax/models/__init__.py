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
        "abstract_init": "decoder",
        "build_model": "config",
        "check_architecture": "config",
        "count_params": "decoder",
        "decays": "layers",
        "forward": "heads",
        "has_gradient": "layers",
        "head_weight": "heads",
        "hidden_states": "heads",
        "how_to_run": "config",
        "init_params": "decoder",
        "last_attention": "heads",
        "layer_states": "heads",
        "matrix_input_axes": "layers",
        "names_architecture": "config",
        "predict_further": "heads",
        "random_params": "decoder",
        "reported_states": "heads",
    },
)
