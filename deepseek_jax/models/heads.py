"""Functions of a model's params: logits, hidden states, the last attention, later tokens.

Open this file to run a model: `forward` returns logits.

Tests: tests/models/test_last_attention.py, tests/models/test_parity.py.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.models.adapters import whole
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder, DecoderLayer, Report, segment_positions
from deepseek_jax.models.layers import position_tables
from deepseek_jax.models.moe import Routing
from deepseek_jax.models.network_config import Network
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.dot import dot
from deepseek_jax.trees import PyTree


def head_weight(config: ModelConfig, params: PyTree) -> jax.Array:
    """Return the output matrix [v d], which is the embedding if the two are tied."""
    params = whole(params)
    return params["embedding"] if config.tie_word_embeddings else params["head"]


def hidden_states(
    config: ModelConfig,
    params: PyTree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    branches: Branches | None = None,
    recorded_experts: jax.Array | None = None,
) -> tuple[jax.Array, Routing | None]:
    """Run the decoder up to its final norm, for a loss or a reward.

    See reported_states for the arguments.

    Returns:
        The hidden states [b t d] after the final norm, and a models.Routing, None if no layer
        routes.

    Raises:
        ValueError: If config.indexer_loss is not "none", see layer_states.
    """
    hidden, routing, _ = layer_states(
        config,
        params,
        tokens,
        segment_ids=segment_ids,
        positions=positions,
        branches=branches,
        keep_layers=False,
        recorded_experts=recorded_experts,
    )
    return hidden, routing


def layer_states(
    config: ModelConfig,
    params: PyTree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    branches: Branches | None = None,
    keep_layers: bool = True,
    recorded_experts: jax.Array | None = None,
) -> tuple[jax.Array, Routing | None, jax.Array | None]:
    """Run the decoder, and return the residual stream after each layer too.

    See reported_states for the arguments.

    Returns:
        The hidden states [b t d] after the final norm; a models.Routing, None if no layer routes;
        and with keep_layers the residual stream after each layer, [l b t d], else None.

    Raises:
        ValueError: If config.indexer_loss is not "none": the caller would not see the indexer's
            loss.
    """
    check_no_indexer_loss(config)
    hidden, report, states = reported_states(
        config,
        params,
        tokens,
        segment_ids=segment_ids,
        positions=positions,
        branches=branches,
        keep_layers=keep_layers,
        recorded_experts=recorded_experts,
    )
    return hidden, report.routing, states


def check_no_indexer_loss(config: Network):
    """Raise ValueError if indexers have a loss, for a caller that would not see it."""
    if config.indexer_loss != "none":
        raise ValueError(
            f"indexer_loss={config.indexer_loss!r} is a part of next_token_loss and of no other loss; "
            "set model.indexer_loss to 'none'"
        )


def reported_states(
    config: ModelConfig,
    params: PyTree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    branches: Branches | None = None,
    keep_layers: bool = False,
    recorded_experts: jax.Array | None = None,
) -> tuple[jax.Array, Report, jax.Array | None]:
    """Run the decoder, and return its whole Report, with the indexers' losses.

    Args:
        config: The model.
        params: Its parameters, which may have an adapter.
        tokens: int32[b t].
        segment_ids: int32[b t], 0 on padding, elsewhere one number for each packed document.
            Default: one document in each row.
        positions: int32[b t]. Default: count from 0 in each segment.
        branches: An ops.branches.Branches, or None.
        keep_layers: Return the residual stream too.
        recorded_experts: uint16[l b t a], the experts of each token in each MoE layer, see
            ops.routing.with_recorded. None leaves the choice to the routers.

    Returns:
        The hidden states [b t d] after the final norm; a models.Report; and with keep_layers the
        residual stream after each layer, [l b t d], else None. Report.routing has a leading axis of
        MoE layers and counts only real tokens; it is None if no layer routes. Report.indexer has a
        leading axis of all layers; it is None if config.indexer_loss is "none".
    """
    if segment_ids is None:
        segment_ids = jnp.ones_like(tokens)
    if positions is None:
        positions = segment_positions(segment_ids)
    arguments = tokens, positions, segment_ids, branches, keep_layers, recorded_experts
    return Decoder(config).apply({"params": whole(params)}, *arguments)


def last_attention(
    config: ModelConfig, params: PyTree, states: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the last layer's queries and keys, rotated, and values, for a distillation loss.

    Args:
        config: The model.
        params: Its parameters.
        states: [l b t d], from layer_states.
        positions: int32[b t].

    Returns:
        Queries, keys and values, [b t heads size] each.

    Raises:
        ValueError: For a model of one layer, because `states` does not contain its input.
    """
    if len(states) < 2:
        raise ValueError(
            f"num_hidden_layers={config.num_hidden_layers}: the last layer's attention is computed from the "
            "output of the layer before it; use a model of at least 2 layers, or leave out the terms that "
            "read it"
        )
    is_moe = bool(config.num_moe_layers)
    stack = whole(params)["moe_layers" if is_moe else "dense_layers"]
    # Parameters of like layers are stacked on axis 0: the last layer is the last entry
    layer = jax.tree.map(lambda leaf: leaf[-1], stack)
    # states[-2] is the last layer's input
    rope = position_tables(config, positions)
    return DecoderLayer(config, is_moe).apply({"params": layer}, states[-2], rope, method="project")


def predict_further(
    config: ModelConfig,
    params: PyTree,
    depth: int,
    hidden: jax.Array,
    next_tokens: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, Report]:
    """Run multi-token prediction module `depth` (arXiv:2412.19437, section 2.2).

    Args:
        config: The model.
        params: Its parameters.
        depth: The module's number, from 0.
        hidden: [b t d], from hidden_states or from the module before.
        next_tokens: int32[b t], the tokens depth + 1 ahead.
        segment_ids: int32[b t], 0 where the document has no token that far ahead.
        positions: int32[b t], the positions of `hidden`.

    Returns:
        The hidden states [b t d], for the same output head, and a models.Report.
    """
    arguments = depth, hidden, next_tokens, positions, segment_ids
    return Decoder(config).apply({"params": whole(params)}, *arguments, method="predict_further")


def forward(
    config: ModelConfig,
    params: PyTree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
) -> jax.Array:
    """Return the logits of every next token, float32[b t v].

    Args:
        config: The model.
        params: Its parameters, which may have an adapter.
        tokens: int32[b t].
        segment_ids: int32[b t], 0 on padding (left or right), elsewhere one number for each packed
            document: no token sees another segment. Default: one document in each row.
        positions: int32[b t]. Default: count from 0 in each segment.
    """
    hidden, _, _ = reported_states(
        config, params, tokens, segment_ids=segment_ids, positions=positions
    )
    return dot("btd,vd->btv", hidden, head_weight(config, params), jnp.float32)
