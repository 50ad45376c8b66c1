"""The teacher's likeliest tokens of texts, as records."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deepseek_jax.distill.cache import top_k_records
from deepseek_jax.models import forward
from deepseek_jax.parallel import make_mesh
from tests.tiny import VOCAB, tiny_model

TEMPERATURE, K, SHAPE, KNOWN = 2.0, 3, (2, 6), 40
LENGTHS = (4, 6, 7, 5, 2)


def texts():
    rng = np.random.default_rng(0)
    for n in LENGTHS:
        tokens = rng.integers(0, KNOWN, n).astype(np.int32)
        yield {"tokens": tokens, "weights": np.arange(n, dtype=np.float32)}


def made(top_k=K, vocab_size=KNOWN):
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    config, params = tiny_model("gqa")
    how = dict(shape=SHAPE, mesh=mesh, vocab_size=vocab_size, temperature=TEMPERATURE)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    return top_k_records(config, params, texts(), top_k, **how)


def test_a_record_has_the_likeliest_tokens_of_its_text():
    """Oracle: numpy's sort of the whole logits of each text alone; 1e-4: rounding. A text that is longer than
    a row is empty, and the last two rows are not full. Two devices: each has all of what process 0 reads.
    """
    records = made()
    config, params = tiny_model("gqa")
    run = jax.jit(forward, static_argnums=0)
    found = list(records())
    assert len(found) == len(LENGTHS)
    for record, text in zip(found, texts(), strict=True):
        n = len(text["tokens"]) if len(text["tokens"]) <= SHAPE[1] else 0
        assert record["top_ids"].shape == (n, K) and record["dropped"].shape == (n,)
        for name in ("tokens", "weights"):
            np.testing.assert_array_equal(record[name], text[name][:n])
        padded = np.zeros((1, SHAPE[1]), np.int32)
        padded[0, :n] = text["tokens"][:n]
        logits = np.float64(run(config, params, padded))[0, :n, :KNOWN] / TEMPERATURE
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        order = np.argsort(-logp, axis=-1)[:, :K]
        np.testing.assert_array_equal(record["top_ids"], order)
        kept = np.take_along_axis(logp, order, -1)
        np.testing.assert_allclose(record["top_logprobs"], kept, atol=1e-4)
        np.testing.assert_allclose(record["dropped"], 1 - np.exp(kept).sum(-1), atol=1e-4)
    whole = records.led.function(*records.led.like)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole))
    assert [array.any() for array in records.led.like] == [False, False]


def test_a_text_is_read_without_its_padding():
    """Oracle: the same text in a longer row, and beside another one: a bidirectional leak or a wrong mask
    would change what the teacher says.
    """
    records = made()
    tokens = np.arange(12, dtype=np.int32).reshape(SHAPE)
    full = records.led.function(tokens, np.int32([6, 6]))
    short = records.led.function(tokens, np.int32([3, 6]))
    np.testing.assert_array_equal(full.ids[1], short.ids[1])
    np.testing.assert_allclose(full.logprobs[0, :3], short.logprobs[0, :3], atol=1e-5)
    assert (full.logprobs[0, 3:] != short.logprobs[0, 3:]).any()


@pytest.mark.parametrize("vocab_size, most", [(None, VOCAB), (KNOWN, KNOWN), (VOCAB + 9, VOCAB)])
def test_a_top_k_above_the_tokens_that_count_is_refused(vocab_size, most):
    """Oracle: by hand: as many as there are tokens are allowed, and one more is not."""
    made(most, vocab_size)
    with pytest.raises(ValueError, match=f"^top_k={most + 1} "):
        made(most + 1, vocab_size)
