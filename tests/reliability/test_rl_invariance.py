"""An update of GRPO is the same however its batch is cut, padded, packed, ordered and spread over devices."""

import functools

import jax
import numpy as np
import pytest

from deepseek_jax.losses.advantages import group_advantages
from deepseek_jax.losses.grpo import make_grpo_loss
from deepseek_jax.losses.settings import GrpoOptions
from deepseek_jax.models import init_params
from deepseek_jax.parallel import logical_names, make_mesh, shardings
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.reinforce.batch import group_batch
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.update import make_train_step
from tests.parallel.updates import GRADIENTS
from tests.quick import others_slow
from tests.reinforce.rollouts import rollout_of
from tests.tiny import VOCAB, tiny_model

PROMPTS, GROUP_SIZE, LONGEST = 8, 4, 24
PLAIN = dict(mesh="one device", micro_batches=1, multiple=16, shared=True, order="as asked")
MESHES = {
    "one device": None,
    "data": dict(data=8),
    "data, fsdp": dict(data=4, fsdp=2),
    "fsdp, expert, tensor": dict(fsdp=2, expert=2, tensor=2),
}
ALL_AT_ONCE = dict(
    mesh="fsdp, expert, tensor", micro_batches=2, multiple=48, shared=False, order="reversed"
)
CASES = [
    PLAIN | dict(micro_batches=2),
    PLAIN | dict(micro_batches=8),
    PLAIN | dict(mesh="data"),
    PLAIN | dict(mesh="data, fsdp"),
    PLAIN | dict(mesh="fsdp, expert, tensor"),
    # More columns of padding: after each prompt and each completion
    PLAIN | dict(multiple=48),
    # A row for each completion instead of one for a group: its prompt is padded on the left
    PLAIN | dict(shared=False),
    PLAIN | dict(order="reversed"),
    ALL_AT_ONCE,
]


@functools.cache
def make_groups():
    """Groups of completions of lengths that differ; one was not scored, one group has equal rewards."""
    rng = np.random.default_rng(0)
    groups = []
    for prompt in range(PROMPTS):
        lengths = rng.integers(1, LONGEST + 1, GROUP_SIZE)
        mask = np.arange(LONGEST) < lengths[:, None]
        rewards = rng.normal(size=GROUP_SIZE).astype(np.float32)
        rewards = np.full_like(rewards, 0.1) if prompt == 3 else rewards
        rewards[1] = np.nan if prompt == 5 else rewards[1]
        groups.append(
            dict(
                prompt_ids=rng.integers(0, VOCAB, rng.integers(1, 14)).tolist(),
                rollout=rollout_of(
                    np.where(mask, rng.integers(0, VOCAB, mask.shape), 0).astype(np.int32),
                    mask,
                    # Some of these ratios are clipped, others are not
                    np.where(mask, rng.normal(-5, 1, mask.shape), 0).astype(np.float32),
                ),
                noise=np.where(mask, rng.normal(0, 0.3, (2, *mask.shape)), 0).astype(np.float32),
                rewards=rewards,
            )
        )
    return groups


def make_batch(multiple, shared, order):
    groups = make_groups() if order == "as asked" else make_groups()[::-1]
    rewards = np.concatenate([group["rewards"] for group in groups])
    advantages = group_advantages(rewards, group_size=GROUP_SIZE)
    batch = group_batch(groups, advantages, shared=shared, multiple=multiple)
    room = batch["completion_ids"].shape[1] - LONGEST
    for row, name in enumerate(("old_logprobs", "ref_logprobs")):
        near = np.concatenate(
            [group["rollout"].sampler_logprobs + group["noise"][row] for group in groups]
        )
        batch[name] = np.pad(near, ((0, 0), (0, max(room, 0))))[:, : LONGEST + room]
    return batch | {"temperature": np.float32(0.8)}


@functools.cache
def one_update(kind, loss_type, **how):
    """(metrics, gradients) as numpy."""
    how = PLAIN | how
    config, params = tiny_model(kind)
    params = jax.device_get(params)
    sizes = MESHES[how["mesh"]] or dict(data=1, devices=jax.devices()[:1])
    mesh = make_mesh(**sizes)
    options = GrpoOptions(loss_type=loss_type, kl_coef=0.1, importance_cap=2.0)
    loss_fn = make_grpo_loss(config, options, max_completion_length=LONGEST)
    step = make_train_step(loss_fn, GRADIENTS, micro_batches=how["micro_batches"])
    boxed = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    with jax.set_mesh(mesh):
        places = shardings(mesh, logical_names(boxed), params)
        placed = state_shardings(mesh, places, params, GRADIENTS)
        create = jax.jit(TrainState.create, static_argnums=1)
        state = jax.device_put(create(params, GRADIENTS), placed)
        batch = put_share(mesh, make_batch(how["multiple"], how["shared"], how["order"]))
        state, metrics = jax.jit(step, out_shardings=(placed, None))(
            state, batch, jax.random.key(0)
        )
        return jax.device_get((metrics, state.opt_state[0].trace))


def check(kind, loss_type, how):
    """Loss and gradients, each tensor's to 2e-5 of its largest: float32 sums in another order."""
    wanted, wanted_gradients = one_update(kind, loss_type)
    metrics, gradients = one_update(kind, loss_type, **how)
    assert abs(wanted["loss"]) > 1e-3
    for name in ("loss", "kl", "entropy", "grad_norm", "clip_fraction"):
        near = dict(rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(metrics[name], wanted[name], **near, err_msg=name)

    def compare(path, ours, theirs):
        error = np.abs(ours - theirs).max()
        assert error <= 2e-5 * np.abs(theirs).max(), (jax.tree_util.keystr(path), error)

    jax.tree.map_with_path(compare, gradients, wanted_gradients)


def name_of(how):
    return ", ".join(f"{name} {value}" for name, value in how.items() if value != PLAIN[name])


@pytest.mark.parametrize("how", others_slow(CASES, ALL_AT_ONCE), ids=name_of)
def test_the_update_is_that_of_the_plain_batch(how):
    """Oracle: the plain path: one device, one part, a row for each group, prompts in their first order."""
    check("mla_moe", "dapo", how)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, loss_type",
    [("mla_moe", "grpo"), ("gqa", "dapo"), ("gqa", "dr_grpo"), ("mla_moe", "gspo")],
)
def test_every_loss_of_all_changes_at_once_is_that_of_the_plain_batch(kind, loss_type):
    """Oracle: the plain path, as above."""
    check(kind, loss_type, ALL_AT_ONCE)
