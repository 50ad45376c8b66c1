"""A hashed order of examples: the last ones, which may be held out, are like the others.

Tests: tests/worlds/test_written.py.
"""

import hashlib
from collections.abc import Iterable


def hashed_order(keys: Iterable, split: str = "train") -> list[int]:
    """Return the indices of the keys, sorted by a hash of split and key.

    Each split has another order. TFDS shuffles examples with these keys in the same order.
    """
    hashes = [hashlib.md5(f"{split}{key}".encode(), usedforsecurity=False).digest() for key in keys]
    return sorted(range(len(hashes)), key=hashes.__getitem__)
