"""Packed rows, against a reading of them token by token."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from deepseek_jax.data.arithmetic import write_document
from deepseek_jax.data.packing import pack
from deepseek_jax.data.sources import arithmetic_corpus
from deepseek_jax.data.tokenizer import Tokenizer, arithmetic_tokenizer

TOKENIZER = arithmetic_tokenizer()


def make_documents(n, seed=0):
    rng = np.random.default_rng(seed)
    return [{"text": write_document(rng)} for _ in range(n)]


def token_lists(documents):
    return [(*TOKENIZER.encode(doc["text"]), TOKENIZER.eos_id) for doc in documents]


def read_segments(batch):
    """The tokens of every segment, row by row; segments must be contiguous, padding last."""
    segments = []
    for tokens, ids in zip(batch["tokens"].tolist(), batch["segment_ids"].tolist(), strict=True):
        runs = [(s, list(run)) for s, run in itertools.groupby(range(len(ids)), ids.__getitem__)]
        used = [s for s, _ in runs if s > 0]
        assert [s for s, _ in runs] == list(range(1, len(used) + 1)) + [0] * (0 in ids)
        segments += [tuple(tokens[i] for i in run) for s, run in runs if s > 0]
    return segments


def assert_batches_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


def test_every_document_is_one_contiguous_segment_once_an_epoch():
    """Oracle: the documents' own tokens, counted."""
    documents = make_documents(700)
    batches = pack(documents, TOKENIZER, sequence_length=64, batch_size=8, seed=0, num_epochs=1)
    segments = [segment for batch in batches for segment in read_segments(batch)]
    assert Counter(segments) == Counter(token_lists(documents))


def test_targets_mask_positions_and_normalizer_follow_from_tokens_and_segments():
    """Oracle: a loop over every token of every row."""
    batches = pack(
        make_documents(200), TOKENIZER, sequence_length=32, batch_size=4, seed=1, num_epochs=1
    )
    for batch in batches:
        count = 0
        for row, col in np.ndindex(4, 32):
            segment = batch["segment_ids"][row, col]
            inside = col + 1 < 32 and segment > 0 and batch["segment_ids"][row, col + 1] == segment
            assert batch["loss_mask"][row, col] == inside
            target = batch["tokens"][row, col + 1] if inside else TOKENIZER.pad_id
            assert batch["targets"][row, col] == target
            restart = segment == 0 or col == 0 or batch["segment_ids"][row, col - 1] != segment
            before = -1 if restart else batch["positions"][row, col - 1]
            assert batch["positions"][row, col] == before + 1
            assert segment > 0 or batch["tokens"][row, col] == TOKENIZER.pad_id
            count += inside
        assert batch["normalizer"] == count


def test_batches_have_fixed_shapes_and_dtypes_to_the_last():
    """Oracle: the shapes and dtypes that the docstring promises."""
    batches = pack(
        make_documents(150), TOKENIZER, sequence_length=64, batch_size=16, seed=0, num_epochs=1
    )
    shapes = {"tokens": np.int32, "targets": np.int32, "loss_mask": np.bool_}
    shapes |= {"segment_ids": np.int32, "positions": np.int32}
    for batch in batches:
        assert {name: batch[name].dtype for name in shapes} == shapes
        assert all(batch[name].shape == (16, 64) for name in shapes)
        assert batch["normalizer"].dtype == np.float32 and batch["normalizer"].shape == ()
        assert batch.keys() == shapes.keys() | {"normalizer"}


def test_a_document_longer_than_a_row_is_predicted_whole_and_once():
    """Oracle: every pair of neighbouring tokens in the documents, counted."""
    documents = make_documents(60)  # up to 48 tokens
    batches = pack(documents, TOKENIZER, sequence_length=9, batch_size=4, seed=0, num_epochs=1)
    pairs = Counter()
    for batch in batches:
        mask = batch["loss_mask"]
        pairs.update(
            zip(batch["tokens"][mask].tolist(), batch["targets"][mask].tolist(), strict=True)
        )
    assert pairs == Counter(
        pair for ids in token_lists(documents) for pair in itertools.pairwise(ids)
    )


def test_an_empty_document_leaves_no_segment():
    """Oracle: by hand: its end token alone predicts nothing."""
    documents = [{"text": ""}, {"text": "7"}, {"text": ""}]
    (batch,) = pack(documents, TOKENIZER, sequence_length=8, batch_size=1, seed=0, num_epochs=1)
    assert read_segments(batch) == [(7, TOKENIZER.eos_id)]


def test_masks_do_not_depend_on_the_padding_id():
    """Oracle: the same rows under a pad that equals eos, and one that equals a digit."""
    documents = make_documents(80)
    plain, *others = (
        list(
            pack(
                documents,
                Tokenizer(TOKENIZER.backend, eos_id=TOKENIZER.eos_id, pad_id=pad_id),
                sequence_length=64,
                batch_size=4,
                seed=0,
                num_epochs=1,
            )
        )
        for pad_id in (TOKENIZER.pad_id, TOKENIZER.eos_id, 3)
    )
    for batches in others:
        for left, right in zip(plain, batches, strict=True):
            for name in ("loss_mask", "segment_ids", "positions", "normalizer"):
                np.testing.assert_array_equal(left[name], right[name])
            real = left["segment_ids"] > 0
            np.testing.assert_array_equal(left["tokens"][real], right["tokens"][real])


@pytest.mark.parametrize("taken", [0, 1, 16, 21])
def test_a_resumed_iterator_yields_what_the_uninterrupted_one_would(taken):
    """Oracle: the uninterrupted run, across an epoch's end; the state went through JSON."""

    def start():
        documents = make_documents(300)
        return iter(pack(documents, TOKENIZER, sequence_length=64, batch_size=8, seed=2))

    uninterrupted = list(itertools.islice(start(), 40))
    first = start()
    for _ in range(taken):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    resumed = start()
    resumed.set_state(state)
    for expected in uninterrupted[taken:]:
        assert_batches_equal(next(resumed), expected)


def test_the_seed_sets_the_order_and_each_epoch_has_its_own():
    """Oracle: two runs of one seed, another seed, and the two halves of a run of two epochs."""
    documents = [{"text": str(n)} for n in range(100, 356)]  # 4 tokens each: 128 rows of 2 an epoch

    def order(seed):
        batches = pack(
            documents, TOKENIZER, sequence_length=8, batch_size=1, seed=seed, num_epochs=2
        )
        return [segment for batch in batches for segment in read_segments(batch)]

    first = order(0)
    assert first == order(0) != order(1)
    assert len(first) == 512 and first[:256] != first[256:]
    assert sorted(first[:256]) == sorted(first[256:]) == sorted(token_lists(documents))


def test_the_corpus_on_disk_packs_as_its_documents_in_memory_do(tmp_path):
    """Oracle: the same documents given as a list of str; records are read in blocks of bytes."""
    source = arithmetic_corpus(tmp_path, num_documents=200, seed=0)
    in_memory = [{"text": source[i]["text"].decode()} for i in range(len(source))]
    settings = dict(sequence_length=64, batch_size=8, seed=0, num_epochs=1)
    pairs = zip(
        pack(source, TOKENIZER, **settings), pack(in_memory, TOKENIZER, **settings), strict=True
    )
    for left, right in pairs:
        assert_batches_equal(left, right)


def test_a_document_outside_the_vocabulary_stops_the_run():
    """Oracle: the error of the tokenizer, raised in the thread that calls next()."""
    batches = pack([{"text": "hello"}], TOKENIZER, sequence_length=8, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="cannot encode 'hello'"):
        next(iter(batches))


@pytest.mark.parametrize(
    ("source", "sequence_length", "batch_size", "complaint"),
    [
        ([], 8, 1, "no documents"),
        ([{"text": "7"}], 1, 1, "sequence_length=1"),
        ([{"text": "7"}], 8, 0, "batch_size=0"),
    ],
)
def test_settings_that_leave_nothing_to_learn_are_refused(
    source, sequence_length, batch_size, complaint
):
    """Oracle: the message names the setting."""
    with pytest.raises(ValueError, match=complaint):
        pack(source, TOKENIZER, sequence_length=sequence_length, batch_size=batch_size, seed=0)
