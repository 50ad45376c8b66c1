"""The teacher's top tokens on disk: written once, and aligned with their tokens after packing."""

import numpy as np
import pytest

from deepseek_jax.data.mixture import Mixture
from deepseek_jax.distill import cached_targets
from deepseek_jax.distill.cached_targets import write_targets
from tests.data.rows import with_rows

pack_targets = with_rows(cached_targets.pack_targets)

K, TEXTS = 3, 12


def records():
    """Texts whose cached numbers encode the text and the token that they belong to."""
    for text in range(TEXTS):
        n = 4 + text % 5
        place = 100 * text + np.arange(n)
        yield {
            "tokens": place.astype(np.int32),
            "weights": np.where(np.arange(n) < 2, 0, 1 + text).astype(np.float32),
            "top_ids": (place[:, None] + 1000 * np.arange(K)).astype(np.int32),
            "top_logprobs": -place[:, None].astype(np.float32) * np.ones(K, np.float32),
            "dropped": place.astype(np.float32) / 2000,
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("targets")


def test_targets_stand_beside_their_tokens_whatever_the_packing(folder):
    """Oracle: the numbers themselves: those of a token encode its text and position."""
    source = Mixture((write_targets(records, K, folder),), (1,))
    for packing in (True, False):
        how = dict(sequence_length=16, batch_size=4, seed=0, pad_id=0, packing=packing)
        iterator = iter(pack_targets(source, **how))
        batch = next(iterator)
        iterator.close()
        tokens, real = batch["tokens"], batch["segment_ids"] > 0
        assert batch["top_ids"].shape == (4, 16, K)
        np.testing.assert_array_equal(
            batch["top_ids"][real], tokens[real][:, None] + 1000 * np.arange(K)
        )
        np.testing.assert_array_equal(batch["top_logprobs"][real][:, 0], -tokens[real])
        np.testing.assert_allclose(batch["dropped"][real], tokens[real] / 2000)
        learned = batch["loss_mask"]
        weights = batch["loss_weights"][learned]
        np.testing.assert_array_equal(weights, 1 + batch["targets"][learned] // 100)
        assert (batch["targets"][learned] % 100 >= 2).all()


def test_what_is_on_disk_is_not_written_again(folder):
    """Oracle: a second call, whose records would fail."""

    def none():
        raise AssertionError("asked for records")

    assert len(write_targets(none, K, folder)) == TEXTS
