"""Rows and tokens that do not split over the mesh: every shard_map of ours, and whole updates, against one
device. Where rows do not split, XLA's partitioner may cut arrays unevenly by itself, and it is known to lose
rows of a gradient then.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from deepseek_jax.distill.chunks import Outputs, Term, mean_over_tokens
from deepseek_jax.distill.divergences import hard_loss
from deepseek_jax.losses.grpo import make_grpo_loss
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.losses.preference import reward_loss
from deepseek_jax.losses.settings import GrpoOptions
from deepseek_jax.models import indexer
from deepseek_jax.ops.attention import attend, attend_branches
from deepseek_jax.ops.branches import Branches
from deepseek_jax.ops.dot import dot
from deepseek_jax.ops.logprobs import token_logprobs
from deepseek_jax.ops.platform import SIZES
from deepseek_jax.ops.token_at import token_at
from deepseek_jax.parallel import constrain, make_mesh
from deepseek_jax.parallel.context import by_rows, over_heads
from deepseek_jax.parallel.dispatch import Kernels, expert_parallel
from deepseek_jax.parallel.linear import by_token
from deepseek_jax.parallel.tokens import over_tokens
from deepseek_jax.training.state import TrainState
from deepseek_jax.training.update import make_train_step
from tests.distill import test_objective as distilled
from tests.losses.test_preference import pairs, reward_model
from tests.parallel import test_dispatch as moe
from tests.quick import others_slow
from tests.tiny import SPARSE, VOCAB, tiny_model

MESHES = {
    "data": dict(data=8),
    "data, tensor": dict(data=4, tensor=2),
    "data, context": dict(data=4, context=2),
    "data, fsdp, expert": dict(data=2, fsdp=2, expert=2),
    "expert": dict(data=1, expert=8),
}
D, H, PROMPT = 8, 8, 4


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def token_losses(rows, t):
    """over_tokens of what GRPO scores: the token before each completion's first, then its own tokens. Two
    completions share a prompt.
    """
    last = np.arange(rows) % PROMPT

    def run(hidden, head, w):
        hidden = hidden @ w
        first = jnp.broadcast_to(token_at(hidden, last)[:, None, None], (rows, 2, 1, D))
        own = hidden[:, PROMPT:].reshape(rows, 2, t, D)[:, :, :-1]
        scored = jnp.concatenate([first, own], axis=2).reshape(2 * rows, t, D)
        targets = jnp.arange(2 * rows * t).reshape(-1, t) % VOCAB
        return over_tokens(functools.partial(token_logprobs, chunk_size=3), scored, head, targets)

    return run, (normal(rows, PROMPT + 2 * t, D), normal(VOCAB, D), normal(D, D))


def distillation(rows, t):
    targets = np.arange(rows * t).reshape(rows, t) % VOCAB

    def run(hidden, head):
        term = Term(Partial(hard_loss), jnp.full((rows, t), 1 / t), 1.0, targets)
        return mean_over_tokens({"hard": term}, Outputs(hidden, head), chunk_size=3)[0]

    return run, (normal(rows, t, D), normal(VOCAB, D))


def linear(rows, t):
    def run(x, up, down):
        y = by_token(functools.partial(dot, "btd,dzf->btzf"), "btd,dzf->btzf", x, up, "float32")
        y = jnp.tanh(y).sum(2)
        return by_token(functools.partial(dot, "btf,fd->btd"), "btf,fd->btd", y, down, "float32")

    return run, (normal(rows, t, D), normal(D, 2, 16), normal(16, D))


def attention(rows, t, *, branches=False):
    segment_ids = np.ones((rows, t), np.int32)
    call = functools.partial(attend, scale=0.3, implementation="blockwise")
    if branches:
        segment_ids[:, PROMPT - 1] = 0
        layout = Branches(t - 2 * (t // 3), 2)
        call = functools.partial(attend_branches, scale=0.3, layout=layout)

    def run(x, w):
        q, k, v = (jnp.einsum("btd,dhx->bthx", x, part) for part in w)
        q, k, v = (constrain(a, ("batch", "seq", "heads", None)) for a in (q, k, v))
        out = over_heads(call, q, k, v, segment_ids)
        return jnp.where((segment_ids > 0)[..., None, None], out, 0)

    return run, (normal(rows, t, D), normal(3, D, H, 4))


def index_loss(rows, t):
    config = dataclasses.replace(SPARSE, indexer_loss="sparse")
    segment_ids = jnp.ones((rows, t), jnp.int32)

    def run(q, k, w):
        index = indexer.Index(q, k, w)
        selected = indexer.select(config, index, segment_ids, None)
        both = jnp.array([normal(rows, t, 4, 6), normal(rows, t, 4, 6, seed=1)])
        return indexer.loss(config, index, both, segment_ids, selected, 0.3)

    return run, (normal(rows, t, 2, 8), normal(rows, t, 8), normal(rows, t, 2))


def single_rows(rows, t):
    def run(x, w):
        return by_rows(lambda a: jnp.cumsum(jnp.tanh(a), axis=1), x @ w)

    return run, (normal(rows, t, D), normal(D, D))


def routed(rows, t):
    chosen = np.random.default_rng(0).permuted(np.tile(np.arange(moe.E), (rows, t, 1)), axis=-1)
    chosen = jnp.asarray(chosen[..., : moe.A], jnp.int32)

    def run(x, weights, *kernels):
        kernels = Kernels(kernels, moe.AXES)
        return expert_parallel(moe.PRODUCTS, x, chosen, weights, kernels)[0]

    kernels = normal(moe.E, moe.D, moe.F), normal(moe.E, moe.F, moe.D)
    return run, (normal(rows, t, moe.D), normal(rows, t, moe.A), *kernels)


SHARED = {
    "over_tokens": token_losses,
    "mean_over_tokens": distillation,
    "by_token": linear,
    "over_heads": attention,
    "over_heads of branches": functools.partial(attention, branches=True),
    "over_queries": index_loss,
    "by_rows": single_rows,
    "expert_parallel": routed,
}
QUICK = {("over_tokens", "data, tensor", 2), ("over_heads of branches", "data, tensor", 2)}


def value_and_gradients(run, arrays):
    """A scalar that every number of the results moves differently, and its gradients."""

    def loss(*arrays):
        leaves = jax.tree.leaves(run(*arrays))
        return sum((x * jnp.cos(jnp.arange(x.size)).reshape(x.shape)).sum() for x in leaves)

    return jax.jit(jax.value_and_grad(loss, argnums=range(len(arrays))))(*arrays)


def assert_near(ours, theirs):
    """Within float32's rounding, as a part of each tensor's largest."""

    def compare(path, a, b):
        error = np.abs(np.asarray(a) - b).max()
        assert error <= 2e-5 * np.abs(b).max() + 1e-7, (jax.tree_util.keystr(path), error)

    jax.tree.map_with_path(compare, ours, theirs)


@pytest.mark.parametrize(
    ("part", "mesh", "rows"),
    others_slow([(p, m, rows) for p in SHARED for m in MESHES for rows in (1, 2, 3)], *QUICK),
)
def test_what_does_not_split_has_the_gradient_of_one_device(part, mesh, rows):
    """Oracle: the same function without a mesh: values and gradients, for 8 tokens a row and for 7."""
    for t in (8, 7):
        theirs = value_and_gradients(*SHARED[part](rows, t))
        with jax.set_mesh(make_mesh(**MESHES[mesh])):
            assert_near(value_and_gradients(*SHARED[part](rows, t)), theirs)


def completions(kind, rows, *, shared):
    """(loss_fn, params, batch) of GRPO: rows of a prompt and its two completions, or of one completion."""
    config, params = tiny_model(kind)
    rng, t = np.random.default_rng(0), 8
    prompts, rows = rows, rows * 2 if shared else rows
    real = {"prompt": rng.integers(2, PROMPT + 1, prompts), "completion": rng.integers(2, t, rows)}
    batch = {
        f"{name}_ids": rng.integers(0, VOCAB, (len(lengths), size)).astype(np.int32)
        for (name, lengths), size in zip(real.items(), (PROMPT, t), strict=True)
    }
    for (name, lengths), size in zip(real.items(), (PROMPT, t), strict=True):
        batch[f"{name}_mask"] = np.arange(size) < lengths[:, None]
    batch |= {"advantages": normal(rows), "sampler_logprobs": normal(rows, t) - 3}
    batch["ref_logprobs"] = batch["sampler_logprobs"] + 0.1
    batch["num_tokens"] = np.float32(real["completion"].sum())
    batch["num_completions"] = np.float32(rows)
    options = GrpoOptions(kl_coef=0.1)
    return make_grpo_loss(config, options, max_completion_length=t), params, batch


def texts(kind, rows, *, indexer_loss="none", **weights):
    """(loss_fn, params, batch) of next_token_loss. weights: its options."""
    config, params = tiny_model(kind)
    config, t = dataclasses.replace(config, indexer_loss=indexer_loss), 9
    tokens = np.random.default_rng(0).integers(0, VOCAB, (rows, t)).astype(np.int32)
    batch = dict(tokens=tokens, targets=np.roll(tokens, -1, axis=1))
    batch |= dict(segment_ids=np.ones((rows, t), np.int32), loss_mask=np.ones((rows, t), bool))
    batch["positions"] = np.tile(np.arange(t, dtype=np.int32), (rows, 1))
    batch |= dict(normalizer=np.float32(rows * t), num_tokens=np.float32(rows * t))

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch, **weights)

    return loss_fn, params, batch


def preferred(kind, rows):
    config, params = reward_model(kind)
    batch = pairs(np.random.default_rng(0), p=rows)
    batch |= {"weights": np.ones(rows, np.float32), "normalizer": np.float32(rows)}
    return lambda params, batch, rng: reward_loss(config, params, batch), params, batch


def taught(rows):
    repeat = {name: np.tile(x, (rows // 2,) + (1,) * (x.ndim - 1)) if x.ndim else x
              for name, x in distilled.whole_batch().items()}  # fmt: skip
    weights = dict(soft=0.5, hard=0.3, relations=0.1, on_policy=0.4)
    objective = distilled.objective(weights=weights, micro_batches=2)
    loss_fn = functools.partial(objective.loss, teacher_params=distilled.TEACHER[1])
    return loss_fn, distilled.STUDENT[1], repeat


UPDATES = {
    "grpo, shared prompts": functools.partial(completions, "mla_moe", shared=True),
    "grpo, own rows": functools.partial(completions, "mla_moe", shared=False),
    "grpo of V3.2, shared prompts": functools.partial(completions, "sparse", shared=True),
    "grpo of Qwen2, shared prompts": functools.partial(completions, "gqa", shared=True),
    "fine-tuning": functools.partial(texts, "mla_moe"),
    "multi-token prediction": functools.partial(texts, "mtp", mtp_weight=0.3, balance_weight=0.1),
    "indexers": functools.partial(texts, "sparse", indexer_loss="sparse", mtp_weight=0.3),
    "indexers of gathered keys": functools.partial(
        texts, "sparse", indexer_loss="sparse", mtp_weight=0.3
    ),
    "reward model": functools.partial(preferred, "mla_moe"),
    "distillation": taught,
}
QUICK_UPDATES = {("grpo of Qwen2, shared prompts", "data, tensor")}


@pytest.mark.parametrize(
    ("update", "mesh"), others_slow([(u, m) for u in UPDATES for m in MESHES], *QUICK_UPDATES)
)
def test_micro_batches_that_do_not_split_have_the_gradient_of_one_device(monkeypatch, update, mesh):
    """Oracle: the update on one device: 4 rows in 2 micro-batches, over a mesh of 4 or 8 parts."""
    if "gathered" in update:
        monkeypatch.setitem(SIZES, "keys_to_gather_from", {"any": 1})
    loss_fn, params, batch = UPDATES[update](4)
    # Its state is what it was given
    tx = optax.chain(optax.trace(decay=0.0), optax.set_to_zero())
    step = make_train_step(loss_fn, tx, micro_batches=2)

    def gradients():
        state, metrics = jax.jit(step)(TrainState.create(params, tx), batch, jax.random.key(0))
        return metrics["loss"], state.opt_state[0].trace

    theirs = gradients()
    with jax.set_mesh(make_mesh(**MESHES[mesh])):
        assert_near(gradients(), theirs)
