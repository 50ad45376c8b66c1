"""What attention costs with and without an indexer, by hand."""

import pytest

from configs import models
from deepseek_jax.costs.sparse_attention import attention_costs, contexts
from deepseek_jax.models import build_model

SPARSE = build_model(models.deepseek_v3_2())
# Of 61 layers: numbers of a query and a value of 128 heads; of 64 index heads of 128; the indexer's weights
HEADS, INDEX = 61 * 128 * (128 + 64 + 128), 61 * 64 * 128
WEIGHTS = 61 * (1536 * 64 * 128 + 7168 * 128 + 7168 * 64)
LATENT, KEY = 2 * 61 * (512 + 64), 2 * 61 * 128


@pytest.mark.parametrize("length", [2048, 4096, 131_072])
def test_costs_of_attention_by_length(length):
    """Oracle: by hand, a loop over the queries of a row; two operations a product, two bytes a number."""
    dense, sparse = attention_costs(SPARSE, length)
    keys = sum(query + 0.5 for query in range(length)) / length
    # Beyond 2048 keys a query selects 2048 of them
    selected = sum(min(query + 0.5, 2048) for query in range(length)) / length
    assert dense.flops == pytest.approx(2 * HEADS * keys, rel=1e-6)
    wanted = 2 * (HEADS * selected + WEIGHTS + INDEX * keys)
    assert sparse.flops == pytest.approx(wanted, rel=1e-6)
    assert (dense.cache_bytes, dense.read_bytes) == (LATENT * length,) * 2
    assert sparse.cache_bytes == (LATENT + KEY) * length
    # Nothing is scored where everything is selected
    scored = 0 if length == 2048 else KEY * length
    assert sparse.read_bytes == scored + LATENT * 2048


def test_contexts_double_up_to_the_positions_of_the_model():
    """Oracle: by hand: the next one, 262,144, is beyond 163,840."""
    assert contexts(SPARSE) == [2048 * 2**i for i in range(7)]
