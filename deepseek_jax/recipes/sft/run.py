"""Supervised fine-tuning on conversations (arXiv:2501.12948, appendix B.4.2), told in order.

base -> loss and answers on held-out conversations -> fine-tune -> measure again -> report.
"""

import functools

from deepseek_jax.checkpoint import is_orbax, save_orbax
from deepseek_jax.data.batches import PackedDocuments
from deepseek_jax.errors import at
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.parallel.shard import batch_share
from deepseek_jax.recipes.pretrain.run import train_base
from deepseek_jax.recipes.sft.data import (
    check_conversations,
    held_out_prompts,
    load_conversations,
    packed,
    rows_of,
)
from deepseek_jax.recipes.sft.settings import SftSettings
from deepseek_jax.recipes.start import (
    check_positions,
    check_rows,
    ending_turns,
    starting_policy,
)
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reports.answers import answer, make_console, print_samples, print_table
from deepseek_jax.reports.tables import loss_table, plot_curves
from deepseek_jax.settings import build
from deepseek_jax.training.metrics import MetricsWriter
from deepseek_jax.training.phase import fit
from deepseek_jax.training.remembered import remembered
from deepseek_jax.worlds.registry import open_rewards

PHASE = "sft"
CURVES = ("loss", "held_out_loss", "grad_norm")


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of SftSettings' fields.

    Leaves the policy in workdir/params, which launch/evaluate.py and launch/convert.py read.
    """
    settings = build(SftSettings, config, "config")
    check_rows(settings, mesh)
    running = dict(writer=MetricsWriter(workdir), should_stop=should_stop)
    with at("config.reward_models"):
        models = load_model_rewards(settings.reward_models, mesh)
    with at("config.rewards"):
        rewards = open_rewards(settings.rewards, models=models)
    with rewards:
        policy, params, tokenizer = starting_policy(settings, mesh)
        with at("config.data"):
            policy = ending_turns(policy, tokenizer, settings.data.template)
        check_positions(settings, policy)
        train, held_out = load_conversations(settings, workdir / "data")
        _, shares = batch_share(mesh)
        rows = rows_of(settings)
        check_conversations(policy, tokenizer, train, "training", shares, rows)
        check_conversations(policy, tokenizer, held_out, "held-out", 1, rows)
        prompts, examples = held_out_prompts(settings, policy, tokenizer, held_out)
        with at("config.rewards"):
            rewards.check(examples)
        if params is None:
            base, seed = settings.base, settings.seed
            params = train_base(policy, base, tokenizer, mesh, workdir, seed=seed, **running)
        batches = packed(settings, tokenizer, held_out, num_epochs=1)
        loss_of = ConversationLoss(policy, list(batches), mesh)
        measure = functools.partial(
            _measure, settings, policy, tokenizer, prompts, examples, rewards, loss_of
        )
        before = remembered(workdir / "before.json", lambda: measure(params))
        source = packed_conversations(settings, tokenizer, train, loss_of, mesh)
        params = fine_tune(settings, policy, params, source, mesh, workdir / PHASE, **running)
        after = remembered(workdir / "after.json", lambda: measure(params))
    running["writer"].close()
    if not is_orbax(workdir / "params"):
        save_orbax(workdir / "params", policy, params)
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
    running = dict(phase=phase, writer=writer, should_stop=should_stop)

    def loss_fn(params, batch, rng):
        return next_token_loss(policy, params, batch)

    return fit(settings, loss_fn, params, source, mesh, folder, **running)


def _measure(settings, policy, tokenizer, prompts, examples, rewards, loss_of, params):
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
            eos_ids=(tokenizer.eos_id, *policy.eos_ids),
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
    console.print(
        f"complete; params, metrics, curves.png, tensorboard and checkpoints are in {workdir}"
    )
