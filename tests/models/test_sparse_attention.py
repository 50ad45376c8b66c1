"""DeepSeek Sparse Attention in the decoder: against transformers, against our own V3, and against itself."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs import models
from deepseek_jax.checkpoint import load_hf
from deepseek_jax.losses import completion_logprobs, next_token_loss
from deepseek_jax.models import (
    ModelConfig,
    forward,
    hidden_states,
    init_params,
    reported_states,
)
from deepseek_jax.models.indexer import Index, gathers, select
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.platform import SIZES
from deepseek_jax.ops.selection import select_branches
from deepseek_jax.rollout import generate
from tests.models.families import write_tiny_checkpoint
from tests.quick import others_slow
from tests.rollout.test_engine import EOS, LENGTH, PROMPTS, SAMPLED, assert_same, teacher_forced
from tests.tiny import VOCAB, tiny_model

logits_of = jax.jit(forward, static_argnums=0)
# A smaller gap between the k-th and the next index score may fall either way in float32
NEAR = 1e-5


def as_v3(config, params):
    """The model without its indexer."""

    def without(tree):
        if not isinstance(tree, dict):
            return tree
        return {name: without(leaf) for name, leaf in tree.items() if name != "indexer"}

    fields = dict.fromkeys(("index_n_heads", "index_head_dim", "index_topk"))
    return dataclasses.replace(config, model_type="deepseek_v3", **fields), without(params)


def near_ties(model, tokens):
    """bool[b t]: queries of any layer whose selection a rounding can change, from transformers' indexers."""
    near, k = np.zeros(tokens.shape, bool), model.config.index_topk

    def hook(module, args, kwargs, _):
        given = dict(zip(("hidden_states", "q_resid", "position_embeddings"), args, strict=False))
        given |= kwargs
        captured.append(given)

    captured = []
    hooks = [
        layer.self_attn.indexer.register_forward_hook(hook, with_kwargs=True)
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.tensor(tokens))
    for one in hooks:
        one.remove()
    for layer, given in zip(model.model.layers, captured, strict=True):
        scores = scores_of(layer.self_attn.indexer, **given)
        best = torch.where(torch.ones_like(scores).tril() > 0, scores, -torch.inf)
        best = best.sort(-1, descending=True).values
        gap = (best[..., k - 1] - best[..., k]).nan_to_num(torch.inf)
        near |= (gap < NEAR).numpy()
    return near


def scores_of(indexer, hidden_states, q_resid, position_embeddings, **_):
    """The facts of the released code, written out: I = sum_h w ReLU(q . k) with RoPE on the first numbers."""
    b, t, _ = hidden_states.shape
    cos, sin = (a[..., : a.shape[-1] // 2] for a in position_embeddings)
    r = 2 * cos.shape[-1]

    def rotated(a):
        first, second = a[..., : r // 2], a[..., r // 2 : r]
        c, s = (x[:, :, None] for x in (cos, sin))
        return torch.cat([first * c - second * s, second * c + first * s, a[..., r:]], -1)

    with torch.no_grad():
        q = rotated(indexer.wq_b(q_resid).view(b, t, indexer.n_heads, -1))
        k = rotated(indexer.k_norm(indexer.wk(hidden_states))[:, :, None])[:, :, 0]
        w = indexer.weights_proj(hidden_states) * indexer.n_heads**-0.5
        products = torch.einsum("btjy,bsy->btjs", q, k).relu() * q.shape[-1] ** -0.5
        return torch.einsum("btj,btjs->bts", w, products)


@pytest.mark.parametrize("seed", others_slow([0, 1], 0))
def test_logits_agree_where_the_selection_is_not_a_near_tie(tmp_path, seed):
    """Oracle: transformers, 16 index heads, 120 tokens over an original context of 32, 24 keys selected.
    Tokens whose 24th and 25th index score differ by less than 1e-5 in any layer are left out: at most 2 of
    240.
    """
    model = write_tiny_checkpoint("deepseek_v32", tmp_path, seed=seed)
    config, params = load_hf(tmp_path)
    tokens = np.random.default_rng(seed).integers(0, 96, (2, 120))
    near = near_ties(model, tokens)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = logits_of(config, params, tokens)
    assert near.sum() <= 2
    np.testing.assert_allclose(ours[~near], theirs[~near], atol=2e-5, rtol=0)
    # The selection matters: without it the logits are others
    dense, dense_params = as_v3(config, params)
    assert np.abs(logits_of(dense, dense_params, tokens) - theirs).max() > 0.1


def wide_and_dense():
    """(the sparse model with a top-k of 64 tokens, V3 with the same weights), (config, params) each."""
    config, params = tiny_model("sparse")
    return (dataclasses.replace(config, index_topk=64), params), as_v3(config, params)


@pytest.mark.slow
def test_a_top_k_that_covers_the_row_is_our_v3_exactly():
    """Oracle: our DeepSeek-V3 with the same weights: the same bits."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 24))
    ours, theirs = (logits_of(*model, tokens) for model in wide_and_dense())
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(logits_of(*tiny_model("sparse"), tokens) - theirs).max() > 0.1


@pytest.mark.slow
def test_decoding_with_a_top_k_that_covers_the_row_is_our_v3s_exactly():
    """Oracle: our DeepSeek-V3 with the same weights: tokens, and log-probabilities to the bit."""
    ours, theirs = (generate(*model, PROMPTS, **SAMPLED) for model in wide_and_dense())
    np.testing.assert_array_equal(ours.completion_ids, theirs.completion_ids)
    np.testing.assert_array_equal(ours.sampler_logprobs, theirs.sampler_logprobs)


@pytest.mark.parametrize("prefix, selects", [(3, True), (2, False)])
def test_branches_select_where_a_row_of_their_own_is_longer_than_the_top_k(prefix, selects):
    """Oracle: by hand: branches of three tokens after a prefix of three are rows of six, and the top-k is 5;
    what they select is the op's.
    """
    config, _ = tiny_model("sparse")
    layout, t = Branches(prefix, 2), prefix + 2 * 3
    rng = np.random.default_rng(0)
    shapes = (1, t, 2, 8), (1, t, 8), (1, t, 2)
    index = Index(*(jnp.float32(rng.normal(size=shape)) for shape in shapes))
    ids = jnp.ones((1, t), jnp.int32)
    found = select(config, index, ids, layout)
    assert (found is not None) == selects
    if selects:
        wanted = select_branches(*index, ids, layout=layout, index_topk=5)
        np.testing.assert_array_equal(found, wanted)


def test_decoding_selects_what_the_full_forward_selects():
    """Oracle: models.forward over [prompt, completion], to 1e-5. Two index heads, so that ties at 0 decide;
    ragged prompts, slots refilled, a ring of slots that turns several times.
    """
    config, params = tiny_model("sparse")
    settings = SAMPLED | dict(n=4)
    rollout = generate(config, params, PROMPTS, **settings)
    mask = rollout.completion_mask
    exact = teacher_forced(config, params, PROMPTS, rollout, settings["temperature"])
    np.testing.assert_allclose(rollout.sampler_logprobs[mask], exact[mask], atol=1e-5, rtol=1e-5)
    assert len(PROMPTS) * 4 * mask.sum(1).mean() / 3 > 2 * LENGTH


@pytest.mark.slow
def test_speculative_decoding_selects_alike():
    """Oracle: greedy decoding without drafts."""
    settings = dict(max_completion_length=LENGTH, eos_ids=EOS, seed=5, slots=3, temperature=0.0)
    plain, drafted = (
        generate(*tiny_model("sparse"), PROMPTS, **settings, speculative=s) for s in (False, True)
    )
    assert_same(drafted, plain)


@pytest.mark.slow
def test_a_group_with_one_prompt_scores_as_rows_of_their_own():
    """Oracle: each completion in a row after its prompt."""
    config, params = tiny_model("sparse")
    rng = np.random.default_rng(0)
    batch = dict(
        prompt_ids=rng.integers(0, VOCAB, (2, 9)),
        prompt_mask=np.arange(9) < np.array([[9], [6]]),
        completion_ids=rng.integers(0, VOCAB, (6, 7)),
        completion_mask=np.arange(7) < np.array([7, 2, 5, 7, 1, 6])[:, None],
    )
    apart = batch | {name: batch[name].repeat(3, axis=0) for name in ("prompt_ids", "prompt_mask")}
    score = jax.jit(completion_logprobs, static_argnums=0)
    shared, own = (score(config, params, b)[0] for b in (batch, apart))
    mask = batch["completion_mask"]
    np.testing.assert_allclose(shared[mask], own[mask], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("fp8", others_slow([False, True], False))
def test_long_rows_gather_the_keys_that_short_ones_mask(monkeypatch, fp8):
    """Oracle: attention under a mask, and the program: it has no expanded keys. In FP8 the up-projections of
    keys and values are rounded in the masked form alone.
    """
    config, params = tiny_model("sparse")
    config = dataclasses.replace(config, fp8=fp8)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 40))
    masked = logits_of(config, params, tokens)
    monkeypatch.setitem(SIZES, "keys_to_gather_from", {"any": 40 // config.index_topk + 1})
    assert not gathers(config, 40, None)
    monkeypatch.setitem(SIZES, "keys_to_gather_from", {"any": 40 // config.index_topk})
    assert gathers(config, 40, None) and not gathers(config, 40, Branches(10, 3))
    # A function of its own, so that jit traces it with this size
    gathered = jax.jit(lambda params: forward(config, params, tokens))(params)
    atol = 0.1 if fp8 else 1e-5
    np.testing.assert_allclose(gathered, masked, atol=atol * np.abs(masked).max(), rtol=0)


@pytest.mark.slow
def test_packed_documents_select_as_if_alone(monkeypatch):
    """Oracle: each document alone; blocks of 8 queries and keys, and padding."""
    config, params = tiny_model("sparse")
    rng = np.random.default_rng(0)
    lengths, starts = (17, 9, 12), (1, 18, 28)
    row, segments = np.zeros(41, int), np.zeros(41, int)
    texts = [rng.integers(0, VOCAB, length) for length in lengths]
    for i, (start, text) in enumerate(zip(starts, texts, strict=True)):
        row[start : start + len(text)], segments[start : start + len(text)] = text, i + 1
    alone = [logits_of(config, params, text[None])[0] for text in texts]
    for name in ("attention_block", "longest_whole_row"):
        monkeypatch.setitem(SIZES, name, {"any": 8})
    # A function of its own, so that jit compiles it with these blocks
    in_blocks = jax.jit(
        lambda params: forward(config, params, row[None], segment_ids=segments[None])
    )
    packed = in_blocks(params)[0]
    for start, logits in zip(starts, alone, strict=True):
        np.testing.assert_allclose(packed[start : start + len(logits)], logits, atol=1e-5, rtol=0)


def batch_of(tokens):
    targets = np.roll(tokens, -1, axis=1)
    ones = np.ones_like(tokens)
    return dict(
        tokens=tokens,
        targets=targets,
        segment_ids=ones,
        positions=np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
        loss_mask=ones > 0,
        normalizer=np.float32(tokens.size),
        num_tokens=np.float32(tokens.size),
    )


def is_of_indexer(path):
    return any(key.key == "indexer" for key in path)


@pytest.mark.parametrize("form", others_slow(["dense", "sparse"], "sparse"))
def test_the_indexer_learns_from_its_loss_alone_and_the_model_from_the_others(form):
    """Oracle: the gradients of the same losses without the indexer's. Dense: those of V3, whose attention
    sees all keys. Every parameter of every indexer moves, MTP's too.
    """
    config, params = tiny_model("sparse")
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 24))

    def gradients(config, params):
        def loss(params):
            loss, metrics = next_token_loss(config, params, batch_of(tokens), mtp_weight=0.3)
            return loss, metrics.get("indexer_loss")

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    ours, value = gradients(dataclasses.replace(config, indexer_loss=form), params)
    base = as_v3(config, params) if form == "dense" else (config, params)
    theirs, _ = gradients(*base)
    assert value > 0.01
    theirs = dict(jax.tree.leaves_with_path(theirs))
    for path, gradient in jax.tree.leaves_with_path(ours):
        if is_of_indexer(path):
            layers = (
                gradient.reshape(len(gradient), -1) if path[0].key != "mtp_0" else gradient[None]
            )
            assert all(np.abs(layer).max() > 1e-6 for layer in layers), path
        else:
            np.testing.assert_allclose(gradient, theirs[path], atol=1e-6, rtol=1e-4)


def test_other_losses_refuse_to_drop_the_indexers():
    """Oracle: the words a reader needs."""
    config, params = tiny_model("sparse")
    with pytest.raises(ValueError, match="indexer_loss='sparse' is a part of next_token_loss"):
        hidden_states(dataclasses.replace(config, indexer_loss="sparse"), params, np.ones((1, 4)))


@pytest.mark.slow
def test_the_indexer_trains_on_rows_shorter_than_its_top_k():
    """Oracle: sparse equals dense there, and neither is 0."""
    config, params = tiny_model("sparse")
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 5))

    def gradient(form):
        def loss(params):
            chosen = dataclasses.replace(config, indexer_loss=form)
            return reported_states(chosen, params, tokens)[1].indexer.sum()

        leaves = jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params))
        return [
            np.asarray(x) for path, x in leaves if is_of_indexer(path) and path[0].key != "mtp_0"
        ]

    for sparse, dense in zip(gradient("sparse"), gradient("dense"), strict=True):
        assert np.abs(sparse).max() > 1e-4
        np.testing.assert_array_equal(sparse, dense)


def copies(seed):
    """Rows of 32 random tokens and the same once more, of which the second half is to be learned."""
    half = np.random.default_rng(seed).integers(1, 32, (16, 32))
    batch = batch_of(np.concatenate([half, half], axis=1))
    batch["loss_mask"] = np.tile((np.arange(64) >= 32) & (np.arange(64) < 63), (16, 1))
    return batch | dict(normalizer=np.float32(batch["loss_mask"].sum()))


@pytest.mark.slow
def test_an_indexer_learns_to_select_what_attention_looks_at():
    """Oracle: the loss of copying 32 tokens with 16 of 64 keys selected: below 0.1 nats by an indexer that
    has learned from dense attention, above 1 by the random one it began as, under the same other weights.
    """
    config = ModelConfig(**models.deepseek_v3_2_tiny(), indexer_loss="dense")
    params = nn.unbox(init_params(config, jax.random.key(0)))
    began, tx = params, optax.adam(3e-3)
    state = tx.init(params)

    def value(params, batch, config=config):
        return next_token_loss(config, params, batch)

    @jax.jit
    def update(params, state, batch):
        gradient, metrics = jax.grad(value, has_aux=True)(params, batch)
        updates, state = tx.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics["indexer_loss"]

    losses = []
    for step in range(200):
        params, state, loss = update(params, state, copies(step))
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]

    def or_begun(path, trained, first):
        return first if is_of_indexer(path) else trained

    sparse = dataclasses.replace(config, indexer_loss="sparse")
    measure = jax.jit(
        lambda params: value(params, copies(-1 % 2**32), sparse)[1]["next_token_loss"]
    )
    assert measure(params) < 0.1
    assert measure(jax.tree.map_with_path(or_begun, params, began)) > 1
