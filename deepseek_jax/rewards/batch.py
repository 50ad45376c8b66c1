"""A batch of completions to score together, and the limit on the size of a reward.

Tests: tests/reinforce/test_degenerate.py, tests/rewards/test_function.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# In float32, squares of larger rewards overflow and small differences between them are lost
LARGEST_REWARD = 1e6
TOO_LARGE = f"rewards must be within +-{LARGEST_REWARD:g}: scale it"


@dataclass(frozen=True)
class Batch:
    """Completions to score together, with their examples.

    Attributes:
        examples: One Mapping per completion.
        completions: The texts.
        ids: The token ids of each completion, or None if they are not known.
    """

    examples: Sequence[Mapping]
    completions: Sequence[str]
    ids: Sequence[Sequence[int]] | None = None

    def quoted(self, row):
        """Quote the start of a completion and of its question, for a message."""
        question = str(self.examples[row].get("question"))[:80]
        return f"{self.completions[row][:80]!r} for {question!r}"
