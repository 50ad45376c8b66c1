"""The corpus and the examples of the bilingual world."""

import json
from hashlib import blake2b

import numpy as np
import pytest

from deepseek_jax.data import packing as packed
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.corpus import CorpusMix, CorpusWriter
from deepseek_jax.worlds.bilingual.examples import (
    KINDS,
    bilingual_documents,
    bilingual_examples,
)
from deepseek_jax.worlds.bilingual.general import all_requests
from deepseek_jax.worlds.bilingual.preferences import PreferenceWriter
from deepseek_jax.worlds.bilingual.tasks import puzzle_examples, request_examples
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from tests.data.rows import with_rows

pack = with_rows(packed.pack)


def ordered(examples):
    return sorted(examples, key=lambda example: sorted(map(str, example.items())))


def test_the_corpus_is_what_its_writer_writes():
    """Oracle: the writer itself, the order aside, and a second call; another mix is another corpus."""
    source = bilingual_documents(num_documents=300, seed=5)
    rng, writer = np.random.default_rng(5), CorpusWriter()
    assert sorted(e["text"] for e in source) == sorted(writer.write(rng) for _ in range(300))
    assert bilingual_documents(CorpusMix(), num_documents=300, seed=5) == source
    assert bilingual_documents(CorpusMix(tags=0.1), num_documents=300, seed=5) != source


def test_the_corpus_packs_into_rows():
    """Oracle: every document of an epoch, decoded from the rows that it was packed into."""
    source, tokenizer = (
        bilingual_documents(num_documents=50, seed=0),
        bilingual_tokenizer(),
    )
    found = []
    for batch in pack(source, tokenizer, sequence_length=64, batch_size=4, seed=0, num_epochs=1):
        for ids, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
            found += [tokenizer.decode(ids[segments == s]) for s in set(segments.tolist()) - {0}]
    assert sorted(found) == sorted(document["text"] for document in source)


@pytest.mark.parametrize("what", KINDS)
def test_held_out_examples_are_about_held_out_problems(what):
    """Oracle: the sizes; the problems, read from the questions; a second call makes the same."""
    how = dict(num_train=60, num_held_out=30, seed=2)
    task = bilingual_examples(what, **how)
    assert (len(task.train), len(task.held_out)) == (60, 30)
    if what != "puzzles":
        problems = {r.question: r.problem for r in all_requests()}
        for kept, examples in ((False, task.train), (True, task.held_out)):
            assert {bilingual.held_out(problems[x["question"]]) for x in examples} == {kept}
    assert bilingual_examples(what, **how) == task


@pytest.mark.parametrize(
    ("what", "make"), [("puzzles", puzzle_examples), ("requests", request_examples)]
)
def test_tasks_are_what_their_writers_make(what, make):
    """Oracle: the examples as they are made."""
    task = bilingual_examples(what, num_train=60, num_held_out=30, seed=2)
    assert ordered(task.train) == ordered(make(2, 60))
    assert ordered(task.held_out) == ordered(make(2, 30, held_out=True))


def test_what_does_not_exist_is_refused():
    """Oracle: the messages name it."""
    with pytest.raises(ValueError, match="no bilingual 'songs'; choose from puzzles, requests"):
        bilingual_examples("songs", num_train=1, num_held_out=1, seed=0)
    with pytest.raises(ValueError, match="num_documents=0 is no corpus"):
        bilingual_documents(num_documents=0, seed=0)


def test_what_is_written_anew_is_meant_to_be():
    """Oracle: the digest of the first documents and examples as this version writes them."""
    rng, writer = np.random.default_rng(0), CorpusWriter()
    texts = [writer.write(rng) for _ in range(200)]
    examples = puzzle_examples(0, 40) + request_examples(0, 40)
    pairs = PreferenceWriter(request_examples(0, 200)).pairs(0, 20)
    written = json.dumps([texts, examples, pairs], ensure_ascii=False)
    digest = blake2b(written.encode(), digest_size=8).hexdigest()
    assert digest == "b6c42874f7cfa415"
