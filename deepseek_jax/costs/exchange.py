"""How much an update sends to experts, compared with weights.

The ratio decides how a mesh lies on the torus, see parallel.placement.
"""

from collections.abc import Callable

from deepseek_jax.models.config import names_architecture
from deepseek_jax.models.network_config import Network, build_model
from deepseek_jax.models.params import count_params

# Tokens of a device in a micro-batch: one row, as in DeepSeek-V3's pre-training
TOKENS = 4096
# ratio_of DeepSeek-V3 on 32 devices of the axis expert: placement.TRAFFIC was counted in its programs
V3 = 0.725


def exchange_of(block: dict) -> Callable[[int], float]:
    """Build the argument `exchange` of parallel.make_mesh from a config's block `model`.

    Returns:
        A function of the number of devices on the axis expert. It is 1.0 for DeepSeek-V3 on 32
        devices, and if the block names no architecture with experts.
    """
    config = build_model(block) if names_architecture(block) else None
    if config is None or not config.n_routed_experts:
        return lambda expert: 1.0
    return lambda expert: ratio_of(config, expert) / V3


def ratio_of(config: Network, expert: int) -> float:
    """Return what a device sends to experts in a micro-batch, over what it sends of weights.

    Weights include their gradients.
    """
    layers, d = config.num_moe_layers + config.num_nextn_predict_layers, config.hidden_size
    experts = config.experts
    of_experts = layers * 3 * d * experts.moe_intermediate_size * experts.n_routed_experts
    # There and back, in the forward pass, its recomputation and the backward pass
    exchanged = 6 * layers * TOKENS * experts.num_experts_per_tok * d
    # Gathered in both passes, and one sum of gradients
    gathered = 3 * (count_params(config) - of_experts + of_experts / expert)
    return exchanged / gathered
