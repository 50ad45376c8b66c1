"""A reward model (arXiv:2501.12948, section 3.1), from a base model or a checkpoint, told in order.

base -> a scalar head on it -> measure on held-out preferences -> train -> measure again -> report.
"""

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.checkpoint.reward_params import save_reward_model
from deepseek_jax.evaluation.preference import label_report, pair_report
from deepseek_jax.evaluation.report import plot_curves
from deepseek_jax.losses.preference import batch_rewards, reward_loss
from deepseek_jax.models.reward import reward_config, reward_params
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.recipes.answers import make_console
from deepseek_jax.recipes.phase import fit
from deepseek_jax.recipes.pretrain import train_base
from deepseek_jax.recipes.remembered import remembered
from deepseek_jax.recipes.reward_data import (
    PreferenceSource,
    batch_of,
    ids_of,
    load_preferences,
    put_share,
    row_length,
    with_ids,
)
from deepseek_jax.recipes.reward_model_settings import RewardModelSettings
from deepseek_jax.recipes.settings import build
from deepseek_jax.recipes.start import check_positions, check_rows, starting_policy
from deepseek_jax.training.metrics import MetricsWriter

PHASE = "reward_model"
CURVES = ("loss", "accuracy", "margin", "safe_probability", "grad_norm")


def run(config, mesh, workdir, should_stop):
    """Run the recipe in workdir, or what is left of it. config: ConfigDict of RewardModelSettings' fields.

    Leaves the reward model in workdir/params, for config.reward_models.NAME.path of another run.
    """
    settings = build(RewardModelSettings, config, "config")
    check_rows(settings, mesh)
    policy, params, tokenizer = starting_policy(settings, mesh)
    check_positions(settings, policy)
    records = load_preferences(settings, workdir / "data")
    train, held_out = (
        with_ids(settings, policy, tokenizer, *pair)
        for pair in zip(records, ("training", "held-out"), strict=True)
    )
    running = dict(writer=MetricsWriter(workdir), should_stop=should_stop)
    if params is None:
        base, seed = settings.base, settings.seed
        params = train_base(policy, base, tokenizer, mesh, workdir, seed=seed, **running)
    params = reward_params(policy, params, mesh, jax.random.key(settings.seed))
    model = reward_config(policy)
    measure = functools.partial(_measure, model, settings, held_out, mesh)
    before = remembered(workdir / "before.json", lambda: measure(params))
    source = PreferenceSource(train, settings, mesh)
    params = fit(
        settings,
        lambda params, batch, rng: reward_loss(model, params, batch),
        params,
        source,
        mesh,
        workdir / PHASE,
        phase=PHASE,
        **running,
    )
    after = remembered(workdir / "after.json", lambda: measure(params))
    running["writer"].close()
    _finish(settings, workdir, model, params, before, after)


def _measure(config, settings, held_out, mesh, params):
    """evaluation.preference's report on the held-out records."""
    length, rows = row_length(held_out), settings.batch_size

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def score(params, batch):
        return batch_rewards(config, params, batch)[0]

    rewards = []
    for start in range(0, len(held_out), rows):
        some = held_out[start : start + rows]
        batch = put_share(mesh, batch_of(some, length, rows))
        rewards.append(np.asarray(score(params, batch))[: len(some)])
    rewards_pc = np.concatenate(rewards)
    if settings.kind == "safety":
        return label_report(rewards_pc[:, 0], [record["safe"] for record in held_out])
    longer = [len(chosen) - len(rejected) for chosen, rejected in ids_of(held_out)]
    return pair_report(rewards_pc[:, 0] - rewards_pc[:, 1], longer)


def _finish(settings, workdir, config, params, before, after):
    """Leave the reward model behind, and print the report. Process 0 alone prints."""
    folder = workdir / "params"
    if not folder.exists():
        tokenizer = settings.init_from or settings.base.corpus
        about = dict(kind=settings.kind, template=settings.data.template, tokenizer=tokenizer)
        save_reward_model(folder, config, params, about)
    if first_process():
        plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE, names=CURVES)
    console = make_console()
    console.print(report_table("held-out preferences", before, after))
    console.print(f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}")
    console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {folder}")


def report_table(title, before, after):
    """A rich Table of two reports: dicts of [mean, low, high], of numbers, and of None."""
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False)
    table.add_column("score")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for name in after:
        table.add_row(name.replace("_", " "), *(_cell(report[name]) for report in (before, after)))
    return table


def _cell(value):
    if isinstance(value, list):
        mean, low, high = value
        return f"{mean:.3f} ({low:.3f} to {high:.3f})"
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
