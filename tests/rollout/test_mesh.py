"""Rollouts on meshes of eight devices, against the same rollout on one."""

import functools
import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import models
from deepseek_jax.errors import NotFinite
from deepseek_jax.models import ModelConfig, forward, random_params
from deepseek_jax.models.moe import MoE
from deepseek_jax.parallel import make_mesh
from deepseek_jax.rollout import decode, generate
from deepseek_jax.rollout.completions import RolloutLog
from deepseek_jax.rollout.requests import _random_streams
from tests.quick import others_slow

DENSE = dict(
    model_type="llama",
    vocab_size=64,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=256,
)
EXPERTS = models.deepseek_v3_tiny(vocab_size=64)
MODELS = {
    "dense": ModelConfig(**DENSE),
    # 12 heads do not split over eight devices: fsdp gives a factor of two to data
    "dense of 12 heads": ModelConfig(**DENSE | dict(num_attention_heads=12, head_dim=8)),
    "experts": ModelConfig(**EXPERTS | dict(num_hidden_layers=3)),
    "drafting": ModelConfig(**EXPERTS | dict(num_nextn_predict_layers=1)),
    "sparse": ModelConfig(**models.deepseek_v3_2_tiny(vocab_size=64) | dict(num_hidden_layers=3)),
}
MESHES = {
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "tensor": dict(tensor=2, fsdp=4),
    "slices": dict(slices=2, fsdp=4),
    "context": dict(context=2, data=4),
    "pipeline": dict(pipeline=2, fsdp=4),
    "expert": dict(expert=4, tensor=2),
    "mixed": dict(expert=2, fsdp=2, tensor=2),
    "expert and context": dict(slices=2, expert=2, context=2),
}
SLOTS, LENGTH = 8, 24
# Ragged prompts; with four completions each, slots are seated again
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, 64, RNG.integers(2, 20)).tolist() for _ in range(7)]
CASES = [(model, mesh) for model in ("dense", "experts") for mesh in MESHES]
CASES = [(m, a) for m, a in CASES if not (m == "dense" and "expert" in MESHES[a])]
CASES += [("sparse", mesh) for mesh in ("mixed", "context", "fsdp")]
CASES += [("dense of 12 heads", "fsdp"), ("drafting", "mixed"), ("drafting", "fsdp")]
QUICK = [
    ("experts", "mixed"),
]


def rollout(model, mesh, log=None):
    config = MODELS[model]
    with jax.set_mesh(mesh):
        params = random_params(config, mesh, 0)
        sampling = dict(max_completion_length=LENGTH, n=4, eos_ids=(3,), seed=0, slots=SLOTS)
        return generate(
            config, params, PROMPTS, speculative=model == "drafting", log=log, **sampling
        )


@functools.cache
def on_one(model):
    return rollout(model, make_mesh(data=1, devices=jax.devices()[:1]))


@functools.cache
def params_on_one(model):
    return random_params(MODELS[model], make_mesh(data=1, devices=jax.devices()[:1]), 0)


def ahead(scores, k):
    """By how much the k-th largest of the last axis is ahead of the next, where that is least."""
    best = jax.lax.top_k(scores, k + 1)[0]
    return (best[..., -2] - best[..., -1]).min()


def near_experts(distances, call, arguments, more, context):
    """Run a module. Of an MoE append to distances how far the last group and expert that it chose are ahead
    of the next, in the router's scores, for the token where that is least.
    """
    if isinstance(context.module, MoE):
        cfg, weights = context.module.config, context.module.variables["params"]
        scores = jax.nn.sigmoid(arguments[0][0] @ weights["router"]) + weights["router_bias"]
        scores_mgx = scores.reshape(len(scores), cfg.n_group, -1)
        groups_mg = jax.lax.top_k(scores_mgx, 2)[0].sum(-1)
        is_open = groups_mg >= jax.lax.top_k(groups_mg, cfg.topk_group)[0][:, -1:]
        open_me = jnp.where(is_open[..., None], scores_mgx, -jnp.inf).reshape(scores.shape)
        near = ahead(groups_mg, cfg.topk_group), ahead(open_me, cfg.num_experts_per_tok)
        jax.debug.callback(lambda *found: distances.extend(map(float, found)), *near)
    return call(*arguments, **more)


def drawn(model, row, at):
    """The token that the rollout's random stream draws from the whole forward pass, after the tokens of the
    rollout on one device: -> (the token, the distance of the draw from another one in probability, that of
    experts from others, see near_experts, the least of all layers; inf without experts).
    """
    config, distances = MODELS[model], []
    ids = [*PROMPTS[row // 4], *on_one(model).completion_ids[row, :at]]
    tokens = np.array([ids], np.int32)
    with nn.intercept_methods(functools.partial(near_experts, distances)):
        run = jax.jit(lambda params: forward(config, params, tokens))
        logits = run(params_on_one(model))[0, -1]
    jax.effects_barrier()
    key = jax.random.fold_in(_random_streams(PROMPTS, 4, 0)[row], at)
    edges = np.cumsum(jax.nn.softmax(logits)) - float(jax.random.uniform(key))
    return int((edges <= 0).sum()), np.abs(edges[:-1]).min(), min(distances, default=np.inf)


@pytest.mark.parametrize("model, axes", others_slow(CASES, *QUICK))
def test_a_rollout_on_a_mesh_is_that_of_one_device(model, axes):
    """Oracle: one device: the same tokens, and log-probabilities to float32's rounding (4e-6 nats). Where
    experts are split, each of two layers of experts exchanges in a round or more in each of at least as many
    steps as the longest completion has tokens, but for its first.
    """
    log = RolloutLog()
    one, many = on_one(model), rollout(model, make_mesh(**MESHES[axes]), log)
    differs = one.completion_ids != many.completion_ids
    # Drafts have other draws; each row takes seconds
    for row in np.flatnonzero(differs.any(1))[: 0 if model == "drafting" else 3]:
        at = differs[row].argmax()
        _, near, experts = drawn(model, row, at)
        print(f"row {row}, token {at}: the draw was {near:.2g} of probability from another token,")
        print(f"other groups or experts were behind by {experts:.2g} in a router's score")
    np.testing.assert_array_equal(many.completion_ids, one.completion_ids)
    np.testing.assert_array_equal(many.completion_mask, one.completion_mask)
    np.testing.assert_array_equal(many.truncated, one.truncated)
    np.testing.assert_allclose(many.sampler_logprobs, one.sampler_logprobs, atol=4e-6)
    assert 0 < one.truncated.mean() < 1 or model == "drafting"
    if model in ("experts", "sparse") and axes != "data":
        assert log.exchanges >= 2 * (many.completion_mask.sum(1).max() - 1)
        assert log.exchanges % 2 == 0 and log.exchange_rounds >= log.exchanges
    else:
        assert log.exchanges == log.exchange_rounds == 0


def test_a_draw_that_is_made_again_is_the_rollouts():
    """Oracle: the tokens of the rollout on one device, first, in the middle and last."""
    one = on_one("dense")
    for row, at in ((0, 0), (5, 12), (9, one.completion_mask[9].sum() - 1)):
        token, near, experts = drawn("dense", row, at)
        assert token == one.completion_ids[row, at] and 0 < near < 0.5 and experts == np.inf


def test_how_near_other_groups_and_experts_were():
    """Oracle: by hand: of groups with sums 1.0, 1.1, 0.9 and 0.3 the first two are chosen, 0.1 ahead of the
    next; their best two experts are 0.5 ahead of the third. The bias takes the last score down from 0.95.
    """
    scores = np.array([0.9, 0.1, 0.8, 0.3, 0.5, 0.4, 0.2, 0.1])
    raised = np.append(scores[:-1], 0.95)
    router = {"router": np.eye(8), "router_bias": scores - raised}
    context = SimpleNamespace(module=MoE(MODELS["experts"]).bind({"params": router}))
    distances, x = [], np.log(raised / (1 - raised))[None, None]
    near_experts(distances, lambda x: None, (x,), {}, context)
    jax.effects_barrier()
    np.testing.assert_allclose(distances, [0.1, 0.5], rtol=1e-5)


@pytest.mark.parametrize("sizes", others_slow([dict(data=8), dict(fsdp=4, tensor=2)], dict(data=8)))
def test_a_completion_that_is_not_finite_names_the_device_of_its_slot(monkeypatch, sizes):
    """Oracle: by hand: of eight slots on eight devices the sixth's log-probabilities are NaN."""
    mesh, run = make_mesh(**sizes), decode.decode

    def broken(*arguments):
        state = run(*arguments)
        return state._replace(logprobs=state.logprobs.at[5].set(np.nan))

    monkeypatch.setattr(decode, "decode", broken)
    device = re.escape(str(mesh.devices.ravel()[5]))
    with pytest.raises(NotFinite, match=f"sampled in slot 5 on {device}: "):
        rollout("dense", mesh)


def test_slots_that_do_not_split_over_the_devices_are_refused():
    """Oracle: the message."""
    mesh, config = make_mesh(), MODELS["dense"]
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="^slots=12 does not split over .* 8 devices"),
    ):
        params = random_params(config, mesh, 0)
        generate(config, params, PROMPTS, max_completion_length=4, slots=12)
