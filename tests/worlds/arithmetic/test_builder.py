"""The corpus of sums on disk."""

import signal
import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from deepseek_jax.worlds.arithmetic.builder import ArithmeticCorpus, arithmetic_corpus
from deepseek_jax.worlds.arithmetic.corpus import CorpusMix, write_document
from deepseek_jax.worlds.written import WrittenConfig

ROOT = Path(__file__).resolve().parents[3]


def texts(source):
    return sorted(source[i]["text"].decode() for i in range(len(source)))


DEFAULT_MIX = CorpusMix()


def written(num_documents, seed, mix=DEFAULT_MIX):
    rng = np.random.default_rng(seed)
    return sorted(write_document(rng, mix) for _ in range(num_documents))


def test_corpus_holds_the_documents_of_its_seed(tmp_path):
    """Oracle: write_document in a loop; the order on disk is tfds's own."""
    source = arithmetic_corpus(tmp_path, num_documents=300, seed=3)
    assert len(source) == 300
    assert texts(source) == written(300, 3)


def test_a_second_call_reads_what_the_first_one_wrote(tmp_path):
    """Oracle: names and modification times of the files."""
    arithmetic_corpus(tmp_path, num_documents=50, seed=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = arithmetic_corpus(tmp_path, num_documents=50, seed=0)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert texts(source) == written(50, 0)


def test_other_settings_are_another_dataset_in_the_same_folder(tmp_path):
    """Oracle: write_document under each setting, read back after all of them were built."""
    mix = CorpusMix(fact_tables=1.0)
    settings = [(50, 0, DEFAULT_MIX), (50, 1, DEFAULT_MIX), (60, 0, DEFAULT_MIX), (50, 0, mix)]
    for _ in range(2):
        for num_documents, seed, mix in settings:
            source = arithmetic_corpus(tmp_path, num_documents=num_documents, seed=seed, mix=mix)
            assert texts(source) == written(num_documents, seed, mix)


@pytest.mark.slow
def test_a_killed_build_is_built_anew(tmp_path):
    """Oracle: write_document in a loop, after SIGKILL while the documents were being written."""
    arguments = f"{str(tmp_path)!r}, num_documents=30_000, seed=5"
    program = (
        "from deepseek_jax.worlds.arithmetic.builder import arithmetic_corpus as build; build({})"
    )
    process = subprocess.Popen([sys.executable, "-c", program.format(arguments)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (halves := list(tmp_path.glob("*/*/incomplete.*"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert halves[0].exists()
    source = arithmetic_corpus(tmp_path, num_documents=30_000, seed=5)
    assert texts(source) == written(30_000, 5)


def test_a_corpus_of_nothing_is_refused(tmp_path):
    """Oracle: the message names the setting."""
    with pytest.raises(ValueError, match="num_documents=0"):
        arithmetic_corpus(tmp_path, num_documents=0, seed=0)


def test_a_mix_without_numbers_has_the_name_that_it_had():
    """Oracle: the name as recorded before there were numbers: another would be built anew on every disk."""
    assert (
        WrittenConfig(num_documents=3, seed=1, mix=DEFAULT_MIX).name
        == "3_documents_seed_1_e261ca77"
    )


def test_documents_that_change_are_another_version():
    """Oracle: the digest of the first documents as this version writes them. Whoever changes how they are
    written raises ArithmeticCorpus.VERSION, so that nobody reads the old ones from disk, and this digest.
    """
    digest = blake2b("\n".join(written(200, 0)).encode(), digest_size=8).hexdigest()
    assert (str(ArithmeticCorpus.VERSION), digest) == ("1.0.0", "a2a0da0eba0054fa")
