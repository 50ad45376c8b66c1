"""The update of GRPO, the reference that may follow the policy, and limits of logged metrics."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import LARGE_GAP, make_grpo_loss
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.params import is_float32
from deepseek_jax.parallel.shard import batch_parts
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.training.state import Create, in_memory
from deepseek_jax.training.update import Reference, Update, UpdateOptions, create_update
from deepseek_jax.training.watch import Limit
from deepseek_jax.trees import PyTree

# The largest mean of |old_logprobs - sampler_logprobs|, in nats, that rounding explains. Runs in
# float32 have 4e-7, with products that are exact on every machine. In bfloat16 rounding often sends
# a token to other experts with nearly equal scores: tests/benchmarks/README.md has the gap by
# depth, with keep_routing and without
LARGEST_MEAN_GAP = {"float32": 1e-4, "bfloat16": 0.05}
# The largest share of tokens with a gap above losses.grpo.LARGE_GAP. In float32 few tokens go to
# other experts: one in 2,000 is within the limit
LARGEST_SHARE = 1e-3


def sampler_limits(config: Network) -> dict[str, Limit]:
    """Return the limits of an update's metrics of its samples.

    The log-probabilities of trainer and sampler differ only by rounding, unless the two disagree
    about weights, positions, masks or the temperature. Then the ratios are wrong, and nothing else
    would show it.
    """
    gap_message = (
        "the sampler's log-probabilities are off the trainer's by more nats than rounding explains"
    )
    limits = {
        "stale_params": Limit(
            0.0, "other parameters sampled than those that learn from the samples"
        ),
        "sampler_gap_mean": Limit(LARGEST_MEAN_GAP[config.dtype], f"on average {gap_message}"),
    }
    if config.dtype != "float32":
        return limits
    # A mean may hide an error in few tokens, such as those at one position
    if config.num_moe_layers:
        return limits | {
            "sampler_gap_share": Limit(LARGEST_SHARE, f"at too many tokens {gap_message}")
        }
    return limits | {"sampler_gap_max": Limit(LARGE_GAP, f"at one token {gap_message}")}


def jitted_update(
    settings: ReinforceSettings, config: Network, params: PyTree, mesh: Mesh
) -> tuple[Create, Update]:
    """Build (create, update), as training.update.create_update does.

    create(params), jitted, donates params and returns the TrainState without a reference. update is
    an Update. With settings.reference_every it replaces the state's reference by the policy.

    Args:
        params: arrays, or ShapeDtypeStructs with shardings.
    """
    reference = None
    if settings.reference_every is not None:
        update_interval = settings.reference_every * settings.minibatches * settings.epochs
        shardings = reference_places(settings, params)
        reference = Reference(update_interval, functools.partial(as_reference, settings), shardings)
    # One divisor at all steps, even if the limit rises: dr_grpo's divisor is a constant
    # (arXiv:2503.20783)
    longest_completion = settings.rollout.longest()
    loss_fn = make_grpo_loss(config, settings.loss, max_completion_length=longest_completion)
    return create_update(settings, loss_fn, params, mesh, beside=UpdateOptions(reference=reference))


def reference_places(settings: ReinforceSettings, params: PyTree) -> PyTree:
    """Return the shardings of a reference with these params.

    Args:
        params: arrays, or ShapeDtypeStructs with shardings.
    """
    return jax.tree.map(lambda leaf: in_memory(leaf.sharding, settings.reference_memory), params)


def as_reference(settings: ReinforceSettings, params: PyTree) -> PyTree:
    """Copy params as a reference to compare with, in settings.reference_memory.

    The copy is in settings.reference_dtype, except for parameters of models.params.is_float32.
    """

    def store(path, leaf):
        keeps_dtype = is_float32(jax.tree_util.keystr(path, simple=True, separator="/"))
        # Copied, because the next update donates the state, and no buffer can be donated twice
        return jnp.array(leaf, leaf.dtype if keeps_dtype else settings.reference_dtype, copy=True)

    reference = jax.tree.map_with_path(store, params)
    return jax.device_put(reference, reference_places(settings, params))


def jitted_score(config: Network) -> Callable[[PyTree, dict], jax.Array]:
    """Build a jitted (params, batch) -> logprobs float32[b t] of the completions.

    It scores them for the old policy and for the reference.
    """

    def score(params, batch):
        return completion_logprobs(config, params, batch, temperature=batch["temperature"])[0]

    return jax.jit(score)


def check_routing(settings: ReinforceSettings, config: Network, mesh: Mesh):
    """Raise ValueError if keep_routing has no experts to keep, or the update could not use them."""
    if settings.keep_routing and not config.num_moe_layers:
        raise ValueError(
            f"keep_routing=True, but this model of {config.model_type} has no routed experts; set it to False"
        )
    if settings.keep_routing and mesh.shape["pipeline"] > 1:
        raise ValueError(
            f"keep_routing=True does not go with mesh.pipeline={mesh.shape['pipeline']}, whose stages take "
            "no experts from a rollout; set keep_routing to False, or mesh.pipeline to 1"
        )


def check_v4(settings: ReinforceSettings):
    """Raise ValueError, naming the field, for what an update or a rollout of DeepSeek-V4 lacks."""
    if settings.share_prompts:
        raise ValueError(
            "share_prompts=True joins completions in one row, and the compressed entries of DeepSeek-V4 "
            "are of whole documents; set it to False"
        )
    if settings.keep_routing:
        raise ValueError(
            "keep_routing=True: the layers of DeepSeek-V4 take no recorded experts; set it to False"
        )
    if settings.most_turns():
        raise ValueError(
            "tools and environment: DeepSeek-V4 does not converse here; leave them out"
        )


def check_rows(settings: ReinforceSettings, mesh: Mesh):
    """Raise ValueError unless the rows of every micro-batch split over the mesh."""
    num_shards, rows = batch_parts(mesh), settings.rows()
    if rows % (settings.micro_batches * num_shards) == 0:
        return
    rows_per_prompt = rows * settings.minibatches // settings.prompts_per_step
    num_micro_batches = settings.minibatches * settings.micro_batches
    multiple = (
        num_micro_batches * num_shards // math.gcd(num_micro_batches * num_shards, rows_per_prompt)
    )
    raise ValueError(
        f"prompts_per_step={settings.prompts_per_step} in {num_micro_batches} micro-batches does not split "
        f"over the {num_shards} parts of the mesh (slices x data x fsdp x expert); set it to a multiple of "
        f"{multiple}"
    )
