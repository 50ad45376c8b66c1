"""Settings of losses. This file imports no model.

Tests: tests/losses/test_grpo_by_hand.py, tests/losses/test_grpo.py.
"""

import dataclasses
from typing import Literal

from deepseek_jax.settings import NonNegative, Positive, check_fields

# THE list of loss types. True: its paper divides advantages by their group's standard deviation
LossType = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"]
NORMALIZES_STD: dict[LossType, bool] = {
    "grpo": True,  # arXiv:2402.03300, eq. 3: mean over each completion, then over completions
    "dapo": True,  # arXiv:2503.14476, eq. 8: mean over all tokens
    "dr_grpo": False,  # arXiv:2503.20783: sum over tokens, divided by a constant
    "gspo": True,  # arXiv:2507.18071, eq. 5: one ratio for the whole completion
    "cispo": True,  # arXiv:2506.13585, section 3.1: the clipped ratio is a weight; mean over all tokens
}
# Loss types that average over all tokens of a batch; the others average over completions
BY_TOKENS = ("dapo", "cispo")


@dataclasses.dataclass(frozen=True)
class GrpoOptions:
    """The options of grpo_loss.

    Attributes:
        loss_type: A key of NORMALIZES_STD. It chooses the ratio and the normaliser.
        clip_eps: The ratio is clipped to [1 - clip_eps, 1 + clip_eps_high]. cispo clips only from
            above.
        clip_eps_high: Width of the clip above 1. None: clip_eps.
        kl_coef: The weight of the KL to the reference; 0 needs no reference.
        importance_cap: The surrogate of a token, but not its KL, is multiplied by the truncated
            importance weight min(pi_old / pi_sampler, importance_cap), without gradient.
        normalize_std: Whether advantages are divided by the standard deviation of their group,
            which V3.2 leaves out (arXiv:2512.02556, section 3.1). None: as in the paper of the loss
            type.
        ratio_cap: If the advantage is negative, the ratio is at most this (two-sided clipping,
            arXiv:2505.07291). It must be above 1 + clip_eps_high.
        unbiased_kl: Multiply the KL of a token by its ratio to the old policy, with gradient. The
            gradient is then the gradient of the KL under the policy (arXiv:2512.02556, section
            3.1).
        off_policy_limit: A completion with a negative advantage has no surrogate if the policy
            gives its tokens this many nats less, on average, than the sampler did
            (arXiv:2512.02556, section 3.1).
        lower_bound: False clips only from above, as R1's clip_eps of 10 does.
    """

    loss_type: LossType = "grpo"
    clip_eps: Positive = 0.2
    clip_eps_high: Positive | None = None
    kl_coef: NonNegative = 0.0
    importance_cap: Positive | None = None
    normalize_std: bool | None = None
    ratio_cap: Positive | None = None
    unbiased_kl: bool = False
    off_policy_limit: Positive | None = None
    lower_bound: bool = True

    def __post_init__(self):
        check_fields(self)
        _, high = self.clip_range()
        if self._bounded() and self.clip_eps >= 1:
            raise ValueError(
                f"clip_eps={self.clip_eps} leaves ratios no lower bound, as 1 - clip_eps is not above 0; set "
                "it below 1, or lower_bound=False if that is meant"
            )
        if self.ratio_cap is not None and (self.ratio_cap <= high or self.loss_type == "cispo"):
            raise ValueError(
                f"ratio_cap={self.ratio_cap} must be above 1 + clip_eps_high = {high:g}, which clips gains "
                "already, and has no use with cispo; raise it or leave it out"
            )
        if self.unbiased_kl and not self.kl_coef:
            raise ValueError("unbiased_kl=True, but kl_coef=0 has no KL; set kl_coef above 0")

    def clip_range(self):
        """Return the (lowest, highest) ratio that still has a gradient."""
        high = self.clip_eps if self.clip_eps_high is None else self.clip_eps_high
        return 1 - self.clip_eps if self._bounded() else 0.0, 1 + high

    def _bounded(self):
        return self.lower_bound and self.loss_type != "cispo"

    def normalizes_std(self):
        """Return whether advantages are divided by the standard deviation of their group."""
        normalize_std = self.normalize_std
        return NORMALIZES_STD[self.loss_type] if normalize_std is None else normalize_std
