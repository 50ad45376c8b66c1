"""Group Relative Policy Optimisation (arXiv:2402.03300), from a base model or a checkpoint, told in order.

base -> measure on held-out questions -> sample groups, reward, update -> measure again -> report.
"""

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
from rich.console import Console

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.data.arithmetic import PROMPT_TEMPLATE
from deepseek_jax.data.chat import render_prompt
from deepseek_jax.data.tasks import (
    QuestionStream,
    arithmetic_task,
    gsm8k_task,
    word_arithmetic_task,
)
from deepseek_jax.data.tokenizer import arithmetic_tokenizer
from deepseek_jax.evaluation.held_out import evaluate
from deepseek_jax.evaluation.report import before_after_table, plot_curves, sample_panel
from deepseek_jax.losses.completions import completion_logprobs
from deepseek_jax.losses.grpo import NORMALIZES_STD, grpo_loss
from deepseek_jax.recipes.blocks import OptimizerSettings, build_model, load_pretrained
from deepseek_jax.recipes.groups import GroupSource
from deepseek_jax.recipes.pretrain import PretrainSettings, train_base
from deepseek_jax.recipes.settings import build
from deepseek_jax.rewards import Rewards
from deepseek_jax.training.loop import run as run_loop
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.step import make_train_step

PHASE = "grpo"
TASKS = {"arithmetic": arithmetic_task, "word_arithmetic": word_arithmetic_task}
LARGEST_GAP = {
    "float32": 1e-4,
    "bfloat16": 0.05,
}  # mean |old - sampler| log-prob that rounding explains


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The questions: task names a small world's; path, a jsonl file in GSM8K's format, takes its place.

    template: "chat", "r1_zero" or a text with {question} in it; see data.chat.
    """

    task: str = "arithmetic"
    path: str | None = None
    template: str = PROMPT_TEMPLATE
    num_held_out: int = 256


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Sampling. Questions whose prompt is longer than max_prompt_length are left out, and counted."""

    max_prompt_length: int
    max_completion_length: int
    temperature: float = 1.0
    slots: int = 32


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """See losses.grpo.grpo_loss. kl_coef 0 holds no reference."""

    loss_type: str = "grpo"
    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    kl_coef: float = 0.0
    importance_cap: float | None = None


@dataclasses.dataclass(frozen=True)
class GrpoSettings:
    """A whole config of this recipe. accuracy: the reward that says whether an answer is right."""

    recipe: str
    seed: int
    num_steps: int
    prompts_per_step: int
    group_size: int
    accuracy: str
    rewards: dict
    data: DataSettings
    rollout: RolloutSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    model: dict = dataclasses.field(default_factory=dict)
    mesh: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    base: PretrainSettings | None = None
    minibatches: int = 1
    epochs: int = 1
    micro_batches: int = 1
    max_sampling_rounds: int = 1
    save_every: int = 20
    log_every: int = 1

    def __post_init__(self):
        if self.accuracy not in self.rewards:
            raise ValueError(
                f"config.accuracy={self.accuracy!r} is none of config.rewards: {list(self.rewards)}"
            )
        if self.group_size < 2:
            raise ValueError(
                f"config.group_size={self.group_size}: a group compares at least 2 completions"
            )
        cuts = self.minibatches * self.micro_batches
        if self.prompts_per_step % cuts:
            raise ValueError(
                f"config.prompts_per_step={self.prompts_per_step} does not split into "
                f"minibatches={self.minibatches} x micro_batches={self.micro_batches} whole groups; "
                f"set it to a multiple of {cuts}"
            )
        if not self.rollout.temperature > 0:
            raise ValueError(
                f"config.rollout.temperature={self.rollout.temperature}: training samples, above 0"
            )
        if self.loss.loss_type not in NORMALIZES_STD:
            raise ValueError(
                f"config.loss.loss_type={self.loss.loss_type!r} is none of {list(NORMALIZES_STD)}"
            )
        if (self.init_from is None) == (self.base is None):
            raise ValueError(
                "set either config.init_from, a checkpoint, or config.base, how to pre-train one"
            )


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of GrpoSettings' fields."""
    settings = build(GrpoSettings, config, "config")
    writer = MetricsWriter(workdir)
    with Rewards(settings.rewards) as rewards:
        task = _task(settings)
        policy, params, tokenizer = _starting_policy(settings, mesh, workdir, writer, should_stop)
        train = _with_prompts(task.train, tokenizer, settings, "training")
        held_out = _with_prompts(task.held_out, tokenizer, settings, "held-out")
        measure = functools.partial(_measure, settings, policy, tokenizer, held_out, rewards)
        before = _remembered(workdir / "before.json", lambda: measure(params))
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
        after = _remembered(workdir / "after.json", lambda: measure(params))
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


def _starting_policy(settings, mesh, workdir, writer, should_stop):
    """(ModelConfig, params, Tokenizer): read from init_from, or pre-trained here."""
    if settings.init_from is not None:
        return load_pretrained(settings.init_from, settings.model, mesh)
    tokenizer = arithmetic_tokenizer()
    policy = build_model(settings.model)
    if tokenizer.vocab_size > policy.vocab_size:
        raise ValueError(
            f"config.model.vocab_size={policy.vocab_size} is below the tokenizer's {tokenizer.vocab_size}"
        )
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
    return policy, params, tokenizer


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
        print(
            f"{left_out} of {len(rendered)} {kind} prompts are longer than {limit} tokens: left out",
            flush=True,
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


def _remembered(path, measure):
    """What was measured before, from its file, else measured now and written to it."""
    if not path.exists():
        measured = measure()
        if jax.process_index() == 0:
            fresh = path.with_suffix(".tmp")
            fresh.write_text(json.dumps(measured, indent=1))
            os.replace(fresh, path)
        return measured
    return json.loads(path.read_text())


def _reinforce(settings, policy, params, source, mesh, workdir, writer, should_stop):
    """The reinforcement learning itself: -> params. Resumes from workdir/grpo."""

    def loss_fn(params, batch, rng):
        logprobs, entropy, load_le = completion_logprobs(
            policy, params, batch, temperature=settings.rollout.temperature
        )
        loss, metrics = grpo_loss(
            logprobs,
            entropy,
            batch,
            max_completion_length=settings.rollout.max_completion_length,
            **dataclasses.asdict(settings.loss),
        )
        return loss, metrics if load_le is None else metrics | {"expert_load": load_le}

    tx = settings.optimizer.make(settings.num_steps * settings.minibatches * settings.epochs)
    placed = state_shardings(mesh, jax.tree.map(lambda leaf: leaf.sharding, params), params, tx)
    create = jax.jit(functools.partial(TrainState.create, tx=tx), out_shardings=placed)
    train_step = make_train_step(loss_fn, tx, micro_batches=settings.micro_batches)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None))
    reference = params if settings.loss.kl_coef else None
    with Store(workdir / PHASE) as store:
        state = run_loop(
            create(jax.tree.map(jnp.copy, params) if settings.loss.kl_coef else params),
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
            print(
                f"|old - sampler| log-prob gap: mean {mean:.1e}, max {largest:.1e} nats", flush=True
            )
            if not mean <= allowed:
                raise ValueError(
                    f"the sampler's log-probabilities are off the trainer's by {mean:.1e} nats on average, "
                    f"where rounding explains {allowed}; nothing of this step was saved"
                )
        return state, metrics

    return step


def _report(workdir, before, after):
    """Print the table and samples, draw the curves. Process 0 alone."""
    if jax.process_index() != 0:
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
                    "before_reward": old["reward"],
                    "after": new["completion"],
                    "after_reward": new["reward"],
                }
                for old, new in pairs
            ]
        )
    )
    console.print(f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}")
