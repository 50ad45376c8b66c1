"""Packed batches of a pre-training run, shared between readers, and these between processes."""

import dataclasses
import itertools
import json
from collections import Counter

import jax
import numpy as np
import pytest

from configs import models
from deepseek_jax.data import batches
from deepseek_jax.data.batches import PackedDocuments, held_out_batches
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.packing import Rows, pack, totals
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, random_params
from deepseek_jax.recipes.pretrain.settings import CorpusSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.processes import run_two
from tests.recipes.small import one_device

TOKENIZER = arithmetic_tokenizer()
CONFIG = ModelConfig(**models.deepseek_v3_tiny(vocab_size=TOKENIZER.vocab_size))
DOCUMENTS = [{"text": f"{a} + {b} = {a + b}"} for a in range(1, 10) for b in range(1, 10)]
SIZES = dict(sequence_length=16, batch_size=4)

ONE_OF_TWO = """
import json, sys
import jax
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.parallel import make_mesh
from deepseek_jax.models import random_params
from tests.data.test_batches import CONFIG, make_source

mesh = make_mesh()
source = make_source(mesh, readers=2)
start = source.get_state()
(batch,), metrics = source.next(None, 0)
moved = source.get_state()
source.next(None, 1)
source.set_state(start)
(again,), _ = source.next(None, 0)
assert (jax.jit(lambda a, b: (a == b).all())(batch["tokens"], again["tokens"])).item()
assert len(moved["readers"]) == 2 and source.get_state() == moved
with jax.set_mesh(mesh):
    params = random_params(CONFIG, mesh, 0)
    loss, _ = jax.jit(lambda params, batch: next_token_loss(CONFIG, params, batch))(params, batch)
print("result", json.dumps([float(loss), float(metrics["tokens"])]))
"""


def packing(rows):
    return pack(DOCUMENTS, TOKENIZER, rows, seed=0)


def make_source(mesh, readers=1, **more):
    rows = Rows(**SIZES, readers=readers)
    settings = dict(batch_sizes=((0, 4),), scalars={}, evaluate=None, eval_every=1) | more
    return PackedDocuments(packing, rows, mesh, **settings)


def two_processes():
    """[loss, tokens] of the first batch on each of two processes with one device each."""
    statuses, outputs = run_two(ONE_OF_TWO, xla_flags="--xla_force_host_platform_device_count=1")
    assert statuses == [0, 0], outputs
    return [json.loads(output.split("result ")[1].splitlines()[0]) for output in outputs]


@pytest.mark.slow
def test_two_processes_give_the_loss_that_one_has_of_both_readers():
    """Oracle: the rows of both readers, put together by numpy, on one device; both resume where they were."""
    shares = [next(iter(packing(Rows(**SIZES, reader=i, readers=2)))) for i in range(2)]
    assert not np.array_equal(shares[0]["tokens"], shares[1]["tokens"])
    batch = {
        name: np.concatenate([s[name] for s in shares]) for name in shares[0] if name[0] != "n"
    }
    batch["normalizer"] = np.float32(batch["loss_mask"].sum())
    batch["num_tokens"] = np.float32((batch["segment_ids"] > 0).sum())
    assert batch["tokens"].shape == (4, 16)
    params = random_params(CONFIG, one_device(), 0)
    wanted = float(next_token_loss(CONFIG, params, batch)[0])
    for loss, tokens in two_processes():
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)  # float32, summed in another order
        assert tokens == batch["normalizer"]


@pytest.mark.parametrize(
    "processes, words", [(4, "readers=2 for 4 processes: about 2 of them"), (2, "")]
)
def test_processes_that_read_the_same_documents_are_told(processes, words, monkeypatch, capsys):
    """Oracle: by hand: two readers for four processes, and for two."""
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    batches._say_shared(2)
    out = capsys.readouterr().out
    assert words in out and bool(out) == bool(words)


def test_the_positions_of_other_readers_are_refused():
    """Oracle: the message names both numbers, and the field."""
    source = make_source(one_device())
    states = source.get_state()["readers"]
    assert len(states) == 1
    with pytest.raises(ValueError, match="readers=1, and .* of 2; set readers to 2"):
        source.set_state({"readers": states * 2})


def test_the_positions_of_an_old_checkpoint_are_those_of_its_processes():
    """Oracle: the batch that follows; each process of then was one reader of every second document."""
    source = make_source(one_device(), readers=2)
    source.next(None, 0)
    states = source.get_state()["readers"]
    (wanted,), _ = source.next(None, 1)
    resumed = make_source(one_device(), readers=2)
    resumed.set_state({"processes": states})
    np.testing.assert_array_equal(resumed.next(None, 1)[0][0]["tokens"], wanted["tokens"])


class Numbered:
    """A dataset of one reader, and its iterator: every token says whose it is and which row's."""

    def __init__(self, rows: Rows):
        self.rows, self.own, self.position = rows, rows.batch_size // rows.readers, 0

    def __iter__(self):
        return self

    def __next__(self):
        numbers = np.arange(self.own) + self.own * self.position
        self.position += 1
        tokens = 1000 * self.rows.reader + np.stack([numbers] * 3, axis=1)
        # Rows of 1 to 3 tokens, each but a row's last predicts the next
        ids = (np.arange(3) <= numbers[:, None] % 3).astype(np.int32)
        mask = np.pad(ids[:, 1:] > 0, ((0, 0), (0, 1)))
        batch = dict(tokens=tokens, segment_ids=ids, loss_mask=mask)
        return batch | totals(batch)

    def get_state(self):
        return self.position

    def set_state(self, position):
        self.position = position


# Of eight parts of a batch, those that the devices of each process hold: neighbours or not, evenly or not
HELD = {
    "one": [range(8)],
    "halves": [range(4), range(4, 8)],
    "apart": [(0, 1, 4, 5), (2, 3, 6, 7)],
    "unequal": [(0, 1, 2), (3, 4, 5, 6, 7)],
    "four": [(0, 1), (2, 3), (4, 5), (6, 7)],
}


@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.parametrize("held", HELD)
def test_a_batch_depends_on_the_readers_and_not_on_the_processes(monkeypatch, held, readers):
    """Oracle: numpy: the readers' rows one after another, of one piece and of two; each process has the rows
    of its parts and their totals, and runs no reader whose rows it lacks. One process resumes by the
    positions of all.
    """
    rows = Rows(sequence_length=3, batch_size=8, readers=readers)
    each = [dataclasses.replace(rows, reader=reader) for reader in range(readers)]
    pieces = [list(itertools.islice(Numbered(one), 4)) for one in each]
    wanted = [
        {
            n: np.concatenate([p[n] for of in pieces for p in of[part]])
            for n in ("tokens", "segment_ids", "loss_mask")
        }
        for part in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]
    seen = []
    for parts in HELD[held]:

        def own_rows(mesh, rows, parts=parts):
            return np.arange(rows).reshape(8, -1)[list(parts)].ravel()

        monkeypatch.setattr(batches, "own_rows", own_rows)
        source = batches.Readers(Numbered, rows, None)
        assert set(source.iterators) == {part * readers // 8 for part in parts}
        for number, whole in enumerate(wanted[:2]):
            batch, own = source.next(number + 1), own_rows(None, 8 * (number + 1))
            for name in ("tokens", "segment_ids", "loss_mask"):
                np.testing.assert_array_equal(batch[name], whole[name][own], err_msg=name)
            assert batch["normalizer"] == whole["loss_mask"][own].sum()
            assert batch["num_tokens"] == whole["segment_ids"][own].sum()
        seen += [(reader, iterator.get_state()) for reader, iterator in source.iterators.items()]
    monkeypatch.setattr(batches, "from_each", lambda own: [seen])
    states = source.get_state()
    monkeypatch.setattr(batches, "own_rows", lambda mesh, rows: np.arange(rows))
    resumed = batches.Readers(Numbered, rows, None)
    resumed.set_state(states)
    np.testing.assert_array_equal(resumed.next()["tokens"], wanted[2]["tokens"])


@pytest.mark.parametrize("readers", [3, 8])
def test_readers_that_cannot_share_the_rows_equally_are_refused(readers):
    """Oracle: the message names both fields and what is allowed."""
    with pytest.raises(ValueError, match=f"readers={readers} .*batch_size=4; .*a divisor of 4"):
        Rows(**SIZES, readers=readers)


def test_a_growing_batch_takes_more_of_the_same_stream():
    """Oracle: the rows of `pack`, in order: 4, 4, 8, 8; scalars follow the update count; held-out losses are
    measured every second update.
    """
    pieces = list(itertools.islice(packing(Rows(**SIZES)), 6))
    asked = []

    def evaluate(params):
        asked.append(params)
        return {"held_out_loss": 1.5}

    source = make_source(
        one_device(),
        batch_sizes=((0, 4), (2, 8)),
        scalars={"mtp_weight": lambda step: 0.3 - 0.1 * step},
        evaluate=evaluate,
        eval_every=2,
    )
    state = TrainState(step=None, params="params", opt_state=None)
    for step, wanted in enumerate((pieces[:1], pieces[1:2], pieces[2:4], pieces[4:])):
        (batch,), metrics = source.next(state, step)
        rows = np.concatenate([piece["tokens"] for piece in wanted])
        np.testing.assert_array_equal(batch["tokens"], rows)
        total = sum(piece["normalizer"] for piece in wanted)
        assert batch["normalizer"] == metrics["tokens"] == total
        assert batch["num_tokens"] == (batch["segment_ids"] > 0).sum()
        np.testing.assert_allclose(batch["mtp_weight"], 0.3 - 0.1 * step, rtol=1e-6)
        assert ("held_out_loss" in metrics) == (step % 2 == 0)
    assert asked == ["params"] * 2


SUMS, DIFFERENCES = (
    [{"text": f"{a}{sign}{b}"} for a in range(1, 10) for b in range(1, 10)] for sign in "+-"
)


def held_out(eval_batches, readers=1, **sizes):
    mixture = Mixture((SUMS, DIFFERENCES), (1.0, 3.0))
    numbers = dict(eval_batches=eval_batches, num_held_out=81, readers=readers)
    data = CorpusSettings(("sums", "differences"), **numbers)
    sizes = dict(batch_size=4, sequence_length=12, seed=0) | sizes
    return batches.held_out_batches(mixture, byte_tokenizer(), one_device(), data, **sizes)


@pytest.mark.parametrize("readers", [1, 2])
def test_an_evaluation_reads_no_document_twice(readers):
    """Oracle: the documents, against the segments of all batches of all readers, counted.

    Of two sources of 81 documents, mixed 1:3, the second ends the run at 108 documents. A row holds three
    documents of 3 bytes and eos.
    """
    seen = Counter()
    for batch in held_out(8 // readers, readers, batch_size=4 * readers):
        tokens, segment_ids = np.asarray(batch["tokens"]), np.asarray(batch["segment_ids"])
        for row, segments in zip(tokens, segment_ids, strict=True):
            seen.update(tuple(row[segments == s].tolist()) for s in (1, 2, 3))
    seen.pop((), None)  # a row of the last documents may have room for more
    documents = {(*d["text"].encode(), byte_tokenizer().eos_id) for d in SUMS + DIFFERENCES}
    assert set(seen) <= documents and set(seen.values()) == {1} and 94 <= len(seen) <= 96


def test_an_evaluation_is_spread_over_documents_longer_than_a_batch():
    """Oracle: by hand: ten documents, each one letter in 201 tokens, fill over five batches of two rows of 20
    each. So of ten batches each document has one; or one document has two and its neighbour none.
    """
    documents = [{"text": letter * 200} for letter in "abcdefghij"]
    data = CorpusSettings(("letters",), eval_batches=10, num_held_out=10)
    sizes = dict(batch_size=2, sequence_length=20, seed=0)
    batches = held_out_batches(documents, byte_tokenizer(), one_device(), data, **sizes)
    letters = {int(token) for batch in batches for token in np.ravel(batch["tokens"])}
    assert len(batches) == 10 and len(letters & set(b"abcdefghij")) >= 8


def test_held_out_documents_that_do_not_fill_the_batches_are_refused():
    """Oracle: the fields and, by hand, the number that 108 documents fill: 36 rows, nine batches of four."""
    assert len(held_out(9)) == 9
    with pytest.raises(ValueError, match="num_held_out=81 .* fill 9 batches .*eval_batches=10"):
        held_out(10)


def test_every_process_evaluates_on_as_many_batches(monkeypatch):
    """Oracle: the error: another process has one batch fewer; this one must raise too and not wait."""
    monkeypatch.setattr(batches, "from_each", lambda number: [number, number - 1])
    with pytest.raises(ValueError, match="fill 8 batches"):
        held_out(9)


def test_totals_count_rows_once_that_two_processes_give(monkeypatch):
    """Oracle: by hand: four processes, two for each share; one share has 30 tokens and the other 70."""
    own = {"normalizer": np.float32(30), "num_tokens": np.float32(32)}
    other = np.float32([70, 72])
    monkeypatch.setattr(batches, "batch_share", lambda mesh: (0, 2))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(batches, "total_on", lambda mesh, numbers: 2 * numbers + 2 * other)
    batch = batches.summed(None, own)
    assert (batch["normalizer"], batch["num_tokens"]) == (100, 104)
    assert all(batch[name].dtype == np.float32 for name in batches.TOTALS)
