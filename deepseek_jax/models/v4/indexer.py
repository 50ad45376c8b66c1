"""The lightning indexer of CSA, which selects entries for each query.

arXiv:2606.19348, section 2.3.

Tests: tests/models/v4/test_rows.py, tests/models/v4/test_mistakes.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from typing_extensions import override

from deepseek_jax.models.indexer import Index
from deepseek_jax.models.layers import weight
from deepseek_jax.models.v4.compressor import Compressor, Places
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops.compress import Windows
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.index_loss import entry_loss
from deepseek_jax.ops.release_rounding import bfloat16_index_scores, fp4_index
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope_last
from deepseek_jax.ops.saved_names import ATTENDED
from deepseek_jax.ops.selection import index_scores
from deepseek_jax.ops.window_attention import Entries, Keys, select_entries
from deepseek_jax.parallel.context import over_queries


class LightningIndexer(nn.Module):
    """Queries, keys and weights of small heads, which score all entries for each query.

    Its keys come from a compressor of its own over the windows of the layer's entries. The inputs
    get no gradient: the indexer learns only from ops.index_loss.
    """

    config: V4Config
    rate: int

    @override
    def setup(self):
        cfg = self.config
        j, y = cfg.index_n_heads, cfg.index_head_dim
        self.w_q = weight(self, "q_up", q_lora=cfg.q_lora_rank, index_heads=j, index_head_dim=y)
        self.w_heads = weight(self, "head_weights", embed=cfg.hidden_size, index_heads=j)
        self.compressor = Compressor(cfg, self.rate, y, "index_head_dim", overlaps=True)

    def __call__(self, x_btd, latent_btq, places: Places) -> Index:
        """Compute what scores entries.

        Args:
            x_btd: [b t d], the normed input of attention.
            latent_btq: [b t q], the normed latent of queries.
            places: See compressor.places.
        """
        x_btd, latent_btq = jax.lax.stop_gradient((x_btd, latent_btq))
        q_btjy = apply_rope_last(dot("btq,qjy->btjy", latent_btq, self.w_q), *places.rope)
        w_btj = dot("btd,dj->btj", x_btd.astype(jnp.float32), self.w_heads)
        k_bwy = self.compressor(x_btd, places.entries)
        if self.config.release_rounding:
            rotary = self.config.qk_rope_head_dim
            return Index(fp4_index(q_btjy, rotary), fp4_index(k_bwy, rotary), w_btj)
        return Index(q_btjy, k_bwy, w_btj * self.config.index_n_heads**-0.5)


def select(config: V4Config, index: Index, segment_ids, windows: Windows):
    """Select the entries that each query attends to: uint8[b t z], or None for all that it sees."""
    if config.indexer_loss == "dense":
        return None

    def select_own(queries, keys, first):
        (q, w, segments_bt), (k, windows) = queries, keys
        operands = q, k, w, segments_bt, windows
        scores = bfloat16_index_scores if config.release_rounding else index_scores
        return select_entries(*operands, config.index_topk, first=first, scores=scores)

    selected = over_queries(select_own, (index.q, index.w, segment_ids), (index.k, windows))
    # Saved with attention's results, whose gradient needs this selection
    return None if selected is None else save_for_backward(checkpoint_name(selected, ATTENDED))


def loss(config: V4Config, index: Index, q_bthx, keys: Keys, scale: float):
    """Sum ops.index_loss.entry_loss over real tokens.

    Args:
        config: The model.
        index: From LightningIndexer.
        q_bthx: The queries of attention.
        keys: What they attend to.
        scale: The factor on attention's scores.

    Returns:
        float32[], or None where config.indexer_loss is "none".
    """
    if config.indexer_loss == "none":
        return None
    entries = keys.entries
    assert entries is not None, "an indexer scores entries"

    def query_losses(queries, rows, first, sink_h):
        (q, w, q_bthx, selected), (k, kv, segments, entries_kv, windows) = queries, rows
        keys = Keys(kv, segments, sink_h, Entries(entries_kv, windows, selected))
        options = dict(window=config.sliding_window, scale=scale, first=first)
        return entry_loss((q, k, w), q_bthx, keys, **options)

    queries = index.q, index.w, q_bthx, entries.selected
    rows = index.k, keys.kv, keys.segments, entries.kv, entries.windows
    return over_queries(query_losses, queries, rows, keys.sink).sum()
