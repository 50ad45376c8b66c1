"""Packed conversations, against each conversation rendered on its own."""

from collections import Counter

import numpy as np
import pytest

from deepseek_jax.data import conversations
from deepseek_jax.data.byte_tokenizer import byte_tokenizer
from deepseek_jax.data.chat import render_conversation
from tests.data.rows import with_rows
from tests.turns import turns

pack_conversations = with_rows(conversations.pack_conversations)

BYTES = byte_tokenizer()
QUESTION = "{question}\n"


def make_source(n, seed=0):
    """Conversations of one to three turns, of bytes, no two alike, with weights that float32 adds exactly."""
    rng = np.random.default_rng(seed)
    return [
        {
            "messages": turns(
                *(f"{k}.{i}" + "x" * rng.integers(9) for i in range(2 * (1 + k % 3)))
            ),
            "weight": (0.5, 1.0, 2.0)[k % 3],
        }
        for k in range(n)
    ]


def read_segments(batch):
    """(ids, what each id counts as a target) of every segment of every row."""
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            (at,) = np.nonzero(batch["segment_ids"][row] == segment)
            assert np.array_equal(batch["positions"][row, at], np.arange(len(at)))
            assert np.array_equal(at, at[0] + np.arange(len(at)))
            weights = batch["loss_weights"][row, at]
            mask = batch["loss_mask"][row, at]
            ahead = batch["targets"][row, at]
            ids = batch["tokens"][row, at]
            assert np.array_equal(mask, weights > 0) and not mask[-1]
            assert np.array_equal(ahead[mask], np.roll(ids, -1)[mask])
            yield tuple(ids.tolist()), (0.0, *weights[:-1].tolist())


SETTINGS = dict(template=QUESTION, sequence_length=64, batch_size=4, seed=0)


@pytest.mark.parametrize("packing", [True, False])
def test_each_conversation_is_a_whole_segment_with_its_weight_on_the_assistants_tokens(packing):
    """Oracle: render_conversation, counted over an epoch; the normalizer is the sum over a batch."""
    source = make_source(150)
    wanted = Counter()
    for record in source:
        ids, is_target = render_conversation(BYTES, record["messages"], template=QUESTION)
        if len(ids) <= 64:
            wanted[tuple(ids), tuple(record["weight"] * target for target in is_target)] += 1
    assert 100 < len(wanted) < 150  # some are too long
    seen, batches = Counter(), 0
    for batch in pack_conversations(source, BYTES, num_epochs=1, packing=packing, **SETTINGS):
        seen.update(read_segments(batch))
        batches += 1
        assert batch["normalizer"] == batch["loss_weights"].sum() > 0
        assert batch["tokens"].shape == (4, 64) and batch["loss_weights"].dtype == np.float32
        assert batch["num_tokens"] == (batch["segment_ids"] > 0).sum()
    assert seen == wanted
    assert batches < len(wanted) / 4 if packing else batches == -(-len(wanted) // 4)


def test_a_resumed_iterator_goes_on_where_it_was():
    """Oracle: the uninterrupted run, across epochs."""
    iterator = iter(pack_conversations(make_source(40), BYTES, **SETTINGS))
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    wanted = [next(iterator) for _ in range(5)]
    resumed = iter(pack_conversations(make_source(40), BYTES, **SETTINGS))
    resumed.set_state(state)
    for batch in wanted:
        again = next(resumed)
        assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_two_readers_share_the_conversations():
    """Oracle: one reader: two together read the same conversations, in half of the rows each."""
    settings = SETTINGS | {"num_epochs": 1}
    source = make_source(60)

    def ids(**share):
        batches = pack_conversations(source, BYTES, **settings, **share)
        return [ids for batch in batches for ids, _ in read_segments(batch)]

    halves = [ids(reader=i, readers=2) for i in range(2)]
    assert min(map(len, halves)) > 0
    assert sorted(halves[0] + halves[1]) == sorted(ids())


def test_a_conversation_that_cannot_be_rendered_is_named():
    """Oracle: its number and the reason."""
    source = [{"messages": turns("a", "b", system="s"), "weight": 1.0}]
    with pytest.raises(ValueError, match="conversation 0 of the data: .*no place for a system"):
        next(iter(pack_conversations(source, BYTES, **SETTINGS)))
