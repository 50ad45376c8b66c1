"""Texts on disk with their teacher's likeliest next tokens, and batches packed from them."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import grain
import numpy as np
import tensorflow_datasets as tfds

from deepseek_jax.data.conversations import Fitting
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.packing import BLOCK, Rows, pack_segments
from deepseek_jax.data.stored import RandomAccess
from deepseek_jax.data.written import Dataset, build
from deepseek_jax.parallel.led import Led

FEATURES = ("tokens", "weights", "top_ids", "top_logprobs", "dropped")


def write_targets(
    records: Callable[[], Iterable[dict]], k: int, data_dir: str | Path, led: Led | None = None
) -> RandomAccess:
    """Return random access to cached targets, which are written under data_dir if they are missing.

    A record has FEATURES: a text's tokens int32[n] and weights float32[n], and at each token the
    teacher's distill.top_k.TopK of the next one, as top_ids int32[n k], top_logprobs float32[n k]
    and dropped float32[n]. Records keep their order, so that one seed draws the same texts here as
    from the conversations themselves. written.build writes all records or nothing, in the first of
    several processes.

    Args:
        k: Stored tokens at each position.
        led: See written.build.
    """

    def array(dtype, *rest):
        return tfds.features.Tensor(shape=(None, *rest), dtype=dtype)

    texts = array(np.int32), array(np.float32)
    targets = array(np.int32, k), array(np.float32, k), array(np.float32)
    features = dict(zip(FEATURES, (*texts, *targets), strict=True))
    return build(Dataset("cached_targets", features, records), data_dir, led=led)


def pack_targets(source: Mixture, rows: Rows, *, seed: int, pad_id: int) -> grain.IterDataset:
    """Pack records into batches, as pack_conversations does, and add the teacher's targets.

    The targets of a batch are top_ids and top_logprobs, [b t k], and dropped, [b t].

    Args:
        source: Of records from write_targets.
    """
    draws = rows.order(source, seed)
    return pack_segments(
        draws.batch(BLOCK).map(partial(_read, source=source)),
        Fitting(rows.sequence_length),
        rows,
        features=FEATURES,
        seed=seed,
        pad_id=pad_id,
    )


def _read(draws, *, source):
    records = source.__getitems__(draws[:, 1].tolist())
    return [{name: np.asarray(record[name]) for name in FEATURES} for record in records]
