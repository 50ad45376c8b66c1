"""Supervised fine-tuning on conversations (arXiv:2501.12948, appendix B.4.2), told in order.

base -> loss and answers on held-out conversations -> fine-tune -> measure again -> report.
"""

import functools

import jax

from deepseek_jax.checkpoint.store import Store
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.evaluation.report import loss_table, plot_curves
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.parallel.shard import batch_share, check_batch
from deepseek_jax.recipes.answers import answer, make_console, print_samples, print_table
from deepseek_jax.recipes.blocks import build_model, load_pretrained
from deepseek_jax.recipes.corpus import PackedDocuments, base_tokenizer
from deepseek_jax.recipes.model_rewards import load_model_rewards
from deepseek_jax.recipes.pretrain import train_base
from deepseek_jax.recipes.remembered import remembered
from deepseek_jax.recipes.settings import build
from deepseek_jax.recipes.sft_data import (
    check_conversations,
    held_out_prompts,
    load_conversations,
    packed,
)
from deepseek_jax.recipes.sft_settings import SftSettings
from deepseek_jax.rewards import Rewards
from deepseek_jax.training.loop import run as run_loop
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.state import TrainState, state_shardings
from deepseek_jax.training.step import make_train_step

PHASE = "sft"
CURVES = ("loss", "held_out_loss", "grad_norm")


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of SftSettings' fields."""
    settings = build(SftSettings, config, "config")
    _check_rows(settings, mesh)
    running = dict(writer=MetricsWriter(workdir), should_stop=should_stop)
    models = load_model_rewards(settings.reward_models, mesh)
    with Rewards(settings.rewards, models=models) as rewards:
        policy, params, tokenizer = _starting_policy(settings, mesh)
        train, held_out = load_conversations(settings, workdir / "data")
        _, shares = batch_share(mesh)
        check_conversations(settings, policy, tokenizer, train, "training", shares)
        check_conversations(settings, policy, tokenizer, held_out, "held-out", 1)
        prompts, examples, end_id = held_out_prompts(settings, policy, tokenizer, held_out)
        rewards.check(examples)
        if params is None:
            base, seed = settings.base, settings.seed
            params = train_base(policy, base, tokenizer, mesh, workdir, seed=seed, **running)
        batches = packed(settings, tokenizer, held_out, num_epochs=1)
        loss_of = ConversationLoss(policy, list(batches), mesh)
        measure = functools.partial(
            _measure, settings, policy, tokenizer, prompts, examples, end_id, rewards, loss_of
        )
        before = remembered(workdir / "before.json", lambda: measure(params))
        source = packed_conversations(settings, tokenizer, train, loss_of, mesh)
        params = fine_tune(settings, policy, params, source, mesh, workdir / PHASE, **running)
        after = remembered(workdir / "after.json", lambda: measure(params))
    running["writer"].close()
    _report(workdir, settings.sequence_length, before, after)


def packed_conversations(settings, tokenizer, conversations, loss_of, mesh):
    """The loop's source of batches, this process's share of them: -> PackedDocuments.

    loss_of: ConversationLoss, asked before every eval_every-th step. The metric tokens is the sum of the
    weights of the tokens learned.
    """
    share, shares = batch_share(mesh)
    return PackedDocuments(
        packed(settings, tokenizer, conversations, process_index=share, process_count=shares),
        mesh,
        batch_sizes=((0, settings.batch_size),),
        quantum=settings.batch_size,
        scalars={},
        evaluate=lambda params: {"held_out_loss": loss_of(params)["loss"][0]},
        eval_every=settings.eval_every,
    )


def fine_tune(settings, policy, params, source, mesh, folder, *, writer, should_stop, phase=PHASE):
    """The training itself: -> params. Resumes from folder; the params given are used up.

    settings: SftSettings. policy: ModelConfig. source: packed_conversations'. What no gradient moves stays as
    it is: router biases, and multi-token prediction modules, whose loss is not taken.
    """
    tx = settings.make_optimizer()
    placed = state_shardings(mesh, jax.tree.map(lambda leaf: leaf.sharding, params), params, tx)
    create = functools.partial(TrainState.create, tx=tx)
    create = jax.jit(create, out_shardings=placed, donate_argnums=0)  # the weights are held once
    train_step = make_train_step(
        lambda params, batch, rng: next_token_loss(policy, params, batch),
        tx,
        micro_batches=settings.micro_batches,
    )
    with Store(folder) as store:
        state = run_loop(
            create(params),
            jax.jit(train_step, donate_argnums=0, out_shardings=(placed, None)),
            source,
            num_steps=settings.num_steps,
            store=store,
            writer=writer,
            phase=phase,
            save_every=settings.save_every,
            log_every=settings.log_every,
            rng=jax.random.key(settings.seed),
            should_stop=should_stop,
        )
    return state.params


def _check_rows(settings, mesh):
    try:
        check_batch(
            mesh,
            settings.batch_size,
            settings.sequence_length,
            micro_batches=settings.micro_batches,
            pipeline_micro_batches=settings.model.get("pipeline_micro_batches"),
        )
    except ValueError as error:
        sizes = f"batch_size={settings.batch_size}, sequence_length={settings.sequence_length}"
        raise ValueError(f"config: {sizes}: {error}") from error


def _starting_policy(settings, mesh):
    """(ModelConfig, params, Tokenizer): read from init_from; params None where they are to be pre-trained."""
    if settings.init_from is not None:
        policy, params, tokenizer = load_pretrained(settings.init_from, settings.model, mesh)
    else:
        policy, params, tokenizer = build_model(settings.model), None, base_tokenizer(settings.base)
        settings.base.check("config.base", policy, mesh)
    if tokenizer.vocab_size > policy.vocab_size and params is None:
        raise ValueError(
            f"config.model.vocab_size={policy.vocab_size} is below the tokenizer's {tokenizer.vocab_size}"
        )
    if settings.sequence_length > policy.max_position_embeddings:
        raise ValueError(
            f"config.sequence_length={settings.sequence_length} is beyond the model's "
            f"max_position_embeddings={policy.max_position_embeddings}; lower it"
        )
    return policy, params, tokenizer


def _measure(settings, policy, tokenizer, prompts, examples, end_id, rewards, loss_of, params):
    """The held-out conversations' loss, and the scores of answers to their last questions."""
    return {
        "loss": loss_of(params),
        "answers": answer(
            policy,
            params,
            tokenizer,
            prompts,
            examples,
            rewards,
            accuracy=settings.accuracy,
            temperature=settings.answers.temperature,
            max_completion_length=settings.answers.max_completion_length,
            eos_ids=(tokenizer.eos_id, end_id, *policy.eos_ids),
            seed=settings.seed,
            slots=settings.answers.slots,
        ),
    }


def _report(workdir, sequence_length, before, after):
    """Print the tables and samples. Process 0 alone."""
    console = make_console()
    if first_process():
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE, names=CURVES)
    losses = [measured["loss"]["loss"] for measured in (before, after)]
    console.print(loss_table({PHASE: (sequence_length, *losses)}))
    tokens, conversations = after["loss"]["tokens"], after["loss"]["conversations"]
    console.print(f"over {tokens} tokens of {conversations} held-out conversations")
    print_table(console, before["answers"], after["answers"])
    print_samples(console, before["answers"]["sampled"], after["answers"]["sampled"])
    console.print(f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}")
