"""The update of GRPO, the reference that may follow the policy, and limits of what is logged."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import LARGE_GAP, make_grpo_loss
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel.shard import batch_parts
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.training.state import in_memory
from deepseek_jax.training.update import Beside, Reference, create_update
from deepseek_jax.training.watch import Limit

# Means of |old - sampler|, in nats, that rounding explains. Runs in float32 have 4e-7, of products that are
# exact on every machine; in bfloat16 rounding often sends a token to other experts, whose scores are nearly
# equal: tests/benchmarks/README.md has the gap by depth, with keep_routing and without
LARGEST_MEAN_GAP = {"float32": 1e-4, "bfloat16": 0.05}
# The share of tokens whose gap exceeds losses.grpo.LARGE_GAP. In float32 few tokens go to other experts: one
# of 2,000 is within the limit
LARGEST_SHARE = 1e-3


def sampler_limits(config: ModelConfig):
    """Limits of what an update reports of its samples: metric -> training.watch.Limit.

    The log-probabilities of trainer and sampler differ by rounding alone, unless the two disagree about
    weights, positions, masks or the temperature. Then the ratios are wrong, and nothing else would show it.
    """
    apart = (
        "the sampler's log-probabilities are off the trainer's by more nats than rounding explains"
    )
    limits = {
        "stale_params": Limit(
            0.0, "other parameters sampled than those that learn from the samples"
        ),
        "sampler_gap_mean": Limit(LARGEST_MEAN_GAP[config.dtype], f"on average {apart}"),
    }
    if config.dtype != "float32":
        return limits
    # A mean may hide an error in few tokens, such as those at one position
    if config.num_moe_layers:
        return limits | {"sampler_gap_share": Limit(LARGEST_SHARE, f"at too many tokens {apart}")}
    return limits | {"sampler_gap_max": Limit(LARGE_GAP, f"at one token {apart}")}


def jitted_update(settings: ReinforceSettings, config: ModelConfig, params, mesh: Mesh):
    """(create, update): create(params), jitted, donates them and returns the TrainState without a reference.
    update is an Update. With settings.reference_every its state has a reference, which the policy replaces.

    params: arrays, or ShapeDtypeStructs with shardings.
    """
    reference = None
    if settings.reference_every is not None:
        every = settings.reference_every * settings.minibatches * settings.epochs
        places = reference_places(settings, params)
        reference = Reference(every, functools.partial(as_reference, settings), places)
    # One divisor at all steps, even if the limit rises: that of dr_grpo is a constant (arXiv:2503.20783)
    longest = settings.rollout.longest()
    loss_fn = make_grpo_loss(config, settings.loss, max_completion_length=longest)
    return create_update(settings, loss_fn, params, mesh, beside=Beside(reference=reference))


def reference_places(settings: ReinforceSettings, params):
    """The shardings of a reference of these params: arrays, or ShapeDtypeStructs with shardings."""
    return jax.tree.map(lambda leaf: in_memory(leaf.sharding, settings.reference_memory), params)


def as_reference(settings: ReinforceSettings, params):
    """A copy of params to compare with: in settings.reference_dtype, but for the biases that balance routers,
    and in settings.reference_memory.
    """

    def store(path, leaf):
        own = path[-1].key == "router_bias"
        # Copied, because the next update donates the state, and no buffer can be donated twice
        return jnp.array(leaf, leaf.dtype if own else settings.reference_dtype, copy=True)

    copied = jax.tree.map_with_path(store, params)
    return jax.device_put(copied, reference_places(settings, params))


def jitted_score(config: ModelConfig):
    """Jitted (params, batch) -> logprobs float32[b t] of the completions, for old and reference policies."""

    def score(params, batch):
        return completion_logprobs(config, params, batch, temperature=batch["temperature"])[0]

    return jax.jit(score)


def check_routing(settings: ReinforceSettings, config: ModelConfig, mesh: Mesh):
    """Raise ValueError where there are no experts to keep, or the update could not use them."""
    if settings.keep_routing and not config.num_moe_layers:
        raise ValueError(
            f"keep_routing=True, but this model of {config.model_type} has no routed experts; set it to False"
        )
    if settings.keep_routing and mesh.shape["pipeline"] > 1:
        raise ValueError(
            f"keep_routing=True does not go with mesh.pipeline={mesh.shape['pipeline']}, whose stages take "
            "no experts from a rollout; set keep_routing to False, or mesh.pipeline to 1"
        )


def check_rows(settings: ReinforceSettings, mesh: Mesh):
    """Raise ValueError unless the rows of every micro-batch split over the mesh."""
    parts, rows = batch_parts(mesh), settings.rows()
    if rows % (settings.micro_batches * parts) == 0:
        return
    per_prompt = rows * settings.minibatches // settings.prompts_per_step
    cuts = settings.minibatches * settings.micro_batches
    multiple = cuts * parts // math.gcd(cuts * parts, per_prompt)
    raise ValueError(
        f"prompts_per_step={settings.prompts_per_step} in {cuts} micro-batches does not split over the "
        f"{parts} parts of the mesh (slices x data x fsdp x expert); set it to a multiple of {multiple}"
    )
