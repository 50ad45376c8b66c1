"""The decoder as functions of its params: hidden states, logits, the last attention, further tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from deepseek_jax.models.adapters import whole
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder, DecoderLayer, Report
from deepseek_jax.models.layers import position_tables
from deepseek_jax.models.moe import Routing
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.dot import dot


def head_weight(config: ModelConfig, params: Any) -> jax.Array:
    """The output matrix, [v d]: the embedding itself where the two are tied."""
    params = whole(params)
    return params["embedding"] if config.tie_word_embeddings else params["head"]


def segment_positions(segment_ids):
    """Positions that restart at 0 where a segment begins: int32[b t] -> int32[b t]."""
    t = segment_ids.shape[1]
    index_t = jnp.arange(t, dtype=jnp.int32)
    begins_bt = jnp.pad(
        segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    # The running maximum is the index of the latest beginning
    start_bt = jnp.maximum.accumulate(jnp.where(begins_bt, index_t, 0), axis=1)
    return index_t - start_bt


def hidden_states(
    config: ModelConfig,
    params: Any,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    branches: Branches | None = None,
    kept: jax.Array | None = None,
) -> tuple[jax.Array, Routing | None]:
    """layer_states without the layers: -> (hidden [b t d] after the final norm, models.Routing)."""
    hidden, routing, _ = layer_states(
        config,
        params,
        tokens,
        segment_ids=segment_ids,
        positions=positions,
        branches=branches,
        keep_layers=False,
        kept=kept,
    )
    return hidden, routing


def layer_states(
    config: ModelConfig,
    params: Any,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    branches: Branches | None = None,
    keep_layers: bool = True,
    kept: jax.Array | None = None,
) -> tuple[jax.Array, Routing | None, jax.Array | None]:
    """reported_states with Routing alone in place of the Report. Raises ValueError where an indexer should
    learn: its loss would be dropped in silence.
    """
    if config.indexer_loss != "none":
        raise ValueError(
            f"indexer_loss={config.indexer_loss!r} is a part of next_token_loss and of no other loss; "
            "set model.indexer_loss to 'none'"
        )
    hidden, report, layers = reported_states(
        config,
        params,
        tokens,
        segment_ids=segment_ids,
        positions=positions,
        branches=branches,
        keep_layers=keep_layers,
        kept=kept,
    )
    return hidden, report.routing, layers


def reported_states(
    config: ModelConfig,
    params: Any,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    branches: Branches | None = None,
    keep_layers: bool = False,
    kept: jax.Array | None = None,
) -> tuple[jax.Array, Report, jax.Array | None]:
    """Run the decoder: tokens int32[b t] -> (hidden [b t d] after the final norm, models.Report, and with
    keep_layers the residual stream after each layer, [l b t d], else None).

    segment_ids: int32[b t], 0 on padding, elsewhere a number for each packed document; default one document.
    positions: int32[b t]; default counts from 0 in each segment. branches: an ops.branches.Branches.
    kept: uint16[l b t a], the experts of each token in each MoE layer, see ops.routing.with_kept; None leaves
    the choice to the routers. Report.routing has a leading axis of MoE layers and counts real tokens only;
    None where no layer routes. Report.indexer has one of all layers; None where config.indexer_loss is
    "none".
    """
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    if positions is None:
        positions = segment_positions(segment_ids)
    arguments = tokens, positions, segment_ids, branches, keep_layers, kept
    return Decoder(config).apply({"params": whole(params)}, *arguments)


def last_attention(
    config: ModelConfig, params: Any, states: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries and keys, rotated, and values of the last layer's attention: [b t heads size] each.

    states: [l b t d] from layer_states. positions: int32[b t]. Raises ValueError for a model of one layer:
    states does not hold its input.
    """
    if len(states) < 2:
        raise ValueError(
            f"num_hidden_layers={config.num_hidden_layers}: the last layer's attention is computed from the "
            "output of the layer before it; use a model of at least 2 layers, or leave out the terms that "
            "read it"
        )
    is_moe = bool(config.num_moe_layers)
    stacked = whole(params)["moe_layers" if is_moe else "dense_layers"]
    # Parameters of like layers are stacked on axis 0: the last layer is the last entry
    layer = jax.tree.map(lambda leaf: leaf[-1], stacked)
    # states[-2] is the last layer's input
    rope = position_tables(config, positions)
    return DecoderLayer(config, is_moe).apply({"params": layer}, states[-2], rope, method="project")


def predict_further(
    config: ModelConfig,
    params: Any,
    depth: int,
    hidden: jax.Array,
    next_tokens: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, Report]:
    """Multi-token prediction module `depth`, from 0 (arXiv:2412.19437, section 2.2).

    hidden: [b t d], from hidden_states or the module before. next_tokens: int32[b t], the tokens depth + 1
    ahead. segment_ids: int32[b t], 0 where the document has no token that far ahead. positions: int32[b t]
    of hidden. Returns (hidden [b t d], for the same output head, models.Report).
    """
    arguments = depth, hidden, next_tokens, positions, segment_ids
    return Decoder(config).apply({"params": whole(params)}, *arguments, method="predict_further")


def forward(
    config: ModelConfig,
    params: Any,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
) -> jax.Array:
    """Logits of every next token: tokens int32[b t] -> float32[b t v].

    segment_ids: int32[b t], 0 on padding (left or right), elsewhere one number for each packed document:
    no token sees another segment. positions: int32[b t]; default counts from 0 in each segment.
    """
    hidden, _, _ = reported_states(
        config, params, tokens, segment_ids=segment_ids, positions=positions
    )
    return dot("btd,vd->btv", hidden, head_weight(config, params), jnp.float32)
