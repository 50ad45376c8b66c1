"""A reward model (arXiv:2501.12948, section 3.1), from a base model or a checkpoint.

base -> add a scalar head -> measure on held-out preferences -> train -> measure again -> report.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from deepseek_jax.checkpoint.folder import is_whole
from deepseek_jax.checkpoint.reward_params import save_reward_model
from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.errors import at
from deepseek_jax.evaluation.preference import label_report, pair_report
from deepseek_jax.losses.preference import batch_rewards, reward_loss
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.reward import reward_config, reward_params
from deepseek_jax.parallel.processes import first_process
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.recipes.reward_model.data import (
    PreferenceSource,
    batch_of,
    ids_of,
    load_preferences,
    row_length,
    with_ids,
)
from deepseek_jax.recipes.reward_model.settings import RewardModelSettings, RewardTrainingSettings
from deepseek_jax.recipes.start import (
    adapted,
    base_path,
    check_positions,
    check_rows,
    pretrained,
    starting_policy,
)
from deepseek_jax.reports.answers import make_console
from deepseek_jax.reports.tables import plot_curves
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import fit
from deepseek_jax.training.remembered import before_and_after, remembered
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.bilingual.world import BILINGUAL

SETTINGS = RewardModelSettings
PHASE = "reward_model"
CURVES = ("loss", "accuracy", "margin", "safe_probability", "grad_norm")


def run(settings: RewardModelSettings, run: Run):
    """Run the recipe, or resume it. Leaves the reward model in run.folder/params, for
    config.reward_models.NAME.path of another run. A complete run is reported alone.
    """
    # What train_reward_model writes last
    if not is_whole(run.folder / "params"):
        _train(settings, run)
    _report(run.folder)


def check_data(settings: RewardModelSettings, mesh: Mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    with at("config"):
        train, held_out = load_preferences(settings, BILINGUAL, folder)
    return f"{len(train)} records, and {len(held_out)} held out, such as {train[0]}"


def _train(settings: RewardModelSettings, run: Run):
    """Everything up to what the run leaves."""
    mesh, folder = run.mesh, run.folder
    with at("config"):
        # Before starting_policy, which may read gigabytes: rows that do not split raise at once
        cut = settings.model.get("pipeline_micro_batches")
        check_rows(settings, mesh, pipeline_micro_batches=cut)
        policy = starting_policy(settings, mesh, settings.data.template)
        check_positions(settings, policy.config)
        train, held_out = load_preferences(settings, BILINGUAL, folder / "data")
        train = with_ids(settings, policy, train, "training")
        records = train, with_ids(settings, policy, held_out, "held-out")
    policy = adapted(pretrained(policy, settings, run), settings, mesh)
    name = settings.init_from or settings.base.corpus
    base = None if settings.adapter is None else base_path(settings, folder)
    train_reward_model(settings, policy, records, run.of(PHASE, folder), name, base)
    run.writer.close()


def train_reward_model(
    settings: RewardTrainingSettings,
    policy: Policy,
    records,
    run: Run,
    tokenizer_name: str,
    base: Path | None = None,
):
    """Train a reward model from policy.params, which are donated, and save it in run.folder/params.

    Resumes from run.folder. before.json and after.json there have the scores on the held-out records.
    records: (training, held-out), from with_ids. run: the Run of this phase. tokenizer_name: for
    worlds.registry.named_tokenizer. base: the path of the frozen parameters beside an adapter.
    """
    (train, held_out), folder, mesh = records, run.folder, run.mesh
    params = reward_params(policy.config, policy.params, mesh, jax.random.key(settings.seed))
    model = reward_config(policy.config)
    measure = functools.partial(_measure, model, settings, held_out, mesh)
    # Before fit, which donates params
    remembered(folder / "before.json", lambda: measure(params))
    source = PreferenceSource(train, settings, mesh)
    loss_fn = reward_model_loss(model)
    needed = reward_flops(model, settings.sequence_length, frozen=base is not None)
    params = fit(settings, loss_fn, params, source, run.within(folder / PHASE), needed)
    remembered(folder / "after.json", lambda: measure(params))
    if not is_whole(folder / "params"):
        template = settings.data.template
        about = dict(kind=settings.kind, template=template, tokenizer=tokenizer_name)
        save_reward_model(folder / "params", model, params, about, base)


def reward_flops(model: ModelConfig, sequence_length: int, frozen: bool = False):
    """costs.flops.useful_flops of a token of a reward model, which has no output head."""
    head = (4 if frozen else 6) * model.vocab_size * model.hidden_size
    return useful_flops(model, sequence_length, trains_mtp=False, frozen=frozen) - head


def reward_model_loss(model: ModelConfig):
    """The loss_fn of training.make_train_step. model: of models.reward.reward_config."""

    def loss_fn(params, batch, rng):
        return reward_loss(model, params, batch)

    return loss_fn


def _measure(
    config: ModelConfig, settings: RewardTrainingSettings, held_out: list, mesh: Mesh, params
):
    """evaluation.preference's report on the held-out records."""
    length, rows = row_length(held_out), settings.batch_size

    # Replicated, so that every process can read all rewards
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


def _report(workdir: Path):
    """Draw the curves and print the scores. Process 0 alone."""
    if not first_process():
        return
    plot_curves(workdir / "metrics.jsonl", workdir / "curves.png", phase=PHASE, names=CURVES)
    console, folder = make_console(), workdir / "params"
    console.print(reward_model_table("held-out preferences", workdir))
    console.print(f"complete; metrics, curves.png, tensorboard and checkpoints are in {workdir}")
    console.print(f"to be rewarded by it, set config.reward_models.NAME.path to {folder}")


def reward_model_table(title: str, folder: Path):
    """A rich Table of folder's before.json and after.json: dicts of [mean, low, high], numbers and None."""
    before, after = before_and_after(folder)
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
