"""Packed batches of a pre-training run, read by one process and by two."""

import itertools
import json
from collections import Counter

import jax
import numpy as np
import pytest

from configs import models
from deepseek_jax.data import batches
from deepseek_jax.data import packing as packed
from deepseek_jax.data.batches import PackedDocuments, held_out_batches
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, random_params
from deepseek_jax.recipes.pretrain.settings import CorpusSettings
from deepseek_jax.training.state import TrainState
from deepseek_jax.worlds.arithmetic.tokenizer import arithmetic_tokenizer
from tests.data.rows import with_rows
from tests.processes import run_two
from tests.recipes.small import one_device

pack = with_rows(packed.pack)

TOKENIZER = arithmetic_tokenizer()
CONFIG = ModelConfig(**models.deepseek_v3_tiny(vocab_size=TOKENIZER.vocab_size))
DOCUMENTS = [{"text": f"{a} + {b} = {a + b}"} for a in range(1, 10) for b in range(1, 10)]
PACKING = dict(sequence_length=16, batch_size=4, seed=0)

ONE_OF_TWO = """
import json, sys
import jax
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.parallel import make_mesh
from deepseek_jax.models import random_params
from tests.data.test_batches import CONFIG, DOCUMENTS, PACKING, TOKENIZER, make_source, pack

mesh = make_mesh()
share = dict(process_index=process, process_count=2)
source = make_source(pack(DOCUMENTS, TOKENIZER, **PACKING, **share), mesh)
start = source.get_state()
(batch,), metrics = source.next(None, 0)
moved = source.get_state()
source.next(None, 1)
source.set_state(start)
(again,), _ = source.next(None, 0)
assert (jax.jit(lambda a, b: (a == b).all())(batch["tokens"], again["tokens"])).item()
assert len(moved["processes"]) == 2 and source.get_state() == moved
with jax.set_mesh(mesh):
    params = random_params(CONFIG, mesh, 0)
    loss, _ = jax.jit(lambda params, batch: next_token_loss(CONFIG, params, batch))(params, batch)
print("result", json.dumps([float(loss), metrics["tokens"]]))
"""


def make_source(batches, mesh, batch_sizes=((0, 4),), **more):
    settings = dict(quantum=4, scalars={}, evaluate=None, eval_every=1) | more
    return PackedDocuments(batches, mesh, batch_sizes=batch_sizes, **settings)


def two_processes():
    """[loss, tokens] of the first batch on each of two processes with one device each."""
    statuses, outputs = run_two(ONE_OF_TWO, xla_flags="--xla_force_host_platform_device_count=1")
    assert statuses == [0, 0], outputs
    return [json.loads(output.split("result ")[1].splitlines()[0]) for output in outputs]


@pytest.mark.slow
def test_two_processes_give_the_loss_that_one_has_of_both_shares():
    """Oracle: the rows of both shares, put together by numpy, on one device; both resume where they were."""
    shares = [
        next(iter(pack(DOCUMENTS, TOKENIZER, **PACKING, process_index=i, process_count=2)))
        for i in range(2)
    ]
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


def test_the_place_of_another_number_of_processes_is_refused():
    """Oracle: the message names both numbers."""
    source = make_source(pack(DOCUMENTS, TOKENIZER, **PACKING), one_device())
    state = source.get_state()["processes"]
    assert len(state) == jax.process_count() == 1
    with pytest.raises(ValueError, match="by 2 processes, and now there are 1"):
        source.set_state({"processes": state * 2})


def test_a_growing_batch_takes_more_of_the_same_stream():
    """Oracle: the rows of `pack`, in order: 4, 4, 8, 8; scalars follow the update count; held-out losses are
    measured every second update.
    """
    pieces = list(itertools.islice(pack(DOCUMENTS, TOKENIZER, **PACKING), 6))
    asked = []

    def evaluate(params):
        asked.append(params)
        return {"held_out_loss": 1.5}

    source = make_source(
        pack(DOCUMENTS, TOKENIZER, **PACKING),
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


def held_out(eval_batches, **sizes):
    mixture = Mixture((SUMS, DIFFERENCES), (1.0, 3.0))
    data = CorpusSettings(("sums", "differences"), eval_batches=eval_batches, num_held_out=81)
    sizes = dict(batch_size=4, sequence_length=12, seed=0) | sizes
    return batches.held_out_batches(mixture, byte_tokenizer(), one_device(), data, **sizes)


@pytest.mark.parametrize("shares", [1, 2])
def test_an_evaluation_reads_no_document_twice(monkeypatch, shares):
    """Oracle: the documents, against the segments of all batches of all processes, counted.

    Of two sources of 81 documents, mixed 1:3, the second ends the run at 108 documents. A row holds three
    documents of 3 bytes and eos.
    """
    seen = Counter()
    for index in range(shares):
        monkeypatch.setattr(batches, "batch_share", lambda mesh, i=index: (i, shares))
        monkeypatch.setattr(batches, "joined", lambda mesh, pieces: pieces[0])
        for batch in held_out(8 // shares, batch_size=4 * shares):
            for row, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
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
    """Oracle: by hand: four processes, two for each share; one share has 30 tokens and the other 70. The rows
    of two pieces are concatenated.
    """
    tokens = np.arange(8, dtype=np.int32).reshape(2, 2, 2)
    pieces = [
        {"tokens": rows, "normalizer": np.float32(n), "num_tokens": np.float32(n + 1)}
        for rows, n in zip(tokens, (10, 20), strict=True)
    ]
    others = {30.0: 70.0, 32.0: 72.0}
    monkeypatch.setattr(batches, "batch_share", lambda mesh: (0, 2))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(batches, "total", lambda n: np.float32(2 * n + 2 * others[float(n)]))
    batch = batches.joined(None, pieces)
    assert (batch["normalizer"], batch["num_tokens"]) == (100, 104)
    assert all(batch[name].dtype == np.float32 for name in batches.TOTALS)
    np.testing.assert_array_equal(batch["tokens"], tokens.reshape(4, 2))
