"""The pre-training loss against numpy over the model's own logits."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.losses import next_token
from deepseek_jax.losses.next_token import next_token_loss, parts_trained
from deepseek_jax.models import Report, Routing, forward, hidden_states
from tests.tiny import CONFIGS, VOCAB, tiny_model

loss_of = jax.jit(next_token_loss, static_argnums=0)
logits_of = jax.jit(forward, static_argnums=0)


def make_batch():
    """Four rows of two packed documents each; padding at the end, and no target across documents."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (4, 10))
    segment_ids = np.array(
        [[1] * 4 + [2] * 6, [1] * 7 + [2] * 3, [1] * 3 + [2] * 2 + [0] * 5, [1] * 10]
    )
    targets = np.roll(tokens, -1, axis=1)
    mask = (segment_ids > 0) & (segment_ids == np.roll(segment_ids, -1, axis=1))
    mask[:, -1] = False
    positions = [[np.sum(row[:i] == row[i]) for i in range(10)] for row in segment_ids]
    arrays = dict(
        tokens=tokens, targets=targets, segment_ids=segment_ids, positions=np.array(positions)
    )
    batch = {name: array.astype(np.int32) for name, array in arrays.items()}
    counts = {"normalizer": mask.sum(), "num_tokens": (segment_ids > 0).sum()}
    return batch | {"loss_mask": mask} | {k: np.float32(v) for k, v in counts.items()}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def loss(model):
    return lambda batch: loss_of(*model, batch)


def test_loss_and_entropy_are_means_over_masked_targets(model, loss):
    """Oracle: numpy's log-softmax of models.forward, a loop over tokens; 1e-5 is float32 rounding."""
    batch = make_batch()
    logits = np.asarray(
        logits_of(*model, batch["tokens"], segment_ids=batch["segment_ids"]), np.float64
    )
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses, entropies = [], []
    for row, at in zip(*np.nonzero(batch["loss_mask"]), strict=True):
        losses.append(-logp[row, at, batch["targets"][row, at]])
        entropies.append(-(np.exp(logp[row, at]) * logp[row, at]).sum())
    value, metrics = loss(batch)
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], np.mean(entropies), rtol=1e-5)


def test_micro_batches_add_up_to_the_batch(loss):
    """Oracle: the whole batch: each part is divided by the whole batch's normalizer."""
    batch = make_batch()
    rows = [{k: v[i : i + 2] if v.ndim else v for k, v in batch.items()} for i in (0, 2)]
    parts = jax.tree.map(lambda a, b: a + b, *(loss(part) for part in rows))
    for whole, summed in zip(jax.tree.leaves(loss(batch)), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(summed, whole, rtol=1e-5)


def test_tokens_turn_by_the_positions_of_the_batch(loss):
    """Oracle: by hand: positions that lie all as far apart change nothing, to float32's rounding, and others
    do.
    """
    batch = make_batch()
    plain, shifted, doubled = (
        loss(batch | {"positions": positions})[0]
        for positions in (batch["positions"], batch["positions"] + 3, 2 * batch["positions"])
    )
    np.testing.assert_allclose(shifted, plain, rtol=1e-5)
    assert abs(doubled - plain) > 1e-4


def test_targets_outside_the_mask_do_not_count(loss):
    """Oracle: invariant: the same loss, bit for bit."""
    batch = make_batch()
    other = np.where(batch["loss_mask"], batch["targets"], VOCAB - 1 - batch["targets"])
    assert loss(batch)[0] == loss(batch | {"targets": other})[0]


def test_weights_count_a_target_as_often_as_they_say(loss):
    """Oracle: the loss of each row alone: a row of weight 3 counts three times. Equal weights change
    nothing; a weight outside the mask neither.
    """
    batch = make_batch()
    counts = batch["loss_mask"].sum(1)
    alone = []
    for row in range(4):
        own = {k: v[row : row + 1] if v.ndim else v for k, v in batch.items()}
        alone.append(loss(own | {"normalizer": np.float32(counts[row])})[0])
    weights = np.array([1.0, 3.0, 0.5, 2.0])
    wanted = np.average(alone, weights=weights * counts)
    weight_bt = np.where(batch["loss_mask"], weights[:, None], 7).astype(np.float32)
    weighted = batch | {
        "loss_weights": weight_bt,
        "normalizer": np.float32((weights * counts).sum()),
    }
    np.testing.assert_allclose(loss(weighted)[0], wanted, rtol=1e-5)
    same = {"loss_weights": np.full((4, 10), 0.25, np.float32)}
    same["normalizer"] = np.float32(0.25 * counts.sum())
    np.testing.assert_allclose(loss(batch | same)[0], loss(batch)[0], rtol=1e-6)


def test_expert_load_counts_tokens_that_are_not_padding():
    """Oracle: by hand: 35 of 40 tokens are real, 2 experts each. A model without experts reports none."""
    _, metrics = loss_of(*tiny_model("mla_moe"), make_batch())
    assert metrics["routing"]["moe_layers"].load.sum() == 35 * 2
    assert loss_of(*tiny_model("gqa"), make_batch())[1].keys() == {"next_token_loss", "entropy"}


@pytest.mark.slow
def test_balance_loss_is_added_a_layer_and_its_mean_reported():
    """Oracle: ops.routing.sequence_balance, itself held to a loop, over the tokens that are not padding."""
    model, batch = tiny_model("mla_moe"), make_batch()
    _, routing = hidden_states(*model, batch["tokens"], segment_ids=batch["segment_ids"])
    assert routing.balance.shape == (1,)
    plain, _ = loss_of(*model, batch)
    value, metrics = loss_of(*model, batch, balance_weight=0.5)
    np.testing.assert_allclose(metrics["balance_loss"], routing.balance[0] / 35, rtol=1e-5)
    np.testing.assert_allclose(value - plain, 0.5 * metrics["balance_loss"], rtol=1e-4)


@pytest.mark.parametrize("mtp_weight", [None, 0.3])
@pytest.mark.parametrize("indexer_loss", ["none", "dense"])
@pytest.mark.parametrize("balance_weight", [None, 0.5])
def test_every_loss_is_added_with_its_weight_and_reported_as_a_mean(
    monkeypatch, mtp_weight, indexer_loss, balance_weight
):
    """Oracle: by hand, of what models report: balance of two layers and indexers of three; a module reports
    one of each.
    """
    has_indexer = indexer_loss != "none"

    def report(*sums):
        balance = jnp.float32([10 * x for x in sums[:2]])
        return Report(Routing(None, balance, None), jnp.float32(sums) if has_indexer else None)

    logprobs, entropy = jnp.float32([[-1, -2, -4]]), jnp.float32([[1, 2, 3]])
    found = logprobs, entropy, None, {"moe_layers": report(1, 2, 4)}
    monkeypatch.setattr(next_token, "target_logprobs", lambda *_: found)
    modules = [2.0, 6.0], {"mtp_0": report(8)}
    monkeypatch.setattr(next_token, "multi_token_losses", lambda *_: modules)
    batch = dict(loss_mask=np.array([[True, False, True]]), normalizer=2.0, num_tokens=4.0)
    weights = {} if balance_weight is None else {"balance_weight": balance_weight}
    config = SimpleNamespace(indexer_loss=indexer_loss)
    loss, metrics = next_token_loss(config, None, batch, mtp_weight=mtp_weight, **weights)
    layers = np.array([1, 2, 8] if mtp_weight else [1, 2]) / 4
    indexers = np.array([1, 2, 4, 8] if mtp_weight else [1, 2, 4]) / 4
    wanted = {"next_token_loss": 2.5, "entropy": 2, "balance_loss": 10 * layers.mean()}
    total = 2.5 + (balance_weight or 0) * 10 * layers.sum()
    if mtp_weight:
        wanted["mtp_loss"], total = 4, total + 0.3 * 4
    if has_indexer:
        wanted["indexer_loss"], total = indexers.mean(), total + indexers.sum()
    assert metrics.pop("routing").keys() == {"moe_layers"} | ({"mtp_0"} if mtp_weight else set())
    assert metrics == pytest.approx(wanted) and loss == pytest.approx(total)


def test_the_loss_trains_the_parts_that_have_a_loss_of_their_own():
    """Oracle: by hand."""
    plain, sparse = SimpleNamespace(indexer_loss="none"), SimpleNamespace(indexer_loss="dense")
    assert parts_trained(plain) == () and parts_trained(sparse) == ("indexer",)
    assert parts_trained(plain, with_mtp=True) == ("mtp",)
    assert parts_trained(sparse, with_mtp=True) == ("mtp", "indexer")
