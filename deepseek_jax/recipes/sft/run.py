"""Supervised fine-tuning on conversations (arXiv:2501.12948, appendix B.4.2).

base -> loss and answers on held-out conversations -> fine-tune -> measure again -> report.
"""

import contextlib
import functools
from pathlib import Path

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.data.batches import PackedDocuments
from deepseek_jax.errors import at
from deepseek_jax.evaluation.conversation_loss import ConversationLoss
from deepseek_jax.evaluation.held_out import evaluate_both
from deepseek_jax.losses.next_token import next_token_loss, parts_trained
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapters import Adapted
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.sft.data import (
    check_conversations,
    held_out_prompts,
    load_conversations,
    packed,
    rows_of,
)
from deepseek_jax.recipes.sft.settings import FineTuneSettings, SftSettings
from deepseek_jax.recipes.start import (
    adapted,
    check_positions,
    check_rows,
    check_slots,
    is_trained,
    left_in,
    pretrained,
    save_trained,
    starting_policy,
)
from deepseek_jax.reinforce.model_rewards import load_model_rewards
from deepseek_jax.reports.answers import make_console, print_samples, print_table
from deepseek_jax.reports.tables import loss_table, plot_curves
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import fit
from deepseek_jax.training.remembered import before_and_after, remembered
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import open_rewards

SETTINGS = SftSettings
PHASE = "sft"
CURVES = ("loss", "held_out_loss", "grad_norm")


def run(settings: SftSettings, run: Run):
    """Run the recipe, or resume it. Leaves the policy in run.folder/params, or its adapter in
    run.folder/adapter, for launch/evaluate.py and launch/convert.py. A complete run is reported alone.
    """
    if not is_trained(settings, run.folder):
        _train(settings, run)
    _report(settings, run.folder)


def check_data(settings: SftSettings, mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    with at("config"):
        train, held_out = load_conversations(settings, folder)
    return (
        f"{len(train)} conversations, and {len(held_out)} held out, such as {train[0]['messages']}"
    )


def _train(settings: SftSettings, run: Run):
    """Everything up to what the run leaves."""
    mesh, folder = run.mesh, run.folder
    with contextlib.ExitStack() as opened:
        # A wrong config raises here, before anything is trained
        with at("config"):
            rewards = opened.enter_context(_rewards(settings, mesh))
            policy, train, held_out = _start(settings, mesh, folder / "data")
            asked = held_out_prompts(settings, policy, held_out)
            with at("rewards"):
                rewards.check(asked)
        policy = adapted(pretrained(policy, settings, run), settings, mesh)
        whole = rows_of(settings, held_out=True)
        batches = packed(settings, policy, held_out, whole, num_epochs=1)
        loss_of = ConversationLoss(policy.config, list(batches), mesh)
        measure = functools.partial(_measure, settings, policy, asked, rewards, loss_of)
        # Before fine_tune, which donates policy.params
        remembered(folder / "before.json", lambda: measure(policy.params))
        source = packed_conversations(settings, policy, train, loss_of, mesh)
        params = fine_tune(settings, policy, source, run.of(PHASE))
        remembered(folder / "after.json", lambda: measure(params))
    run.writer.close()
    save_trained(settings, folder, policy.config, params)


def _rewards(settings: SftSettings, mesh):
    """The Rewards that score answers, with the trained reward models."""
    # Before starting_policy, which may read gigabytes: rows that do not split raise at once
    check_rows(settings, mesh, pipeline_micro_batches=settings.model.get("pipeline_micro_batches"))
    check_slots(settings, mesh)
    with at("reward_models"):
        models = load_model_rewards(
            settings.reward_models, mesh, settings.model.get("expert_buffer")
        )
    with at("rewards"):
        return open_rewards(settings.rewards, models=models)


def _start(settings: SftSettings, mesh, data_dir: Path):
    """(Policy, training conversations, held-out ones). Raises ValueError where no conversation fits a row."""
    policy = starting_policy(settings, mesh, settings.data.template)
    check_positions(settings, policy.config)
    train, held_out = load_conversations(settings, data_dir)
    check_conversations(policy, train, "training", rows_of(settings))
    check_conversations(policy, held_out, "held-out", rows_of(settings, held_out=True))
    return policy, train, held_out


def packed_conversations(
    settings: FineTuneSettings, policy: Policy, conversations, loss_of: ConversationLoss, mesh
):
    """The loop's batches: -> PackedDocuments.

    loss_of gives the held-out loss before every eval_every-th step. The metric tokens is the sum of the
    learned tokens' weights.
    """
    return PackedDocuments(
        lambda rows: packed(settings, policy, conversations, rows),
        rows_of(settings),
        mesh,
        batch_sizes=((0, settings.batch_size),),
        scalars={},
        evaluate=lambda params: {"held_out_loss": loss_of(params)["loss"][0]},
        eval_every=settings.eval_every,
    )


def fine_tune(settings: FineTuneSettings, policy: Policy, source: PackedDocuments, run: Run):
    """Train policy.params, which are donated: -> params. Resumes from run.folder.

    What the loss gives no gradient stays as it is: router biases, multi-token prediction modules, and
    indexers unless the model's indexer_loss trains them.
    """
    config, params = policy.config, policy.params
    how = dict(trains_mtp=False, frozen=isinstance(params, Adapted))
    needed = useful_flops(config, settings.sequence_length, **how)
    loss_fn, parts = fine_tuning_loss(config), parts_trained(config)
    return fit(settings, loss_fn, params, source, run, needed, parts)


def fine_tuning_loss(config: ModelConfig):
    """The loss_fn of training.make_train_step."""

    def loss_fn(params, batch, rng):
        return next_token_loss(config, params, batch)

    return loss_fn


def _measure(
    settings: SftSettings,
    policy: Policy,
    asked: list,
    rewards,
    loss_of: ConversationLoss,
    params,
):
    """The loss of the held-out conversations, and the scores of answers to their last questions."""
    how = dict(accuracy=settings.accuracy, seed=settings.seed)
    return {
        "loss": loss_of(params),
        "answers": evaluate_both(policy.at(params), asked, rewards, settings.answers, **how),
    }


def _report(settings: SftSettings, workdir: Path):
    """Print the tables and samples, draw the curves. Process 0 alone draws."""
    console, (before, after) = make_console(), before_and_after(workdir)
    if first_process():
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE, names=CURVES)
    losses = [measured["loss"]["loss"] for measured in (before, after)]
    console.print(loss_table({PHASE: (settings.sequence_length, *losses)}))
    tokens, conversations = after["loss"]["tokens"], after["loss"]["conversations"]
    console.print(f"over {tokens} tokens of {conversations} held-out conversations")
    print_table(console, before["answers"], after["answers"])
    print_samples(console, before["answers"]["sampled"], after["answers"]["sampled"])
    left = f"{left_in(settings)}, metrics, curves.png, tensorboard and checkpoints"
    console.print(f"complete; {left} are in {workdir}")
