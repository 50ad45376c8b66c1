"""The settings of adapters: a low-rank product beside each of some weights (arXiv:2106.09685)."""

import dataclasses
from typing import Literal

from deepseek_jax.settings import Count, Positive

# Attention and MLPs; in a model with routed experts attention alone
ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """Adapters of this rank; their product is scaled by alpha / rank.

    targets: Hugging Face's names of modules, such as "q_proj"; "experts.gate_up_proj" and
    "experts.down_proj" for routed experts; "all-linear" for attention and MLPs, in a model with routed
    experts for attention alone. quantize: "int8" keeps the frozen weights in half the memory of bfloat16, see
    models.quantized.
    """

    rank: Count
    alpha: Positive
    targets: tuple[str, ...] = (ALL_LINEAR,)
    quantize: Literal["int8"] | None = None
