"""The settings of adapters: low-rank products added to some weights (arXiv:2106.09685).

Tests: tests/models/test_adapter_modules.py.
"""

import dataclasses
from typing import Literal

from deepseek_jax.settings import Count, Positive

# Attention and MLPs, but only attention in a model with routed experts
ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """The block of a config that adds an adapter to a model.

    Attributes:
        rank: Rank of the adapter's product.
        alpha: The product is scaled by alpha / rank.
        targets: Hugging Face's names of modules, such as "q_proj"; "experts.gate_up_proj" and
            "experts.down_proj" for routed experts; "all-linear" for attention and MLPs, but only
            attention in a model with routed experts.
        quantize: "int8" stores the frozen weights in half the memory of bfloat16, see
            models.quantized.
    """

    rank: Count
    alpha: Positive
    targets: tuple[str, ...] = (ALL_LINEAR,)
    quantize: Literal["int8"] | None = None
