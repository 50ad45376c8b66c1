"""Group Relative Policy Optimisation (arXiv:2402.03300), from a base model or a checkpoint, told in order.

base -> measure on held-out questions -> sample groups, reward, update -> measure again -> report.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.tasks import QuestionStream, gsm8k_task
from deepseek_jax.data.tokenizer import arithmetic_tokenizer
from deepseek_jax.evaluation.held_out import evaluate
from deepseek_jax.evaluation.report import before_after_table, plot_curves, sample_panel
from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import grpo_loss
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.parallel.shard import batch_parts
from deepseek_jax.recipes.blocks import build_model, load_pretrained
from deepseek_jax.recipes.groups import GroupSource
from deepseek_jax.recipes.grpo_settings import TASKS, GrpoSettings
from deepseek_jax.recipes.pretrain import train_base
from deepseek_jax.recipes.remembered import remembered
from deepseek_jax.recipes.settings import build
from deepseek_jax.rewards import Rewards
from deepseek_jax.training.loop import run as run_loop
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.step import make_train_step

PHASE = "grpo"
# Mean |old - sampler| log-probability, in nats, that rounding explains.
LARGEST_GAP = {"float32": 1e-4, "bfloat16": 0.05}


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of GrpoSettings' fields."""
    settings = build(GrpoSettings, config, "config")
    _check_rows(settings, mesh)
    writer = MetricsWriter(workdir)
    with Rewards(settings.rewards) as rewards:
        task = _task(settings)
        rewards.check([*task.train, *task.held_out])
        policy, params, tokenizer = _starting_policy(settings, mesh)
        train = _with_prompts(task.train, tokenizer, settings, "training")
        held_out = _with_prompts(task.held_out, tokenizer, settings, "held-out")
        _check_length(settings, policy, train + held_out)
        if params is None:
            params = train_base(
                policy,
                settings.base,
                tokenizer,
                mesh,
                workdir,
                seed=settings.seed,
                writer=writer,
                should_stop=should_stop,
            )
        measure = functools.partial(_measure, settings, policy, tokenizer, held_out, rewards)
        before = remembered(workdir / "before.json", lambda: measure(params))
        source = functools.partial(
            GroupSource,
            policy,
            tokenizer,
            QuestionStream(train, settings.seed),
            rewards,
            settings,
            mesh,
        )
        params = _reinforce(settings, policy, params, source, mesh, workdir, writer, should_stop)
        after = remembered(workdir / "after.json", lambda: measure(params))
    writer.close()
    _report(workdir, before, after)


def _task(settings):
    data = settings.data
    if data.path is not None:
        return gsm8k_task(data.path, data.num_held_out, seed=settings.seed)
    if data.task not in TASKS:
        raise ValueError(
            f"config.data.task={data.task!r} is none of {list(TASKS)}; or set config.data.path"
        )
    return TASKS[data.task](settings.seed, data.num_held_out)


def _check_rows(settings, mesh):
    """Every micro-batch must split over the mesh in whole groups."""
    parts = batch_parts(mesh)
    cuts = settings.minibatches * settings.micro_batches
    if settings.prompts_per_step % (cuts * parts):
        raise ValueError(
            f"config.prompts_per_step={settings.prompts_per_step} in {cuts} micro-batches does not split "
            f"over the {parts} parts of config.mesh (slices x data x fsdp x expert); "
            f"set config.prompts_per_step to a multiple of {cuts * parts}"
        )


def _check_length(settings, policy, examples):
    """The positions that prompts and completions take must be some that the model knows."""
    longest = max(len(example["prompt_ids"]) for example in examples)
    completion, limit = settings.rollout.max_completion_length, policy.max_position_embeddings
    if longest + completion > limit:
        raise ValueError(
            f"config.rollout.max_completion_length={completion} behind the longest prompt's {longest} "
            f"tokens is beyond the model's max_position_embeddings={limit}; "
            f"lower it to {limit - longest} or less, or "
            "config.rollout.max_prompt_length"
        )


def _starting_policy(settings, mesh):
    """(ModelConfig, params, Tokenizer): read from init_from; params None where they are to be pre-trained."""
    if settings.init_from is not None:
        return load_pretrained(settings.init_from, settings.model, mesh)
    tokenizer = arithmetic_tokenizer()
    policy = build_model(settings.model)
    if tokenizer.vocab_size > policy.vocab_size:
        raise ValueError(
            f"config.model.vocab_size={policy.vocab_size} is below the tokenizer's {tokenizer.vocab_size}"
        )
    settings.base.check("config.base", policy, mesh)
    return policy, None, tokenizer


def _with_prompts(examples, tokenizer, settings, kind):
    """The examples with their prompt_ids, without those whose prompt is too long, which are counted."""
    limit = settings.rollout.max_prompt_length
    rendered = [
        example
        | {
            "prompt_ids": render_prompt(
                tokenizer, example["question"], template=settings.data.template
            )
        }
        for example in examples
    ]
    kept = [example for example in rendered if len(example["prompt_ids"]) <= limit]
    if not kept:
        shortest = min(len(example["prompt_ids"]) for example in rendered)
        raise ValueError(
            f"all {len(rendered)} {kind} prompts are longer than config.rollout.max_prompt_length={limit}; "
            f"the shortest has {shortest} tokens"
        )
    if len(kept) < len(rendered):
        left_out = len(rendered) - len(kept)
        say(
            f"{left_out} of {len(rendered)} {kind} prompts are longer than {limit} tokens: left out"
        )
    return kept


def _measure(settings, policy, tokenizer, held_out, rewards, params):
    """Answer the held-out questions, sampled as in training and greedily."""
    return {
        name: evaluate(
            policy,
            params,
            tokenizer,
            [example["prompt_ids"] for example in held_out],
            held_out,
            rewards,
            accuracy=settings.accuracy,
            max_completion_length=settings.rollout.max_completion_length,
            temperature=temperature,
            eos_ids=(tokenizer.eos_id, *policy.eos_ids),
            seed=settings.seed,
            slots=settings.rollout.slots,
        )
        for name, temperature in (("sampled", settings.rollout.temperature), ("greedy", 0.0))
    }


def _reinforce(settings, policy, params, source, mesh, workdir, writer, should_stop):
    """The reinforcement learning itself: -> params. Resumes from workdir/grpo.

    The params given are used up, unless kl_coef keeps them as the reference.
    """

    def loss_fn(params, batch, rng):
        logprobs, entropy, routing = completion_logprobs(
            policy, params, batch, temperature=settings.rollout.temperature
        )
        loss, metrics = grpo_loss(
            logprobs,
            entropy,
            batch,
            max_completion_length=settings.rollout.max_completion_length,
            **dataclasses.asdict(settings.loss),
        )
        if routing is not None:
            metrics["expert_load"] = {"moe_layers": routing.load}
        return loss, metrics

    tx = settings.make_optimizer()
    placed = state_shardings(mesh, jax.tree.map(lambda leaf: leaf.sharding, params), params, tx)
    create = functools.partial(TrainState.create, tx=tx)
    create = jax.jit(
        create, out_shardings=placed, donate_argnums=0
    )  # no second copy of the weights
    train_step = make_train_step(loss_fn, tx, micro_batches=settings.micro_batches)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None))
    reference = params if settings.loss.kl_coef else None
    with Store(workdir / PHASE) as store:
        state = run_loop(
            create(params if reference is None else jax.tree.map(jnp.copy, params)),
            _checking_first(train_step, LARGEST_GAP[policy.dtype]),
            source(reference),
            num_steps=settings.num_steps,
            store=store,
            writer=writer,
            phase=PHASE,
            save_every=settings.save_every,
            log_every=settings.log_every,
            rng=jax.random.key(settings.seed),
            should_stop=should_stop,
        )
    return state.params


def _checking_first(train_step, allowed):
    """train_step, which at its first call compares the sampler's log-probabilities with its own.

    They differ by rounding alone, unless sampler and trainer disagree about weights, positions, masks or
    the temperature: then every ratio is wrong, and nothing else would tell.
    """
    checked = False

    def step(state, batch, rng):
        nonlocal checked
        state, metrics = train_step(state, batch, rng)
        if not checked:
            checked = True
            mean, largest = (float(metrics[f"sampler_gap_{name}"]) for name in ("mean", "max"))
            say(f"|old - sampler| log-prob gap: mean {mean:.1e}, max {largest:.1e} nats")
            if not mean <= allowed:
                raise ValueError(
                    f"the sampler's log-probabilities are off the trainer's by {mean:.1e} nats on average, "
                    f"where rounding explains {allowed}; nothing of this step was saved"
                )
        return state, metrics

    return step


def _report(workdir, before, after):
    """Print the table and samples, draw the curves. Process 0 alone."""
    if not first_process():
        return
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE)
    forms = {
        name: ".1f" if name == "completion_length" else ".2f" if name == "reward" else ".1%"
        for name in after["sampled"]["scores"]
    }
    console = Console()
    scores = [{way: measured["scores"] for way, measured in m.items()} for m in (before, after)]
    console.print(before_after_table(forms, *scores))
    pairs = zip(before["sampled"]["samples"], after["sampled"]["samples"], strict=True)
    console.print(
        sample_panel(
            [
                {
                    "prompt": old["prompt"],
                    "before": old["completion"],
                    "before_reward": np.nan if old["reward"] is None else old["reward"],
                    "after": new["completion"],
                    "after_reward": np.nan if new["reward"] is None else new["reward"],
                }
                for old, new in pairs
            ]
        )
    )
    console.print(f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}")
