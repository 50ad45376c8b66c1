"""Reinforcement of a policy by GRPO (arXiv:2402.03300), for every recipe that has a policy.

questions with their prompts -> groups of completions, rewards and advantages -> updates -> params.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import grpo_loss
from deepseek_jax.models import ModelConfig
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import batch_parts
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.reinforce.settings import ReinforceSettings
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import train
from deepseek_jax.training.run import Run
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.step import jitted_step, make_train_step

# The largest |old - sampler| log-probability, in nats, that rounding explains: the mean over tokens, and any
# single token. Runs in float32 have 4e-7 and 3e-5. In bfloat16 rounding may send a token to other experts if
# their scores are nearly equal, and its log-probability is then off by nats.
LARGEST_GAP = {
    "float32": {"mean": 1e-4, "max": 1e-2},
    "bfloat16": {"mean": 0.05, "max": math.inf},
}


def reinforce(settings: ReinforceSettings, policy: Policy, questions, rewards, run: Run):
    """Train policy.params: -> params. Resumes from run.folder. Donates policy.params, unless they stay the
    reference.

    questions: a data.tasks.QuestionStream or a ScenarioStream, of examples with prompt_ids. rewards:
    rewards.Rewards, or an object that scores like it.
    """
    tx, params = settings.make_optimizer(), policy.params
    create, placed = state_maker(params, tx, run.mesh)
    frozen = saved = None
    if settings.loss.kl_coef and settings.reference_every is None:
        frozen, params = params, jax.tree.map(jnp.copy, params)
    elif settings.loss.kl_coef:
        saved, placed = jax.tree.map(jnp.copy, params), placed.replace(reference=placed.params)
    loss_fn = _loss_fn(settings, policy.config)
    step = make_train_step(loss_fn, tx, micro_batches=settings.micro_batches)
    step = _checking_first(jitted_step(step, placed), LARGEST_GAP[policy.config.dtype])
    if saved is not None:
        step = _refreshing(step, settings.reference_every * settings.minibatches * settings.epochs)
    source = GroupSource(policy, questions, rewards, settings, run.mesh, frozen)
    return train(
        settings, create(params).replace(reference=saved), step, source, run, settings.seed
    ).params


def _loss_fn(settings: ReinforceSettings, config: ModelConfig):
    def loss_fn(params, batch, rng):
        logprobs, entropy, routing = completion_logprobs(
            config, params, batch, temperature=batch["temperature"]
        )
        longest = settings.rollout.longest()
        loss, metrics = grpo_loss(
            logprobs, entropy, batch, settings.loss, max_completion_length=longest
        )
        if routing is not None:
            metrics["expert_load"] = {"moe_layers": routing.load}
        return loss, metrics

    return loss_fn


def _refreshing(train_step, every: int):
    """Wrap train_step: after each `every` updates the policy becomes the state's reference."""
    done = None

    def step(state, batch, rng):
        nonlocal done
        # Read state.step once only: reading waits for the device
        done = int(state.step) if done is None else done
        state, metrics = train_step(state, batch, rng)
        done += 1
        if done % every == 0:
            state = state.replace(reference=jax.tree.map(jnp.copy, state.params))
        return state, metrics

    return step


def _checking_first(train_step, allowed: dict[str, float]):
    """Wrap train_step: the first call compares the sampler's log-probabilities with the trainer's.

    They differ by rounding alone, unless sampler and trainer disagree about weights, positions, masks or the
    temperature. Then the ratios are wrong, and nothing else would reveal it. The maximum is checked too: a
    mean may hide an error in few tokens, such as those at one position. allowed: from LARGEST_GAP.
    """
    checked = False

    def step(state, batch, rng):
        nonlocal checked
        state, metrics = train_step(state, batch, rng)
        if not checked:
            checked = True
            found = {name: float(metrics[f"sampler_gap_{name}"]) for name in allowed}
            shown = ", ".join(f"{name} {gap:.1e}" for name, gap in found.items())
            say(f"|old - sampler| log-prob gap: {shown} nats")
            for name, gap in found.items():
                if not gap <= allowed[name]:
                    where = {"mean": "on average", "max": "at one token"}[name]
                    raise ValueError(
                        f"the sampler's log-probabilities are off the trainer's by {gap:.1e} nats {where}, "
                        f"where rounding explains {allowed[name]}; nothing of this step was saved"
                    )
        return state, metrics

    return step


def check_rows(settings: ReinforceSettings, mesh: Mesh):
    """Raise ValueError unless every micro-batch splits over the mesh in whole groups."""
    parts = batch_parts(mesh)
    cuts = settings.minibatches * settings.micro_batches
    if settings.prompts_per_step % (cuts * parts):
        raise ValueError(
            f"prompts_per_step={settings.prompts_per_step} in {cuts} micro-batches does not split over the "
            f"{parts} parts of the mesh (slices x data x fsdp x expert); set it to a multiple of "
            f"{cuts * parts}"
        )
