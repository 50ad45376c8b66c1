"""Corpora of turns, long sums and games, and the order of what worlds write."""

import hashlib
from hashlib import blake2b

import numpy as np
import pytest

from deepseek_jax.worlds.calculator import corpus as sums
from deepseek_jax.worlds.guess import corpus as games
from deepseek_jax.worlds.registry import find_corpus
from deepseek_jax.worlds.written import in_order, written_corpus

# The corpus, its documents, and the digest of the first ones
CORPORA = [("calculator", sums, "f9e45ab0353cfa31"), ("guess", games, "7a713547f78f43a9")]
each_corpus = pytest.mark.parametrize("name, corpus, digest", CORPORA, ids=["sums", "games"])


def written(corpus, num_documents, seed):
    rng = np.random.default_rng(seed)
    return sorted(corpus.write_document(rng) for _ in range(num_documents))


@each_corpus
def test_a_corpus_holds_the_turns_of_the_documents_of_its_seed(name, corpus, digest):
    """Oracle: write_document in a loop, after a first call and a second one; another seed beside it."""
    _, documents = find_corpus(name)
    for seed in (3, 4, 3):
        source = documents(num_documents=300, seed=seed)
        assert sorted(document["text"] for document in source) == written(corpus, 300, seed)


@each_corpus
def test_documents_that_change_are_meant_to(name, corpus, digest):
    """Oracle: the digest of the first documents as this version writes them."""
    found = blake2b(repr(written(corpus, 200, 0)).encode(), digest_size=8).hexdigest()
    assert found == digest


def test_the_order_is_one_of_hashes_and_each_split_has_its_own():
    """Oracle: a sort by md5 of split and number, as TFDS has it; the last tenth has its share of the first
    half.
    """
    numbers = list(range(1000))
    ours = in_order(numbers, "held_out")
    digests = {i: hashlib.md5(f"held_out{i}".encode()).hexdigest() for i in numbers}
    assert ours == sorted(numbers, key=digests.get) != in_order(numbers)
    assert 30 <= sum(number < 500 for number in ours[-100:]) <= 70


def test_a_corpus_has_at_least_one_document():
    """Oracle: by hand, on either side of the limit."""

    def write(rng, mix):
        return mix

    assert written_corpus(write, "a text", num_documents=1, seed=0) == [{"text": "a text"}]
    with pytest.raises(ValueError, match="num_documents=0 is no corpus; set it to at least 1"):
        written_corpus(write, "a text", num_documents=0, seed=0)
