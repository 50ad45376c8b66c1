"""An order in which the last examples, which may be held out, are like the others."""

import hashlib
from collections.abc import Iterable


def hashed_order(keys: Iterable, split: str = "train") -> list[int]:
    """The indices of the keys in the order of their hashes, another one for each split: that in which TFDS
    shuffles examples with these keys.
    """
    hashes = [hashlib.md5(f"{split}{key}".encode(), usedforsecurity=False).digest() for key in keys]
    return sorted(range(len(hashes)), key=hashes.__getitem__)
