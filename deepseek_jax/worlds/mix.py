"""The shares that make up a toy world's corpus, checked when they are built.

Tests: tests/worlds/arithmetic/test_corpus.py.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Mix:
    """The contents of a corpus: each field is a share in 0..1.

    Raises:
        ValueError: If a field is not in 0..1.
    """

    def __post_init__(self):
        for field in fields(self):
            share = getattr(self, field.name)
            if not 0 <= share <= 1:
                raise ValueError(f"{field.name}={share} is not a share; choose a value in 0..1.")
