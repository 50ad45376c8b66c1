"""Multi-token prediction on packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.losses.multi_token import multi_token_losses
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import head_weight, hidden_states, predict_further
from tests.losses.test_next_token import make_batch
from tests.tiny import tiny_model

loss_of = jax.jit(next_token_loss, static_argnums=0)


@jax.jit
def alone(params, rows, lengths):
    """Each module's logits, a list by module of [b t v], on documents each in a row of its own."""
    config, _ = tiny_model("mtp")
    t = rows.shape[1]
    real = jnp.arange(t) < lengths[:, None]
    hidden, _ = hidden_states(config, params, rows, segment_ids=real.astype(jnp.int32))
    logits = []
    for ahead in (1, 2):
        hidden, _ = predict_further(
            config,
            params,
            ahead - 1,
            hidden,
            jnp.roll(rows, -ahead, axis=1),
            segment_ids=(jnp.arange(t) < lengths[:, None] - ahead).astype(jnp.int32),
            positions=jnp.broadcast_to(jnp.arange(t), rows.shape),
        )
        logits.append(hidden @ head_weight(config, params).T)
    return logits


def test_each_module_is_scored_on_its_own_document():
    """Oracle: numpy's log-softmax, a loop over documents each in a row of its own: module k at token i
    reads tokens up to i + k and predicts token i + k + 1. 1e-5 is float32 rounding.
    """
    config, params = tiny_model("mtp")
    batch = make_batch()
    rows, segments = batch["tokens"], batch["segment_ids"]
    documents = [row[ids == i] for row, ids in zip(rows, segments, strict=True) for i in (1, 2)]
    documents = [document for document in documents if len(document)]
    lengths = np.array([len(document) for document in documents])
    alone_in_row = np.array([np.pad(document, (0, 10 - len(document))) for document in documents])
    wanted = np.zeros(2)
    for depth, logits in enumerate(alone(params, alone_in_row, lengths)):
        z = np.asarray(logits, np.float64)
        logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
        for row, document in enumerate(documents):
            for i in range(len(document) - depth - 2):
                wanted[depth] -= logp[row, i, document[i + depth + 2]]
    wanted /= batch["normalizer"]

    plain, _ = loss_of(config, params, batch)
    loss, metrics = loss_of(config, params, batch, mtp_weight=0.3)
    np.testing.assert_allclose(metrics["mtp_loss"], wanted.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss - plain, 0.3 * wanted.mean(), rtol=1e-5)

    @jax.jit
    def losses_of(params):
        hidden, _ = hidden_states(config, params, rows, segment_ids=segments)
        return multi_token_losses(config, params, batch, hidden)[0]

    losses = losses_of(params)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)


def test_modules_report_the_load_of_what_they_process():
    """Oracle: by hand: of each document's tokens all but its last (module 1) or last two; 2 experts each."""
    batch = make_batch()
    _, metrics = loss_of(*tiny_model("mtp"), batch, mtp_weight=0.3)
    load = {name: routing.load for name, routing in metrics["routing"].items()}
    lengths = np.array([4, 6, 7, 3, 3, 2, 10])
    assert load["moe_layers"].sum() == 2 * lengths.sum()
    assert load["mtp_0"].sum() == 2 * (lengths - 1).sum()
    assert load["mtp_1"].sum() == 2 * np.maximum(lengths - 2, 0).sum()


@pytest.mark.slow
def test_the_loss_trains_the_modules_and_the_trunk():
    """Oracle: without a weight the modules get no gradient; with one all of theirs do, but router_bias."""
    config, params = tiny_model("mtp")

    def gradients(mtp_weight):
        return jax.jit(
            jax.grad(lambda p: next_token_loss(config, p, make_batch(), mtp_weight=mtp_weight)[0])
        )(params)

    with_modules, without = gradients(0.3), gradients(None)
    for path, leaf in jax.tree.leaves_with_path(with_modules["mtp_1"]):
        assert (path[-1].key == "router_bias") != bool(np.abs(leaf).max() > 0), path
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(without["mtp_0"]))
    embedding = np.abs(with_modules["embedding"] - without["embedding"])
    assert embedding.max() > 1e-4


def test_a_weight_without_modules_is_refused():
    """Oracle: a model without modules; the message names the field."""
    with pytest.raises(ValueError, match="set model.num_nextn_predict_layers to at least 1"):
        next_token_loss(*tiny_model("mla_moe"), make_batch(), mtp_weight=0.3)
