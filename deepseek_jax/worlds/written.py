"""Documents and examples that toy worlds write in memory, in a reproducible order."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from deepseek_jax.data.order import hashed_order


def in_order(examples: Iterable[Any], split: str = "train") -> list[Any]:
    """Return the examples in the order of hashes of their numbers, another order for each split."""
    examples = list(examples)
    return [examples[index] for index in hashed_order(range(len(examples)), split)]


def written_corpus(write: Callable, mix: Any, *, num_documents: int, seed: int) -> list[dict]:
    """Write a corpus of documents, {"text": a text, or a sequence of turns}, with write(rng, mix).

    The same settings give the same documents.

    Raises:
        ValueError: If num_documents is not positive.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents={num_documents} is no corpus; set it to at least 1.")
    rng = np.random.default_rng(seed)
    return in_order({"text": write(rng, mix)} for _ in range(num_documents))
