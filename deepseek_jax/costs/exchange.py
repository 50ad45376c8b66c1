"""How much more an update sends to experts than it sends of weights: by this a mesh lies on the torus."""

from deepseek_jax.models import ModelConfig, build_model, count_params
from deepseek_jax.models.config import names_architecture

# Tokens of a device in a micro-batch, those of DeepSeek-V3's pre-training: a row
TOKENS = 4096


def exchange_of(block: dict, expert: int) -> float:
    """The share of the experts' exchange in what the updates of a config.model send, as a multiple of
    DeepSeek-V3's on 32 devices of the axis expert; 1.0 where the block names no architecture with experts.
    expert: devices of that axis.
    """
    if not names_architecture(block):
        return 1.0
    config = build_model(block)
    if not config.n_routed_experts:
        return 1.0
    return _ratio(config, expert) / V3


def _ratio(config: ModelConfig, expert: int):
    """What a device sends to experts in a micro-batch, over what it sends along fsdp of weights and their
    gradients.
    """
    layers, d = config.num_moe_layers + config.num_nextn_predict_layers, config.hidden_size
    experts = layers * 3 * d * config.moe_intermediate_size * config.n_routed_experts
    # There and back, in the forward pass, its repetition and the backward pass
    exchanged = 6 * layers * TOKENS * config.num_experts_per_tok * d
    # Gathered in both passes, and one sum of gradients
    gathered = 3 * (count_params(config) - experts + experts / expert)
    return exchanged / gathered


# _ratio of DeepSeek-V3 on 32 devices of the axis expert, by whose programs placement.TRAFFIC was counted
V3 = 0.725
