"""Corpora of turns on disk: long sums, and games."""

from hashlib import blake2b

import numpy as np
import pytest

from deepseek_jax.worlds.calculator import builder as calculator
from deepseek_jax.worlds.calculator import corpus as sums
from deepseek_jax.worlds.guess import builder as guess
from deepseek_jax.worlds.guess import corpus as games

# The builder, its documents, and the digest of the first ones
CORPORA = [
    (calculator.CalculatorCorpus, calculator.calculator_corpus, sums, "f9e45ab0353cfa31"),
    (guess.GuessCorpus, guess.guess_corpus, games, "7a713547f78f43a9"),
]
each_corpus = pytest.mark.parametrize(
    "builder, documents, corpus, digest", CORPORA, ids=["sums", "games"]
)


def written(corpus, num_documents, seed):
    rng = np.random.default_rng(seed)
    return sorted(corpus.write_document(rng) for _ in range(num_documents))


@each_corpus
def test_a_corpus_holds_the_turns_of_the_documents_of_its_seed(
    builder, documents, corpus, digest, tmp_path
):
    """Oracle: write_document in a loop, after a first call and a second one; another seed beside it."""
    for seed in (3, 4, 3):
        source = documents(tmp_path, num_documents=300, seed=seed)
        read = [[text.decode() for text in source[i]["text"]] for i in range(len(source))]
        assert sorted(read) == written(corpus, 300, seed)


@each_corpus
def test_documents_that_change_are_another_version(builder, documents, corpus, digest):
    """Oracle: the digest of the first documents as this version writes them. Whoever changes how they are
    written raises the builder's VERSION, so that nobody reads the old ones from disk, and this digest.
    """
    found = blake2b(repr(written(corpus, 200, 0)).encode(), digest_size=8).hexdigest()
    assert (str(builder.VERSION), found) == ("1.0.0", digest)
