"""The corpus of sums."""

from hashlib import blake2b

import numpy as np
import pytest

from deepseek_jax.worlds.arithmetic.corpus import CorpusMix, write_document
from deepseek_jax.worlds.registry import find_corpus

DEFAULT_MIX = CorpusMix()
_, arithmetic_corpus = find_corpus("arithmetic")


def written(num_documents, seed, mix=DEFAULT_MIX):
    rng = np.random.default_rng(seed)
    return sorted(write_document(rng, mix) for _ in range(num_documents))


def test_corpus_holds_the_documents_of_its_seed():
    """Oracle: write_document in a loop, in another order; a second call, which has the same one."""
    texts = [document["text"] for document in arithmetic_corpus(num_documents=300, seed=3)]
    assert sorted(texts) == written(300, 3) != sorted(written(300, 4))
    assert texts == [e["text"] for e in arithmetic_corpus(num_documents=300, seed=3)]


def test_a_corpus_of_nothing_is_refused():
    """Oracle: the message names the setting."""
    with pytest.raises(ValueError, match="num_documents=0"):
        arithmetic_corpus(num_documents=0, seed=0)


def test_documents_that_change_are_meant_to():
    """Oracle: the digest of the first documents as this version writes them: an edit of one word trains other
    bases, and their stages run anew.
    """
    digest = blake2b("\n".join(written(200, 0)).encode(), digest_size=8).hexdigest()
    assert digest == "a2a0da0eba0054fa"
