"""What is scored together, and how large a reward may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# float32 squares of larger rewards overflow, and their small differences are lost
LARGEST_REWARD = 1e6
TOO_LARGE = f"rewards must be within +-{LARGEST_REWARD:g}: scale it"


@dataclass(frozen=True)
class Batch:
    """Completions with their examples, and with their tokens where these are known."""

    examples: Sequence[Mapping]
    completions: Sequence[str]
    ids: Sequence[Sequence[int]] | None = None

    def shown(self, row):
        """A completion and its question, for a message."""
        asked = str(self.examples[row].get("question"))[:80]
        return f"{self.completions[row][:80]!r} for {asked!r}"
