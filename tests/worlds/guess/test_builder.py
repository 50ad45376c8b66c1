"""The corpus of games on disk."""

from hashlib import blake2b

import numpy as np
import pytest

from deepseek_jax.worlds.guess.builder import GuessCorpus, guess_corpus
from deepseek_jax.worlds.guess.corpus import write_document


def written(num_documents, seed):
    rng = np.random.default_rng(seed)
    return sorted(write_document(rng) for _ in range(num_documents))


def test_corpus_holds_the_turns_of_the_documents_of_its_seed(tmp_path):
    """Oracle: write_document in a loop, after a first call and a second one; another seed beside it."""
    for seed in (3, 4, 3):
        source = guess_corpus(tmp_path, num_documents=300, seed=seed)
        read = [[text.decode() for text in source[i]["text"]] for i in range(len(source))]
        assert sorted(read) == written(300, seed)


def test_a_corpus_of_nothing_is_refused(tmp_path):
    """Oracle: the message names the setting."""
    with pytest.raises(ValueError, match="num_documents=0"):
        guess_corpus(tmp_path, num_documents=0, seed=0)


def test_documents_that_change_are_another_version():
    """Oracle: the digest of the first documents as this version writes them. Whoever changes how they are
    written raises GuessCorpus.VERSION, so that nobody reads the old ones from disk, and this digest.
    """
    digest = blake2b(repr(written(200, 0)).encode(), digest_size=8).hexdigest()
    assert (str(GuessCorpus.VERSION), digest) == ("1.0.0", "7a713547f78f43a9")
