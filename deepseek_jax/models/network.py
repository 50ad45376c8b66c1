"""Forward passes of any network: each function calls the decoder that the config belongs to.

`carried` is what multi-token prediction reads of the layers: the hidden states [b t d] after the
final norm, or DeepSeek-V4's streams [b t z d].

Tests: tests/losses/test_next_token.py, tests/models/v4/test_training.py.
"""

import jax

from deepseek_jax.models import heads
from deepseek_jax.models.decoder import Report
from deepseek_jax.models.moe import Routing
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.v4 import decoder as v4
from deepseek_jax.models.v4.config import V4Config
from deepseek_jax.ops.branches import Branches
from deepseek_jax.trees import PyTree


def run_layers(
    config: Network, params: PyTree, batch: dict
) -> tuple[jax.Array, jax.Array, dict[str, Report]]:
    """Run the decoder up to its final norm.

    Args:
        config: The model.
        params: Its parameters.
        batch: As in losses.next_token.

    Returns:
        The hidden states [b t d] after the final norm; `carried`; and a dict from keys of params to
        models.Report.
    """
    arguments = params, batch["tokens"]
    places = {name: batch[name] for name in ("segment_ids", "positions")}
    if isinstance(config, V4Config):
        return v4.run_layers(config, *arguments, **places)
    hidden, report, _ = heads.reported_states(config, *arguments, **places)
    return hidden, hidden, {"moe_layers": report}


def hidden_states(
    config: Network,
    params: PyTree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
    branches: Branches | None = None,
    recorded_experts: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Routing]]:
    """Run the decoder up to its final norm, for a loss without parts for indexers.

    The arguments are as in heads.reported_states. DeepSeek-V4 takes no branches and no recorded
    experts.

    Returns:
        The hidden states [b t d] after the final norm; and a dict from keys of params to
        models.Routing, {} if no layer routes.

    Raises:
        ValueError: If config.indexer_loss is not "none".
    """
    places = {"segment_ids": segment_ids, "positions": positions}
    if isinstance(config, V4Config):
        heads.check_no_indexer_loss(config)
        assert branches is None and recorded_experts is None, "refused by the settings"
        states = v4.run_layers(config, params, tokens, **places)
        return states.hidden, {
            name: report.routing for name, report in states.reports.items() if report.routing
        }
    hidden, routing = heads.hidden_states(
        config, params, tokens, **places, branches=branches, recorded_experts=recorded_experts
    )
    return hidden, {} if routing is None else {"moe_layers": routing}


def predict_further(
    config: Network,
    params: PyTree,
    depth: int,
    carried: jax.Array,
    next_tokens: jax.Array,
    *,
    segment_ids: jax.Array,
    positions: jax.Array,
) -> tuple[jax.Array, jax.Array, Report]:
    """Run multi-token prediction module `depth`; the arguments are as in models.predict_further.

    Returns:
        The hidden states [b t d] for the output head, `carried` for the next module, and a
        models.Report.
    """
    if isinstance(config, V4Config):
        return v4.predict_further(
            config,
            params,
            depth,
            carried,
            next_tokens,
            segment_ids=segment_ids,
            positions=positions,
        )
    hidden, report = heads.predict_further(
        config, params, depth, carried, next_tokens, segment_ids=segment_ids, positions=positions
    )
    return hidden, hidden, report


def head_weight(config: Network, params: PyTree) -> jax.Array:
    """Return the output matrix [v d]."""
    return params["head"] if isinstance(config, V4Config) else heads.head_weight(config, params)
