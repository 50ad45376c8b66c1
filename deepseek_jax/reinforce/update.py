"""Reinforcement of a policy by GRPO (arXiv:2402.03300): what recipes call, whatever policy they start from.

questions with their prompts -> groups of completions, rewards and advantages -> updates -> params.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from deepseek_jax.data.chat import render_prompt
from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import grpo_loss
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import batch_parts
from deepseek_jax.reinforce.groups import GroupSource
from deepseek_jax.training.phase import jitted_step, run_phase, state_maker
from deepseek_jax.training.step import make_train_step

# |old - sampler| log-probability, in nats, that rounding explains: the mean over tokens, and any one of them.
# Runs in float32 show 4e-7 and 3e-5. In bfloat16 a token whose experts are nearly equal may go to others, and
# be off by nats.
LARGEST_GAP = {
    "float32": {"mean": 1e-4, "max": 1e-2},
    "bfloat16": {"mean": 0.05, "max": math.inf},
}


def reinforce(
    settings,
    policy,
    tokenizer,
    params,
    questions,
    rewards,
    mesh,
    folder,
    *,
    phase,
    writer,
    should_stop,
):
    """Train params: -> params. Resumes from folder; those given are used up, unless they stay the reference.

    settings: ReinforceSettings. policy: ModelConfig. questions: a stream as data.tasks.QuestionStream, of
    examples that carry their prompt_ids. rewards: rewards.Rewards, or what scores like it.
    """
    tx = settings.make_optimizer()
    create, placed = state_maker(params, tx, mesh)
    frozen = saved = None
    if settings.loss.kl_coef and settings.reference_every is None:
        frozen, params = params, jax.tree.map(jnp.copy, params)
    elif settings.loss.kl_coef:
        saved, placed = jax.tree.map(jnp.copy, params), placed.replace(reference=placed.params)
    step = make_train_step(_loss_fn(settings, policy), tx, micro_batches=settings.micro_batches)
    step = _checking_first(jitted_step(step, placed), LARGEST_GAP[policy.dtype])
    if saved is not None:
        step = _refreshing(step, settings.reference_every * settings.minibatches * settings.epochs)
    source = GroupSource(policy, tokenizer, questions, rewards, settings, mesh, frozen)
    return run_phase(
        settings,
        create(params).replace(reference=saved),
        step,
        source,
        folder,
        phase=phase,
        seed=settings.seed,
        writer=writer,
        should_stop=should_stop,
    )


def _loss_fn(settings, policy):
    def loss_fn(params, batch, rng):
        logprobs, entropy, routing = completion_logprobs(
            policy, params, batch, temperature=batch["temperature"]
        )
        loss, metrics = grpo_loss(
            logprobs,
            entropy,
            batch,
            max_completion_length=settings.rollout.longest(),
            **dataclasses.asdict(settings.loss),
        )
        if routing is not None:
            metrics["expert_load"] = {"moe_layers": routing.load}
        return loss, metrics

    return loss_fn


def _refreshing(train_step, every):
    """train_step, where the policy becomes the state's reference after each `every` updates."""
    done = None

    def step(state, batch, rng):
        nonlocal done
        done = int(state.step) if done is None else done  # read once: reading waits for the device
        state, metrics = train_step(state, batch, rng)
        done += 1
        if done % every == 0:
            state = state.replace(reference=jax.tree.map(jnp.copy, state.params))
        return state, metrics

    return step


def _checking_first(train_step, allowed):
    """train_step, which at its first call compares the sampler's log-probabilities with its own.

    They differ by rounding alone, unless sampler and trainer disagree about weights, positions, masks or
    the temperature: then ratios are wrong, and nothing else would tell. Where few tokens are, as at one
    position, the mean may hide it. allowed: of LARGEST_GAP.
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


def check_rows(settings, mesh):
    """Raise ValueError unless every micro-batch splits over the mesh in whole groups.

    settings: ReinforceSettings.
    """
    parts = batch_parts(mesh)
    cuts = settings.minibatches * settings.micro_batches
    if settings.prompts_per_step % (cuts * parts):
        raise ValueError(
            f"prompts_per_step={settings.prompts_per_step} in {cuts} micro-batches does not split over the "
            f"{parts} parts of the mesh (slices x data x fsdp x expert); set it to a multiple of "
            f"{cuts * parts}"
        )


def check_length(completion, policy, examples):
    """Raise ValueError unless the model knows the positions that prompts and completions take.

    completion: the most tokens of one, max_completion_length. examples: with their prompt_ids.
    """
    longest = max(len(example["prompt_ids"]) for example in examples)
    limit = policy.max_position_embeddings
    if longest + completion > limit:
        raise ValueError(
            f"max_completion_length={completion} after the longest prompt's {longest} tokens is beyond the "
            f"model's max_position_embeddings={limit}; lower it to {limit - longest} or less, or "
            "max_prompt_length"
        )


def with_prompts(examples, tokenizer, template):
    """The examples with their prompt_ids. template: as of data.chat.render_prompt."""
    return [
        example | {"prompt_ids": render_prompt(tokenizer, example["question"], template=template)}
        for example in examples
    ]


def fitting(examples, rollout, kind):
    """The examples, which carry their prompt_ids, without those whose prompt is too long, which are counted.

    rollout: has max_prompt_length. kind: of examples, for messages. Raises ValueError where none is left.
    """
    limit = rollout.max_prompt_length
    kept = [example for example in examples if len(example["prompt_ids"]) <= limit]
    if not kept:
        shortest = min(len(example["prompt_ids"]) for example in examples)
        raise ValueError(
            f"max_prompt_length={limit} is below all {len(examples)} {kind} prompts; the shortest has "
            f"{shortest} tokens"
        )
    if len(kept) < len(examples):
        left_out = len(examples) - len(kept)
        say(
            f"{left_out} of {len(examples)} {kind} prompts are longer than {limit} tokens: left out"
        )
    return kept
