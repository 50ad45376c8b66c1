"""From hidden states to logits."""

import jax
import jax.numpy as jnp

from deepseek_jax.models.decoder import Decoder, DecoderLayer
from deepseek_jax.models.layers import position_tables
from deepseek_jax.ops.dot import dot


def head_weight(config, params):
    """The output matrix, [v d]: the embedding itself where it is tied."""
    return params["embedding"] if config.tie_word_embeddings else params["head"]


def segment_positions(segment_ids):
    """Positions that restart at 0 where a segment begins: int32[b t] -> int32[b t]."""
    t = segment_ids.shape[1]
    index_t = jnp.arange(t, dtype=jnp.int32)
    begins_bt = jnp.pad(
        segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    start_bt = jnp.maximum.accumulate(jnp.where(begins_bt, index_t, 0), axis=1)
    return index_t - start_bt


def hidden_states(config, params, tokens, **options):
    """layer_states without the layers: -> (hidden [b t d] after the final norm, models.Routing)."""
    return layer_states(config, params, tokens, keep_layers=False, **options)[:2]


def layer_states(
    config, params, tokens, *, segment_ids=None, positions=None, branches=None, keep_layers=True
):
    """Run the decoder: tokens int32[b t] -> (hidden [b t d] after the final norm, models.Routing, and
    with keep_layers the residual stream behind each layer, [l b t d]).

    segment_ids: int32[b t], 0 on padding, one number a packed document elsewhere; default one document.
    positions: int32[b t]; default counts from 0 in each segment. branches: a models.Branches layout.
    Routing has a leading axis of MoE layers and counts real tokens only; None where no layer routes.
    """
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    if positions is None:
        positions = segment_positions(segment_ids)
    arguments = tokens, positions, segment_ids, branches, keep_layers
    return Decoder(config).apply({"params": params}, *arguments)


def last_attention(config, params, states, positions):
    """Queries, keys and values of the last layer's attention, with positions: [b t heads size] each.

    states: layer_states' [l b t d]. positions: int32[b t]. Raises ValueError for a model of one layer, whose
    input is not among them.
    """
    if len(states) < 2:
        raise ValueError(
            f"num_hidden_layers={config.num_hidden_layers}: the input of the last layer is an output of the "
            "one before, and there is none; take a model of at least 2, or leave out what reads it"
        )
    is_moe = bool(config.num_moe_layers)
    stacked = params["moe_layers" if is_moe else "dense_layers"]
    layer = jax.tree.map(lambda leaf: leaf[-1], stacked)
    rope = position_tables(config, positions)
    return DecoderLayer(config, is_moe).apply({"params": layer}, states[-2], rope, method="project")


def predict_further(config, params, depth, hidden, next_tokens, *, segment_ids, positions):
    """Multi-token prediction module `depth`, from 0 (arXiv:2412.19437, section 2.2).

    hidden: [b t d], what hidden_states gave, or the module before. next_tokens: int32[b t], the tokens
    depth + 1 ahead; where there is none in the document, segment_ids int32[b t] is to be 0. positions:
    int32[b t] of hidden. Returns (hidden [b t d] for the head that hidden_states' goes to, models.Routing).
    """
    arguments = depth, hidden, next_tokens, positions, segment_ids
    return Decoder(config).apply({"params": params}, *arguments, method="predict_further")


def forward(config, params, tokens, *, segment_ids=None, positions=None):
    """Logits of every next token: tokens int32[b t] -> float32[b t v].

    segment_ids: int32[b t], 0 on padding (left or right), one number a packed document elsewhere: no token
    sees another segment. positions: int32[b t]; default counts from 0 in each segment.
    """
    hidden, _ = hidden_states(config, params, tokens, segment_ids=segment_ids, positions=positions)
    return dot("btd,vd->btv", hidden, head_weight(config, params), jnp.float32)
