"""Completions that share their prompt's row, or have one each, against the plain model on every row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.losses.completions import PredictionInputs, completion_logprobs
from deepseek_jax.models import forward
from tests.tiny import CONFIGS, VOCAB, tiny_model

TEMPERATURE = 0.7
PROMPTS = (5, 2)  # lengths; the room is 6
COMPLETIONS = (4, 1, 3, 2, 4, 3)  # lengths, three a prompt; the room is 4
ROOM, LENGTH = 6, 4


def make_batch(fill=0, own_rows=False):
    """Ragged prompts and completions, right-padded with tokens of `fill`. own_rows: a prompt for each
    completion, not for each group.
    """
    rng = np.random.default_rng(0)
    prompt_mask = np.arange(ROOM) < np.array(PROMPTS)[:, None]
    completion_mask = np.arange(LENGTH) < np.array(COMPLETIONS)[:, None]
    prompt_ids, completion_ids = (
        rng.integers(0, VOCAB, m.shape) for m in (prompt_mask, completion_mask)
    )
    prompts = np.where(prompt_mask, prompt_ids, fill).astype(np.int32), prompt_mask
    if own_rows:
        prompts = [np.repeat(x, 3, axis=0) for x in prompts]
    return {
        "prompt_ids": prompts[0],
        "prompt_mask": prompts[1],
        "completion_ids": np.where(completion_mask, completion_ids, fill).astype(np.int32),
        "completion_mask": completion_mask,
    }


@functools.partial(jax.jit, static_argnums=0)
def unshared(config, params, batch):
    """(logprobs, entropy) [b t] through models.forward, [prompt, completion] a row of its own."""
    rows = jnp.zeros((len(COMPLETIONS), ROOM + LENGTH), jnp.int32)
    at = np.zeros((len(COMPLETIONS), LENGTH), np.int32)  # what predicts each completion token
    for i, length in enumerate(COMPLETIONS):
        prompt = batch["prompt_ids"][i // 3, : PROMPTS[i // 3]]
        row = jnp.concatenate([prompt, batch["completion_ids"][i, :length]])
        rows = rows.at[i, : len(row)].set(row)
        at[i] = len(prompt) - 1 + np.arange(LENGTH)
    lengths = [PROMPTS[i // 3] + length for i, length in enumerate(COMPLETIONS)]
    segment_ids = (np.arange(rows.shape[1]) < np.array(lengths)[:, None]).astype(np.int32)
    logits = forward(config, params, rows, segment_ids=segment_ids) / TEMPERATURE
    logp = jax.nn.log_softmax(jnp.take_along_axis(logits, at[..., None], axis=1))
    chosen = jnp.take_along_axis(logp, batch["completion_ids"][..., None], axis=-1)[..., 0]
    return chosen, -(jnp.exp(logp) * logp).sum(-1)


@functools.partial(jax.jit, static_argnums=0)
def scores(config, params, batch):
    return completion_logprobs(config, params, batch, temperature=TEMPERATURE)[:2]


LAYOUTS = pytest.mark.parametrize("own_rows", [False, True], ids=["shared", "own rows"])


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return tiny_model(request.param)


@LAYOUTS
def test_logprobs_and_entropy_are_those_of_the_plain_model(model, own_rows):
    """Oracle: models.forward on every [prompt, completion]; 1e-5: float32 sums in another order."""
    batch = make_batch(own_rows=own_rows)
    mask, wanted = batch["completion_mask"], unshared(*model, make_batch())
    for ours, theirs in zip(scores(*model, batch), wanted, strict=True):
        np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)


@LAYOUTS
def test_gradients_are_those_of_the_plain_model(model, own_rows):
    """Oracle: autodiff through models.forward; within 1e-5 of each tensor's largest gradient."""
    config, params = model
    mask = make_batch()["completion_mask"]
    probe = np.random.default_rng(1).normal(size=(len(COMPLETIONS), LENGTH)) * mask

    def gradients(form, batch):
        @jax.jit
        @jax.grad
        def gradient(params):
            return (form(config, params, batch)[0] * probe).sum()

        return jax.device_get(gradient(params))

    def compare(path, ours, theirs):
        error, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
        assert error <= 1e-5 * size, f"{jax.tree_util.keystr(path)}: {error} of {size}"
        return size > 0

    moved = jax.tree.map_with_path(
        compare, gradients(scores, make_batch(own_rows=own_rows)), gradients(unshared, make_batch())
    )
    still = [path for path, nonzero in jax.tree.leaves_with_path(moved) if not nonzero]
    assert all("router_bias" in jax.tree_util.keystr(path) for path in still)


@LAYOUTS
def test_what_padding_holds_changes_nothing(model, own_rows):
    """Oracle: invariant: other tokens under the masks, the same results bit for bit where they are True."""
    mask = make_batch()["completion_mask"]
    results = [scores(*model, make_batch(fill, own_rows)) for fill in (0, VOCAB - 1)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one[mask], other[mask])


def test_values_of_tokens_are_spread_to_the_columns_that_predict_them():
    """Oracle: by hand: 9 columns, of which the second is the first that predicts; zeros elsewhere."""
    found = PredictionInputs(np.zeros((2, 9, 3)), None, 2, None)
    for shape in ((2, 4), (2, 4, 5)):
        values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        exact = np.zeros((2, 9, *shape[2:]))
        exact[:, 2:6] = values
        np.testing.assert_array_equal(found.spread(values), exact)


def test_what_a_rollout_kept_is_read_alike_in_either_layout():
    """Oracle: the other layout, of random experts and candidates; by hand, that either changes the result:
    three candidates have at most log 3 nats, and other experts other log-probabilities. The temperature that
    is not said is 1.
    """
    config, params = tiny_model("mla_moe")
    shared, own = make_batch(), make_batch(own_rows=True)
    mask, rng = shared["completion_mask"], np.random.default_rng(2)
    layers, a = config.num_moe_layers, config.num_experts_per_tok

    def experts(*shape):
        return np.argsort(rng.random((*shape, layers, config.n_routed_experts)))[..., :a].astype(
            np.uint16
        )

    ids = shared["completion_ids"]
    kept = {"candidates": np.stack([ids, (ids + 1) % VOCAB, (ids + 7) % VOCAB], axis=-1)}
    kept["completion_experts"] = experts(*ids.shape)
    of_prompts = experts(*shared["prompt_ids"].shape)
    shared |= kept | {"prompt_experts": of_prompts}
    own |= kept | {"prompt_experts": np.repeat(of_prompts, 3, axis=0)}
    ours, entropy, _ = jax.jit(completion_logprobs, static_argnums=0)(config, params, shared)
    theirs, other, _ = jax.jit(lambda *a: completion_logprobs(config, *a, temperature=1.0))(
        params, own
    )
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5)
    np.testing.assert_allclose(entropy[mask], other[mask], atol=1e-5)
    assert 0 < entropy[mask].max() < np.log(3) + 1e-6
    shared["completion_experts"] = (kept["completion_experts"] + 1) % config.n_routed_experts
    moved, _, _ = jax.jit(completion_logprobs, static_argnums=0)(config, params, shared)
    assert np.abs(moved - ours)[mask].max() > 1e-3


@pytest.mark.slow
def test_expert_load_counts_real_tokens():
    """Oracle: by hand: 7 prompt tokens, once a group or once for each of its 3 completions, and 17 completion
    tokens, 2 experts each. A model without experts has none.
    """
    for own_rows, prompt_tokens in ((False, 7), (True, 3 * 7)):
        batch = make_batch(own_rows=own_rows)
        load = completion_logprobs(*tiny_model("mla_moe"), batch)[2]["moe_layers"].load
        assert load.shape == (1, 8) and load.sum() == (prompt_tokens + 17) * 2
    assert completion_logprobs(*tiny_model("gqa"), make_batch())[2] == {}
