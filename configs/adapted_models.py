"""Models of grpo_lora.py and sft_lora.py: where each starts, and which part of it is trained."""

from configs import models

# Adapters on the attention and the MLPs of decoder layers; in a model with routed experts, only on
# the attention
LORA = dict(rank=16, alpha=32.0, targets=["all-linear"])
# name -> (config.init_from, config.model, config.adapter, config.mesh)
MODELS = {
    "qwen2_5_1_5b": ("Qwen2.5-1.5B-Instruct", models.qwen2_5_1_5b_instruct(), LORA, {}),
    "r1_distill_qwen_1_5b": (
        "DeepSeek-R1-Distill-Qwen-1.5B",
        models.r1_distill_qwen_1_5b(),
        LORA,
        {},
    ),
    "r1_distill_qwen_7b": (
        "DeepSeek-R1-Distill-Qwen-7B",
        models.r1_distill_qwen_7b(),
        LORA | dict(quantize="int8"),
        {},
    ),
    # Small enough to train all its parameters
    "qwen3_0_6b": ("Qwen3-0.6B", models.qwen3_0_6b(), None, {}),
    "deepseek_v2_lite": (
        "DeepSeek-V2-Lite-Chat",
        models.deepseek_v2_lite() | dict(expert_buffer=2.0),
        LORA,
        dict(fsdp=2, expert=8),
    ),
}


def start_from(c, name: str):
    """Change a config that starts from SmolLM2 to start from another model, with its adapter.

    Sets init_from, model, adapter and mesh. With "smollm2" the start stays, and only the adapter is
    set.

    Args:
        c: The ConfigDict, changed in place.
        name: A name in MODELS, or "smollm2".

    Raises:
        ValueError: The name is unknown.
    """
    c.unlock()
    if name == "smollm2":
        c.adapter = LORA
        return
    if name not in MODELS:
        names = ", ".join([*MODELS, "smollm2"])
        raise ValueError(f"config argument model={name!r} must be one of {names}")
    c.init_from, c.model, adapter, c.mesh = MODELS[name]
    if adapter is not None:
        c.adapter = adapter
