"""Packed rows, against a reading of them token by token."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from deepseek_jax.data import packing as packed
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.sources import file_documents
from deepseek_jax.data.tokenizer import Tokenizer, closed_tokenizer
from deepseek_jax.worlds.arithmetic.corpus import write_document
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from deepseek_jax.worlds.registry import find_corpus
from tests.data.rows import with_rows
from tests.quick import others_slow

pack = with_rows(packed.pack)

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


def test_a_normalizer_counts_every_weight():
    """Oracle: by hand: one weight of 2**24, to which a sum in float32 adds no 1, and a hundred of 1."""
    weights = np.ones((1, 101), np.float32)
    weights[0, 0] = 2.0**24
    ones = np.ones((1, 101), np.int32)
    rows = {"loss_weights": weights, "loss_mask": ones > 0, "segment_ids": ones}
    assert packed.totals(rows) == {"normalizer": 2.0**24 + 100, "num_tokens": 101}


def test_targets_mask_positions_and_normalizer_follow_from_tokens_and_segments():
    """Oracle: a loop over every token of every row."""
    batches = pack(
        make_documents(200), TOKENIZER, sequence_length=32, batch_size=4, seed=1, num_epochs=1
    )
    for batch in batches:
        count = real = 0
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
            real += segment > 0
        assert (batch["normalizer"], batch["num_tokens"]) == (count, real)


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
        for name in ("normalizer", "num_tokens"):
            assert batch[name].dtype == np.float32 and batch[name].shape == ()
        assert batch.keys() == shapes.keys() | {"normalizer", "num_tokens"}


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


def conversations(n, turns, seed=0):
    """Documents of several texts, in str and in bytes."""
    rng = np.random.default_rng(seed)
    texts = [[write_document(rng) for _ in range(turns)] for _ in range(n)]
    return [{"text": [t.encode() for t in each] if i % 2 else each} for i, each in enumerate(texts)]


def turn_ids(document):
    """The ids of every turn, each with its end token."""
    texts = [text.decode() if isinstance(text, bytes) else text for text in document["text"]]
    return [token for text in texts for token in (*TOKENIZER.encode(text), TOKENIZER.eos_id)]


def test_each_turn_of_a_conversation_ends_in_eos_within_one_segment():
    """Oracle: the turns' own tokens, counted; lone texts beside them stay as they are."""
    several, lone = conversations(200, 3), make_documents(100)
    settings = dict(sequence_length=192, batch_size=4, seed=0, num_epochs=1)
    batches = pack(several + lone, TOKENIZER, **settings)
    segments = Counter(segment for batch in batches for segment in read_segments(batch))
    assert segments == Counter([tuple(turn_ids(d)) for d in several] + token_lists(lone))


@pytest.mark.parametrize("length", [16, 17, 33])
def test_a_conversation_longer_than_a_row_is_predicted_whole_and_once(length):
    """Oracle: all tokens but each conversation's first, counted; each segment has one to predict."""
    documents = conversations(60, 5)
    batches = pack(documents, TOKENIZER, sequence_length=length, batch_size=4, seed=0, num_epochs=1)
    segments = [segment for batch in batches for segment in read_segments(batch)]
    predicted = Counter(token for segment in segments for token in segment[1:])
    assert predicted == Counter(token for d in documents for token in turn_ids(d)[1:])
    assert min(map(len, segments)) > 1


def test_an_end_token_written_in_a_turn_is_no_end_token():
    """Oracle: the error of a closed vocabulary."""
    batches = pack([{"text": ["3", "<eos>"]}], TOKENIZER, sequence_length=16, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="beyond this tokenizer's vocabulary"):
        next(iter(batches))


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
            for name in ("loss_mask", "segment_ids", "positions", "normalizer", "num_tokens"):
                np.testing.assert_array_equal(left[name], right[name])
            real = left["segment_ids"] > 0
            np.testing.assert_array_equal(left["tokens"][real], right["tokens"][real])


BYTES = byte_tokenizer()
SOURCES = tuple([{"text": f"{mark} {n}é" * (n % 5)} for n in range(60)] for mark in "abc")


def make_mixture():
    """Three sources of 60 documents, every fifth of which is empty."""
    return Mixture(SOURCES, (3, 2, 1))


def long_documents():
    """Forty documents of 30 to 460 bytes."""
    return [{"text": (f"{n:02d} é " * 80)[: 25 + 9 * n]} for n in range(40)]


def take_segments(batches, n):
    return [
        segment for batch in itertools.islice(iter(batches), n) for segment in read_segments(batch)
    ]


@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
@pytest.mark.parametrize(
    "kind", others_slow(["one", "mixture", "a document a row", "longer than a row"], "one")
)
def test_a_resumed_iterator_yields_what_the_uninterrupted_one_would(kind, share):
    """Oracle: the uninterrupted run, across epochs' ends; the state went through JSON."""
    index, count = share
    settings = dict(sequence_length=64, batch_size=4 * count, seed=2)
    settings |= dict(reader=index, readers=count)

    def start():
        if kind == "one":
            return iter(pack(make_documents(150), TOKENIZER, **settings))
        if kind == "longer than a row":
            return iter(pack(long_documents(), BYTES, **settings, fim_rate=0.5))
        packing = kind == "mixture"
        return iter(pack(make_mixture(), BYTES, **settings, fim_rate=0.5, packing=packing))

    uninterrupted = list(itertools.islice(start(), 50))
    iterator = start()
    for taken in range(41):
        if taken in (0, 1, 16, 32, 33, 40):  # 32 batches are all the rows filled side by side
            resumed = start()
            resumed.set_state(json.loads(json.dumps(iterator.get_state())))
            for expected in uninterrupted[taken : taken + 10]:
                assert_batches_equal(next(resumed), expected)
        assert_batches_equal(next(iterator), uninterrupted[taken])


def test_a_mixture_is_predicted_whole_and_once_in_each_sources_epoch():
    """Oracle: each source's own tokens. In a prefix of the order, any two documents of a source were read
    equally often or once more; the sources share the documents as 3:2:1.

    PACKING_BINS rows are filled at a time, which is four batches of 32 rows, so these hold such a prefix.
    """
    batches = pack(make_mixture(), BYTES, sequence_length=64, batch_size=32, seed=0)
    seen = Counter(take_segments(batches, 8))
    totals = []
    for source in SOURCES:
        documents = [(*d["text"].encode(), BYTES.eos_id) for d in source if d["text"]]
        counts = [seen.pop(document) for document in documents]
        assert min(counts) >= 1 and max(counts) - min(counts) <= 1
        totals.append(sum(counts))
    assert not seen
    shares = np.array(totals) / sum(totals)  # unevenly many empty documents may be in a prefix
    np.testing.assert_allclose(shares, [3 / 6, 2 / 6, 1 / 6], atol=12 / sum(totals))


def test_two_readers_read_other_documents_and_together_all_of_them():
    """Oracle: the documents' own tokens, counted, with fill-in-the-middle as one reader has it."""
    documents = [{"text": f"document {n}"} for n in range(101)]
    settings = dict(sequence_length=32, batch_size=4, seed=3, num_epochs=1)
    for rate in (0.0, 0.5):

        def read(count, rate=rate):
            shares = [
                [s for batch in batches for s in read_segments(batch)]
                for batches in (
                    pack(
                        documents,
                        BYTES,
                        **settings,
                        fim_rate=rate,
                        reader=i,
                        readers=count,
                    )
                    for i in range(count)
                )
            ]
            return shares

        (whole,), (first, second) = read(1), read(2)
        assert abs(len(first) - len(second)) == 1
        assert sorted(first + second) == sorted(whole) and len(set(whole)) == 101


def restore(segment):
    """(text, whether it was rearranged) of a segment that ends in eos."""
    begin, hole, end = BYTES.fim_ids
    *ids, eos = segment
    assert eos == BYTES.eos_id
    if begin not in ids:
        return bytes(ids), False
    assert ids[0] == begin and [i for i in ids if i > 255] == [begin, hole, end]
    prefix, rest = ids[1 : ids.index(hole)], ids[ids.index(hole) + 1 :]
    suffix, middle = rest[: rest.index(end)], rest[rest.index(end) + 1 :]
    return bytes(prefix + middle + suffix), True


def test_fill_in_the_middle_keeps_every_document_and_takes_others_each_epoch():
    """Oracle: each segment put back by hand: all documents, once an epoch; 5 standard deviations."""
    documents = [{"text": f"Größe {n} " * 4} for n in range(2000)]
    rate, chosen = 0.1, []
    settings = dict(sequence_length=64, batch_size=64, seed=0, fim_rate=rate)
    batches = pack(documents, BYTES, **settings, num_epochs=2)
    restored = [restore(segment) for batch in batches for segment in read_segments(batch)]
    assert Counter(text for text, _ in restored) == {d["text"].encode(): 2 for d in documents}
    chosen = Counter(text for text, rearranged in restored if rearranged)
    tolerance = 5 * np.sqrt(4000 * rate * (1 - rate))
    assert abs(chosen.total() - 4000 * rate) < tolerance
    twice = sum(count == 2 for count in chosen.values())
    assert abs(twice - 2000 * rate**2) < 5 * np.sqrt(2000 * rate**2)  # the epochs are independent


def places():
    """(tokenizer, documents) of 30 to 460 characters no two of which are the same: an id is a place."""
    lengths = [30 + 11 * n for n in range(40)]
    characters = [chr(0x4E00 + i) for i in range(sum(lengths))]
    plain = closed_tokenizer(characters)
    fim_ids = tuple(range(len(characters) + 2, len(characters) + 5))
    tokenizer = Tokenizer(plain.backend, plain.eos_id, plain.pad_id, fim_ids=fim_ids)
    ends = np.cumsum(lengths).tolist()
    texts = ["".join(characters[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
    return tokenizer, [{"text": text} for text in texts]


@pytest.mark.parametrize("readers", [1, 2])
def test_pieces_of_long_documents_are_rearranged_each_by_itself_and_nothing_is_lost(readers):
    """Oracle: by hand: once the parts between three markers are put back, places follow each other. In two
    epochs each place but a document's first, and each document's end, is predicted twice; 5 standard
    deviations.
    """
    (tokenizer, documents), rate = places(), 0.3
    begin, hole, end = tokenizer.fim_ids
    predicted, rearranged = Counter(), []
    settings = dict(sequence_length=48, batch_size=8, seed=0, fim_rate=rate, num_epochs=2)
    for index in range(readers):
        share = dict(reader=index, readers=readers)
        for segment in take_segments(pack(documents, tokenizer, **settings, **share), None):
            ids = [i for i in segment if i < tokenizer.pad_id]
            if segment[0] == begin:
                h, e = segment.index(hole), segment.index(end)
                ids = [*segment[1:h], *segment[e + 1 : -1], *segment[h + 1 : e]]
                assert len(ids) + 4 == len(segment) and segment[-1] == tokenizer.eos_id
            assert ids == list(range(ids[0], ids[0] + len(ids)))
            predicted.update(ids if segment[0] == begin else ids[1:])
            predicted.update([-ids[-1]] * (segment[-1] == tokenizer.eos_id))
            rearranged.append(segment[0] == begin)
    lasts = np.cumsum([len(d["text"]) for d in documents]) - 1
    assert all(predicted[-last] == 2 for last in lasts.tolist())
    firsts = {0, *(lasts[:-1] + 1).tolist()}
    for place in range(lasts[-1] + 1):
        assert predicted[place] <= 2 if place in firsts else predicted[place] == 2
    n = len(rearranged)
    assert n > 400 and abs(sum(rearranged) - n * rate) < 5 * np.sqrt(n * rate * (1 - rate))


def test_a_long_document_is_rearranged_alike_by_any_number_of_readers():
    """Oracle: the segments of one reader, as a set of tuples, against those of two."""
    settings = dict(sequence_length=48, batch_size=8, seed=0, fim_rate=0.5, num_epochs=1)

    def read(count):
        shares = [
            pack(long_documents(), BYTES, **settings, reader=i, readers=count) for i in range(count)
        ]
        return sorted(s for batches in shares for batch in batches for s in read_segments(batch))

    assert read(1) == read(2)


def test_a_document_a_row_is_rearranged_from_what_the_row_has_room_for():
    """Oracle: each row put back by hand: its document, or the first 36 characters of a longer one."""
    documents = [{"text": "".join(f"{n:02d}-{i:02d} " for i in range(n))} for n in range(3, 40)]
    settings = dict(sequence_length=48, batch_size=8, seed=0, fim_rate=1.0, num_epochs=1)
    batches = pack(documents, BYTES, **settings, packing=False)
    found = [restore(segment) for batch in batches for segment in read_segments(batch)]
    assert all(rearranged for _, rearranged in found)
    wanted = [d["text"].encode() for d in documents]
    wanted = [text if len(text) <= 44 else text[:36] for text in wanted]
    assert sorted(text for text, _ in found) == sorted(wanted)


def test_a_document_a_row_is_cut_to_the_row():
    """Oracle: the first tokens of each document, padded by hand; its rows in any order."""
    documents = [*make_documents(50), *({"text": "7"} for _ in range(20))]
    batches = list(
        pack(
            documents,
            TOKENIZER,
            sequence_length=12,
            batch_size=8,
            seed=0,
            num_epochs=1,
            packing=False,
        )
    )
    rows = [row for batch in batches for row in batch["tokens"].tolist()]
    wanted = [[*ids[:12], *[TOKENIZER.pad_id] * (12 - len(ids))] for ids in token_lists(documents)]
    padding = [[TOKENIZER.pad_id] * 12] * (72 - 70)
    assert len(batches) == 9 and sorted(rows) == sorted(wanted + padding)
    assert max(batch["segment_ids"].max() for batch in batches) == 1
    lengths = [min(len(ids), 12) for ids in token_lists(documents)]
    assert sum(batch["num_tokens"] for batch in batches) == sum(lengths)
    assert sum(batch["normalizer"] for batch in batches) == sum(n - 1 for n in lengths)


def test_bytes_that_are_no_text_stop_the_run_and_are_named():
    """Oracle: the message says which document."""
    batches = pack([{"text": b"\xff"}], BYTES, sequence_length=8, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="document 0 of the data is not UTF-8"):
        next(iter(batches))


def test_fill_in_the_middle_without_its_tokens_is_refused():
    """Oracle: the message names the field."""
    with pytest.raises(ValueError, match="^fim_rate=0.1.*no fill-in-the-middle tokens"):
        pack([{"text": "7"}], TOKENIZER, sequence_length=8, batch_size=1, seed=0, fim_rate=0.1)


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


def test_documents_on_disk_pack_as_a_list_of_them_does(tmp_path):
    """Oracle: the same documents given as a list of str; records are read in blocks of bytes."""
    lines = find_corpus("arithmetic")[1](num_documents=200, seed=0)
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = file_documents(tmp_path / "lines.jsonl", tmp_path / "data")
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


def test_a_seed_draws_the_order_of_rows():
    """Oracle: by hand: the same rows, each of one segment: one order a seed."""

    class OfOne(packed.grain.experimental.FlatMapTransform):
        def flat_map(self, element):
            return [dict(tokens=np.full(4, element, np.int32))]

    def order(seed):
        blocks = packed.grain.MapDataset.source(list(range(1, 41)))
        rows = packed.Rows(sequence_length=4, batch_size=1)
        given = dict(features=("tokens",), seed=seed, pad_id=0)
        return [
            int(b["tokens"][0, 0]) for b in packed.pack_segments(blocks, OfOne(), rows, **given)
        ]

    first, again, other = order(0), order(0), order(1)
    assert first == again != other and set(first) == set(other) == set(range(1, 41))


def test_a_whole_row_is_what_a_packed_row_of_one_segment_is():
    """Oracle: the same segment, packed: names, shapes and dtypes, and by hand the tokens that it learns."""
    tokens, weights = np.arange(3, 8, dtype=np.int32), np.float32([1, 0, 2, 1, 1])
    features = dict(tokens=tokens, weights=weights, teacher_tokens=tokens + 1, exact=weights > 0)

    class Once(packed.grain.experimental.FlatMapTransform):
        def flat_map(self, element):
            return [features]

    blocks = packed.grain.MapDataset.source([0])
    rows = packed.Rows(sequence_length=5, batch_size=1)
    (batch,) = packed.pack_segments(blocks, Once(), rows, features=features, seed=0, pad_id=0)
    row = packed.whole_row(features)
    assert row.keys() == batch.keys()
    for name, array in row.items():
        assert array.dtype == batch[name].dtype, name
        np.testing.assert_array_equal(array, batch[name], err_msg=name)
    assert row["targets"].tolist() == [[0, 5, 6, 7, 0]] and row["normalizer"] == 4
    assert row["segment_ids"].tolist() == [[1] * 5]
    assert row["positions"].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(sequence_length=1, batch_size=4), "sequence_length=1 and batch_size=4"),
        (dict(sequence_length=2, batch_size=0), "sequence_length=2 and batch_size=0"),
        (dict(sequence_length=2, batch_size=4, readers=3), "readers=3"),
    ],
)
def test_rows_without_room_are_refused(fields, words):
    """Oracle: the words a reader needs; beside each rule, what it allows: one row of two tokens."""
    with pytest.raises(ValueError, match=words):
        packed.Rows(**fields)
    rows = packed.Rows(sequence_length=2, batch_size=1)
    assert (rows.packing, rows.reader, rows.readers) == (True, 0, 1)
