"""Multi-token prediction: module k at token i predicts token i + k + 1.

arXiv:2412.19437, section 2.2.
"""

import jax
import jax.numpy as jnp

from deepseek_jax.models.network import head_weight, predict_further
from deepseek_jax.models.network_config import Network
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.parallel.tokens import over_tokens
from deepseek_jax.trees import PyTree


def multi_token_losses(
    config: Network, params: PyTree, batch: dict, carried: jax.Array
) -> tuple[list, dict]:
    """Return the negative log-likelihood of each module's targets (arXiv:2412.19437, eq. 24).

    A token counts if its document contains all tokens that its module reads and predicts.

    Args:
        batch: As in next_token_loss.
        carried: What module 1 reads, from models.network.run_layers.

    Returns:
        A list of float32[], one per module, in nats and divided by batch["normalizer"]; and a dict
        from the module's key in params to its models.Report.

    Raises:
        ValueError: If the model has no modules.
    """
    if not config.num_nextn_predict_layers:
        raise ValueError(
            "a multi-token prediction weight needs modules: set model.num_nextn_predict_layers to at "
            "least 1, or the weight to 0"
        )
    losses, reports = [], {}
    for depth in range(config.num_nextn_predict_layers):
        ahead = depth + 1
        # True where the token that the module reads, `ahead` later, is in the same document
        same_bt = _ahead(batch["segment_ids"], ahead) == batch["segment_ids"]
        # Eq. 21: a module reads what the module before it leaves
        hidden, carried, reports[f"mtp_{depth}"] = predict_further(
            config,
            params,
            depth,
            carried,
            _ahead(batch["tokens"], ahead),
            # Tokens of other documents are padding here, so no expert load counts them
            segment_ids=jnp.where(same_bt, batch["segment_ids"], 0),
            positions=batch["positions"],
        )
        targets_bt = _ahead(batch["targets"], ahead)
        logprobs_bt, _ = over_tokens(
            token_logprobs, hidden, head_weight(config, params), targets_bt
        )
        mask_bt = same_bt & _ahead(batch["loss_mask"], ahead)
        # Eq. 24 divides by T, the tokens of the main loss, though this module has fewer targets
        losses.append(-jnp.where(mask_bt, logprobs_bt, 0.0).sum() / batch["normalizer"])
    return losses, reports


def _ahead(array_bt, ahead: int):
    """Return the entry `ahead` tokens later in its row; 0 past the end."""
    return jnp.pad(array_bt[:, ahead:], ((0, 0), (0, ahead)))
