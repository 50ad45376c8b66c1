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
from deepseek_jax.models.v4.cache import CompressorCache
from deepseek_jax.models.v4.compressor import Compressor, Places
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops.compress import Windows
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.index_loss import entry_loss
from deepseek_jax.ops.release_rounding import bfloat16_index_scores, fp4_index
from deepseek_jax.ops.remat import save_for_backward
from deepseek_jax.ops.rope import apply_rope_last
from deepseek_jax.ops.saved_names import ATTENDED
from deepseek_jax.ops.selection import index_scores, select_indices
from deepseek_jax.ops.window_attention import Entries, Keys, select_entries
from deepseek_jax.parallel.context import over_queries
from deepseek_jax.parallel.shard import constrain


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

    def __call__(self, x_btd, latent_btq, places: Places) -> tuple[Index, CompressorCache]:
        """Compute what scores entries, and what decoding remembers of it.

        Args:
            x_btd: [b t d], the normed input of attention.
            latent_btq: [b t q], the normed latent of queries.
            places: See compressor.places.
        """
        x_btd, latent_btq = jax.lax.stop_gradient((x_btd, latent_btq))
        keys = self.compressor(x_btd, places.entries)
        return self._index(x_btd, latent_btq, places, keys)

    def decode(self, x_b1d, latent_b1q, positions_b1, places: Places, cache: CompressorCache):
        """Compute the scores' operands for one new token of each sequence; its keys are in the cache.

        Args:
            x_b1d: [b 1 d].
            latent_b1q: [b 1 q].
            positions_b1: int32.
            places: See compressor.step_places.
            cache: The cache of the indexer's compressor.
        """
        keys = self.compressor.decode(x_b1d, positions_b1, places.entries, cache)
        return self._index(x_b1d, latent_b1q, places, keys)

    def _index(self, x_btd, latent_btq, places, keys):
        q_btjy = apply_rope_last(dot("btq,qjy->btjy", latent_btq, self.w_q), *places.rope)
        w_btj = dot("btd,dj->btj", x_btd.astype(jnp.float32), self.w_heads)
        # In a rollout each device has some of the heads. Without this, the compiler gathers the weight
        w_btj = constrain(w_btj, ("batch", "seq", "index_heads"))
        if self.config.release_rounding:
            rotary, k_bwy = self.config.qk_rope_head_dim, keys.entries
            return Index(fp4_index(q_btjy, rotary), fp4_index(k_bwy, rotary), w_btj), keys
        return Index(q_btjy, keys.entries, w_btj * self.config.index_n_heads**-0.5), keys


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


def seen_and_selected(config: V4Config, index: Index | None, entries_bwx, seen_b1w):
    """Return the entries that one query of each sequence attends to.

    Args:
        config: The model.
        index: From LightningIndexer; None if queries attend to all entries that they see.
        entries_bwx: All entries of a cache.
        seen_b1w: bool, the entries that each query sees.

    Returns:
        Entries [b z x], selected ones if there are more than index_topk; and bool[b 1 z], the ones
        to attend to.
    """
    k = config.index_topk
    if index is None or config.indexer_loss == "dense" or entries_bwx.shape[1] <= k:
        return entries_bwx, seen_b1w
    scores = bfloat16_index_scores if config.release_rounding else index_scores
    indices_b1k, is_selected_b1k = select_indices(scores(*index), seen_b1w, k)
    return jnp.take_along_axis(entries_bwx, indices_b1k[:, 0, :, None], axis=1), is_selected_b1k


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
        return entry_loss(
            (q, k, w), q_bthx, keys, window=config.sliding_window, scale=scale, first=first
        )

    queries = index.q, index.w, q_bthx, entries.selected
    rows = index.k, keys.kv, keys.segments, entries.kv, entries.windows
    return over_queries(query_losses, queries, rows, keys.sink).sum()
