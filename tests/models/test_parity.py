"""The decoder against PyTorch's transformers, on tiny checkpoints with every parameter random."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from configs import models
from deepseek_jax.checkpoint import hf_tensors, load_hf, save_hf
from deepseek_jax.models import (
    ModelConfig,
    forward,
    init_params,
    layer_states,
    predict_further,
)
from deepseek_jax.models.mla import LATENT_NORM_EPS
from deepseek_jax.models.remat_policies import REMAT_POLICIES
from deepseek_jax.ops.routing import route
from tests.models.families import FAMILIES, write_released_checkpoint, write_tiny_checkpoint
from tests.quick import others_slow

# Logits are of order one and both sides sum the same float32 products in different orders: measured 3e-6.
LOGITS = 2e-5
MOE = ("deepseek_v3", "deepseek_v32", "deepseek_v2")


class Pair(NamedTuple):
    model: Any
    folder: Any
    config: ModelConfig
    params: dict
    tokens: np.ndarray


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    """family -> Pair, made once. Tokens reach past the original context of 32 of the scaled RoPEs."""
    made = {}

    def pair(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            model = write_tiny_checkpoint(family, folder)
            tokens = np.random.default_rng(0).integers(0, 96, (2, 72))
            made[family] = Pair(model, folder, *load_hf(folder), tokens)
        return made[family]

    return pair


compiled_forward = jax.jit(forward, static_argnums=0)


def logits_of(config, params, tokens, **more):
    return np.asarray(compiled_forward(config, params, tokens, **more))


def hf_logits(model, tokens, **more):
    with torch.no_grad():
        return model(torch.tensor(tokens), **more).logits.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_agree(pair_of, family):
    """Oracle: transformers, eager attention, float32."""
    model, _, config, params, tokens = pair_of(family)
    ours, theirs = logits_of(config, params, tokens), hf_logits(model, tokens)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=LOGITS, rtol=0)


def test_norms_of_latents_add_what_theirs_add(pair_of):
    """Oracle: transformers' own modules: not the config's rms_norm_eps."""
    attention = pair_of("deepseek_v3").model.model.layers[0].self_attn
    for norm in (attention.q_a_layernorm, attention.kv_a_layernorm):
        assert norm.variance_epsilon == LATENT_NORM_EPS


@pytest.mark.parametrize("family", others_slow(FAMILIES, "deepseek_v3", "qwen3"))
def test_gradients_of_the_cross_entropy_agree(pair_of, family):
    """Oracle: autograd through transformers, tensor by tensor under its names.

    Off by at most 1e-5 of the tensor's largest gradient: float32 sums in other orders.
    """
    model, _, config, params, tokens = pair_of(family)

    def loss(params):
        logprobs = jax.nn.log_softmax(forward(config, params, tokens)[:, :-1])
        return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1).mean()

    model.zero_grad()
    logits = model(torch.tensor(tokens)).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(tokens[:, 1:]).flatten()
    ).backward()
    theirs = hf_gradients(model)
    ours = dict(hf_tensors(config, jax.device_get(jax.jit(jax.grad(loss))(params))))
    # No gradient of the cross-entropy moves these: balancing and the indexer's own loss do
    unmoved = {name for name in ours if "correction_bias" in name or "indexer" in name}
    assert ours.keys() - unmoved == theirs.keys()
    assert not any(ours[name].any() for name in unmoved)
    for name, gradient in theirs.items():
        error = np.abs(ours[name] - gradient).max()
        assert error <= 1e-5 * np.abs(gradient).max(), name


def hf_gradients(model):
    """{checkpoint name: gradient}, transformers' fused experts taken apart."""
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        prefix, is_fused, kind = name.partition("mlp.experts.")
        for expert, gradient in enumerate(parameter.grad.numpy()) if is_fused else ():
            projections = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            for projection, part in zip(
                projections, np.split(gradient, len(projections)), strict=True
            ):
                gradients[f"{prefix}{is_fused}{expert}.{projection}.weight"] = part
        if not is_fused:
            gradients[name] = parameter.grad.numpy()
    return gradients


@pytest.mark.parametrize("family", others_slow(MOE, "deepseek_v3", "deepseek_v2"))
def test_chosen_experts_are_identical(pair_of, family):
    """Oracle: the router modules of transformers, hooked in a forward pass, on the hidden states they saw."""
    model, _, config, params, tokens = pair_of(family)
    seen = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _, args, out: seen.append((args[0], *out[1:])))
        for layer in model.model.layers[config.num_dense_layers :]
    ]
    hf_logits(model, tokens)
    for hook in hooks:
        hook.remove()
    assert len(seen) == config.num_moe_layers
    ffn = params["moe_layers"]["ffn"]
    for layer, (hidden, weights, experts) in enumerate(seen):
        logits = hidden.reshape(-1, config.hidden_size).numpy() @ np.asarray(ffn["router"][layer])
        ours, our_weights = route(
            jnp.asarray(logits),
            ffn["router_bias"][layer] if config.has_router_bias else None,
            num_experts_per_tok=config.num_experts_per_tok,
            n_group=config.n_group,
            topk_group=config.topk_group,
            scoring_func=config.scoring_func,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
        )
        by_expert = [np.argsort(np.asarray(a), axis=1) for a in (ours, experts)]
        np.testing.assert_array_equal(
            np.take_along_axis(np.asarray(ours), by_expert[0], 1),
            np.take_along_axis(experts.numpy(), by_expert[1], 1),
        )
        np.testing.assert_allclose(
            np.take_along_axis(np.asarray(our_weights), by_expert[0], 1),
            np.take_along_axis(weights.numpy(), by_expert[1], 1),
            rtol=1e-5,
        )


@pytest.mark.parametrize("family", others_slow(FAMILIES, "deepseek_v3", "qwen3"))
def test_exported_folder_loads_in_transformers_with_the_same_logits(pair_of, family, tmp_path):
    """Oracle: the transformers model that the checkpoint came from: equal tensors, equal logits."""
    model, _, config, params, tokens = pair_of(family)
    save_hf(tmp_path / "out", config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    np.testing.assert_array_equal(hf_logits(again, tokens), hf_logits(model, tokens))


@pytest.mark.parametrize(
    "family", others_slow(["deepseek_v3", "deepseek_v2", "qwen3"], "deepseek_v3")
)
def test_packed_documents_do_not_see_each_other(pair_of, family):
    """Oracle: each document alone. Left, right and inner padding are segment 0."""
    _, _, config, params, tokens = pair_of(family)
    # Alone, documents of one length share a program
    lengths = (20, 20, 20)
    row, segments, starts = np.full(72, 2), np.zeros(72, int), (3, 23, 50)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        row[start : start + length] = tokens[0, :length] + i
        segments[start : start + length] = i + 1
    row %= 96
    packed = logits_of(config, params, row[None], segment_ids=segments[None])[0]
    for start, length in zip(starts, lengths, strict=True):
        alone = logits_of(config, params, row[None, start : start + length])[0]
        np.testing.assert_allclose(packed[start : start + length], alone, atol=LOGITS, rtol=0)


@pytest.mark.parametrize(
    "family, side",
    others_slow(
        itertools.product(["deepseek_v3", "llama"], ["left", "right"]),
        ("deepseek_v3", "left"),
        ("llama", "right"),
    ),
)
def test_padding_agrees_with_an_attention_mask_in_transformers(pair_of, family, side):
    """Oracle: transformers with attention_mask and the positions of the real tokens, 30 and 64 of them."""
    model, _, config, params, tokens = pair_of(family)
    mask = np.ones((2, 64), int)
    mask[0] = np.arange(64) >= 34 if side == "left" else np.arange(64) < 30
    row = np.where(mask, tokens[:, :64], 2)
    theirs = hf_logits(
        model,
        row,
        attention_mask=torch.tensor(mask),
        position_ids=torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0)),
    )
    ours = logits_of(config, params, row, segment_ids=mask)
    np.testing.assert_allclose(ours[mask > 0], theirs[mask > 0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("family", others_slow(["deepseek_v3", "qwen2"], "deepseek_v3"))
@pytest.mark.parametrize(
    "how",
    others_slow(
        [dict(remat="full")]
        + [dict(scan_layers=True, remat=policy) for policy in ("none", *REMAT_POLICIES)],
        dict(scan_layers=True, remat="attention"),
    ),
)
def test_scanned_and_rematerialised_layers_compute_the_same(pair_of, family, how):
    """Oracle: the unrolled decoder, logits and gradients. float32 sums may be fused in another order."""
    _, _, config, params, tokens = pair_of(family)

    def loss_and_gradients(config):
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(forward(config, p, tokens)).mean()))(
            params
        )

    loss, gradients = loss_and_gradients(config)
    other_loss, other_gradients = loss_and_gradients(dataclasses.replace(config, **how))
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(ours).max() + 1e-12, rtol=0)


@pytest.mark.parametrize("family", others_slow(["deepseek_v3", "qwen2"], "deepseek_v3"))
@pytest.mark.parametrize("how", [dict(scan_layers=True, remat="full")])
def test_layer_states_agree(pair_of, family, how):
    """Oracle: transformers' output_hidden_states, whose last one is after the final norm."""
    model, _, config, params, tokens = pair_of(family)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), output_hidden_states=True).hidden_states
    run = jax.jit(layer_states, static_argnums=0)
    hidden, _, x_lbtd = run(dataclasses.replace(config, **how), params, tokens)
    assert len(x_lbtd) == config.num_hidden_layers
    for ours, other in zip([*x_lbtd[:-1], hidden], theirs[1:], strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=LOGITS, rtol=1e-5)


@pytest.mark.slow
def test_each_remat_policy_keeps_what_it_says():
    """Oracle: the bytes that XLA saves between the passes, with 4 layers and 512 tokens: everything, then the
    selected products, then the layers' inputs alone, which offload has on the host.
    """
    sizes = models.deepseek_v3_tiny() | dict(num_hidden_layers=5, scan_layers=True)

    def gradient(policy):
        config = ModelConfig(**sizes, remat=policy)
        params = jax.eval_shape(lambda: nn.unbox(init_params(config, jax.random.key(0))))
        loss = jax.grad(lambda p, tokens: jnp.square(forward(config, p, tokens)).mean())
        return jax.jit(loss).trace(params, jax.ShapeDtypeStruct((8, 64), jnp.int32))

    def temporaries(policy):
        return gradient(policy).lower().compile().memory_analysis().temp_size_in_bytes

    none, dots, selective, full = map(temporaries, ("none", "dots", "selective", "full"))
    assert none > dots > full and none > selective > full
    assert "<host>[4,8,64,64]" in str(gradient("offload").jaxpr)  # each layer's input


@pytest.mark.parametrize("family", others_slow(FAMILIES, "deepseek_v3"))
def test_bfloat16_stays_near_float32(pair_of, family):
    """Oracle: the float32 logits, of order one. bfloat16 rounds to 2^-9, over three layers' few roundings.

    The median, because an expert choice that flips on a near tie moves its token's logits at once.
    """
    _, _, config, params, tokens = pair_of(family)
    exact = logits_of(config, params, tokens)
    rounded = logits_of(dataclasses.replace(config, dtype="bfloat16"), params, tokens)
    assert np.median(np.abs(exact - rounded)) < 0.02
    assert np.median(np.abs(exact - rounded)) > 1e-4  # it did compute in bfloat16


@pytest.mark.parametrize("family", others_slow(["deepseek_v3", "deepseek_v32"], "deepseek_v3"))
def test_multi_token_prediction_agrees(tmp_path, family):
    """Oracle: transformers' MtpLayer on the embeddings one ahead and the trunk's normed hidden states."""
    model, mtp, _ = write_released_checkpoint(tmp_path, fp8=False, family=family)
    config, params = load_hf(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 41))
    with torch.no_grad():
        trunk = model.model
        hidden = trunk(torch.tensor(tokens[:, :-1])).last_hidden_state
        theirs = mtp(
            trunk.embed_tokens(torch.tensor(tokens[:, 1:])),
            hidden,
            position_embeddings=trunk.rotary_emb(hidden, torch.arange(40)[None]),
            attention_mask=torch.full((40, 40), -1e9).triu(1)[None, None],
            position_ids=None,
            cache=None,
        )
    ones = jnp.ones((2, 40), jnp.int32)
    ours, _ = jax.jit(predict_further, static_argnums=(0, 2))(
        config,
        params,
        0,
        jnp.asarray(hidden.numpy()),
        tokens[:, 1:],
        segment_ids=ones,
        positions=jnp.broadcast_to(jnp.arange(40), (2, 40)),
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=LOGITS, rtol=0)
