"""The bilingual world on disk."""

import json
from hashlib import blake2b

import numpy as np
import pytest

from deepseek_jax.data import packing as packed
from deepseek_jax.data.sources import tfds_documents
from deepseek_jax.worlds.bilingual import words as bilingual
from deepseek_jax.worlds.bilingual.builders import (
    FIELDS,
    VERSION,
    bilingual_documents,
    bilingual_examples,
)
from deepseek_jax.worlds.bilingual.corpus import CorpusMix, CorpusWriter
from deepseek_jax.worlds.bilingual.general import all_requests
from deepseek_jax.worlds.bilingual.preferences import PreferenceWriter
from deepseek_jax.worlds.bilingual.tasks import puzzle_examples, request_examples
from deepseek_jax.worlds.bilingual.tokenizer import bilingual_tokenizer
from tests.data.rows import with_rows

pack = with_rows(packed.pack)


def ordered(examples):
    return sorted(examples, key=lambda example: sorted(map(str, example.items())))


def test_the_corpus_on_disk_is_what_its_writer_writes(tmp_path):
    """Oracle: the writer itself, the order aside, and the other way to read it."""
    source = bilingual_documents(tmp_path, num_documents=300, seed=5)
    rng, writer = np.random.default_rng(5), CorpusWriter()
    written = sorted(writer.write(rng).encode() for _ in range(300))
    assert sorted(source[i]["text"] for i in range(len(source))) == written
    (folder,) = tmp_path.glob("bilingual_corpus/corpus_300_*/1.0.1")
    assert len(tfds_documents(folder)) == 300
    assert any("array_record" in file.name for file in folder.iterdir())


def test_another_mix_or_seed_is_another_dataset_and_the_same_one_is_read_again(tmp_path):
    """Oracle: names and times of the files."""
    for seed, mix in ((0, None), (1, None), (0, CorpusMix(tags=0.1)), (0, CorpusMix())):
        bilingual_documents(tmp_path, num_documents=10, seed=seed, mix=mix)
    assert len(list(tmp_path.glob("bilingual_corpus/*"))) == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    bilingual_documents(tmp_path, num_documents=10, seed=0)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_the_corpus_packs_into_rows(tmp_path):
    """Oracle: every document of an epoch, decoded from the rows that it was packed into."""
    source, tokenizer = (
        bilingual_documents(tmp_path, num_documents=50, seed=0),
        bilingual_tokenizer(),
    )
    found = []
    for batch in pack(source, tokenizer, sequence_length=64, batch_size=4, seed=0, num_epochs=1):
        for ids, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
            found += [tokenizer.decode(ids[segments == s]) for s in set(segments.tolist()) - {0}]
    assert sorted(found) == sorted(source[i]["text"].decode() for i in range(50))


@pytest.mark.parametrize("what", FIELDS)
def test_examples_come_back_as_text_and_numbers_in_two_splits(tmp_path, what):
    """Oracle: the fields by hand; held-out examples are about held-out problems, read from the
    question; a second call reads the same."""
    how = dict(num_train=60, num_held_out=30, seed=2)
    task = bilingual_examples(what, tmp_path, **how)
    assert (len(task.train), len(task.held_out)) == (60, 30)
    texts, numbers = map(str.split, FIELDS[what])
    for example in task.train + task.held_out:
        assert {k for k, v in example.items() if isinstance(v, str)} == set(texts)
        assert {k for k, v in example.items() if isinstance(v, float)} == set(numbers)
    if what != "puzzles":
        problems = {r.question: r.problem for r in all_requests()}
        for kept, examples in ((False, task.train), (True, task.held_out)):
            assert {bilingual.held_out(problems[x["question"]]) for x in examples} == {kept}
    assert bilingual_examples(what, tmp_path, **how) == task


@pytest.mark.parametrize(
    ("what", "make"), [("puzzles", puzzle_examples), ("requests", request_examples)]
)
def test_tasks_on_disk_are_those_in_memory(tmp_path, what, make):
    """Oracle: the examples as they are made."""
    task = bilingual_examples(what, tmp_path, num_train=60, num_held_out=30, seed=2)
    assert ordered(task.train) == ordered(make(2, 60))
    assert ordered(task.held_out) == ordered(make(2, 30, held_out=True))


def test_what_does_not_exist_is_refused(tmp_path):
    """Oracle: the messages name it."""
    with pytest.raises(ValueError, match="no bilingual 'songs'; choose from puzzles, requests"):
        bilingual_examples("songs", tmp_path, num_train=1, num_held_out=1, seed=0)
    with pytest.raises(ValueError, match="num_documents=0 is no corpus"):
        bilingual_documents(tmp_path, num_documents=0, seed=0)


def test_what_is_written_anew_is_another_version():
    """Oracle: the digest of the first documents and examples as this version writes them. Whoever changes how
    they are written raises VERSION, so that nobody reads the old ones from disk, and this digest.
    """
    rng, writer = np.random.default_rng(0), CorpusWriter()
    texts = [writer.write(rng) for _ in range(200)]
    examples = puzzle_examples(0, 40) + request_examples(0, 40)
    pairs = PreferenceWriter(request_examples(0, 200)).pairs(0, 20)
    written = json.dumps([texts, examples, pairs], ensure_ascii=False)
    digest = blake2b(written.encode(), digest_size=8).hexdigest()
    assert (str(VERSION), digest) == ("1.0.1", "b6c42874f7cfa415")
