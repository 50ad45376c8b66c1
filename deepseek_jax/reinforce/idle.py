"""Checks that GRPO's two terms, the advantages and the KL to the reference, have their effect."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from deepseek_jax.errors import BrokenTerm
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.reinforce.settings import ReinforceSettings


def check_reference(settings: ReinforceSettings, largest: float, metrics: Mapping):
    """Raise BrokenTerm if the KL of a phase's first update is larger than rounding explains.

    The reference of that update is the policy itself.

    Args:
        largest: the largest KL that rounding explains, in nats a token.
        metrics: the metrics of the update.
    """
    if settings.loss.kl_coef and float(metrics["kl"]) > largest:
        raise BrokenTerm(
            f"loss.kl_coef={settings.loss.kl_coef}: at the first update the KL to the reference is "
            f"{float(metrics['kl']):.1e} nats a token, above {largest:.1e}: the reference is not the "
            "policy that the training starts from"
        )


# The largest rounding error of a sum over thousands of rows in float32, relative to the sum of the
# absolute values
MARKS_ROUNDING = 1e-4


class IdleUpdates:
    """A check for updates that do nothing, in the lines that a phase logs.

    Args:
        source: it knows the step's advantages, and whether the policy has moved from its reference.
    """

    def __init__(self, settings: ReinforceSettings, source: GroupSource):
        self.settings, self.source = settings, source
        self.counts: Counter[str] = Counter()

    def look(self, step: int, line: Mapping[str, float]):
        """Look at a logged line.

        Raises:
            BrokenTerm: for the same idle term in faults.idle_lines lines in a row; and at once for
                a loss over other tokens than the step's completions have, or with advantages in the
                rows of other completions.
        """
        # The line has the mean over updates. float32 rounds the number of a pod's tokens
        learned_tokens = line["learned_tokens"] * self.settings.minibatches
        if not math.isclose(learned_tokens, line["tokens"], rel_tol=1e-6):
            raise BrokenTerm(
                f"step {step}: the losses of its updates have {learned_tokens:.0f} tokens of completions in "
                f"place of {line['tokens']:.0f}: a mask of the loss is wrong"
            )
        self._check_places(step, line)
        reasons = dict(self._faults(line))
        self.counts = Counter({name: self.counts[name] + 1 for name in reasons})
        for name, count in self.counts.items():
            if count >= self.settings.faults.idle_lines:
                raise BrokenTerm(
                    f"{name} is exactly 0 in {count} lines in a row up to step {step}, {reasons[name]}"
                )

    def _check_places(self, step: int, line: Mapping[str, float]):
        advantages, marks = (
            np.asarray(x, np.float64)
            for x in (self.source.record.advantages, self.source.record.marks)
        )
        # The line has the mean over updates
        marked_sum, expected_sum = (
            line["marked_advantages"] * self.settings.minibatches,
            advantages @ marks,
        )
        if abs(marked_sum - expected_sum) > MARKS_ROUNDING * (np.abs(advantages) @ marks):
            raise BrokenTerm(
                f"step {step}: the sum of advantages, each times the mark of its row, is {marked_sum:.6g} in "
                f"the losses of its updates in place of {expected_sum:.6g}: they stand in the rows of other "
                "completions"
            )

    def _faults(self, line: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if line.get("kl") == 0 and self.source.has_moved:
            kl_coef = self.settings.loss.kl_coef
            yield (
                "kl",
                f"though the policy has moved from its reference: loss.kl_coef={kl_coef} does nothing",
            )
        if line["grad_norm"] == 0 and line["all_equal_share"] < 1:
            yield "grad_norm", "though rewards differ: no trained parameter changes the completions"
