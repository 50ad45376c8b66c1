"""A stage that trains a reward model (arXiv:2501.12948, section 3.1) on preferences, from a policy."""

import functools
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepseek_jax.checkpoint.folder import is_whole
from deepseek_jax.checkpoint.reward_params import save_reward_model
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.costs.program import Program, rows_of_tokens, update_program
from deepseek_jax.data.carried import carried_files
from deepseek_jax.data.preferences import RESPONSES
from deepseek_jax.evaluation.preference import label_report, pair_report
from deepseek_jax.losses.preference import batch_rewards, reward_loss
from deepseek_jax.models import ModelConfig
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.reward import abstract_head, reward_config, reward_params
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.job import Work
from deepseek_jax.recipes.kinds.preferences import (
    PreferenceSource,
    batch_of,
    ids_of,
    longest_batch,
    row_length,
)
from deepseek_jax.recipes.reward_model.settings import RewardTrainingSettings
from deepseek_jax.recipes.stage import Kind
from deepseek_jax.recipes.start import check_positions, check_rows
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import fit
from deepseek_jax.training.remembered import remembered
from deepseek_jax.training.run import Run
from deepseek_jax.training.update import create_update

PHASE = "reward_model"
ON_PAGE = 5  # held-out records whose rewards the page has


def train_reward_model(
    settings: RewardTrainingSettings,
    policy: Policy,
    records,
    run: Run,
    base: Path | None = None,
):
    """Train a reward model from policy.params, which are donated, and save it in run.folder/params.

    Resumes from run.folder. before.json and after.json there have the scores on the held-out records.
    records: (training, held-out), from with_ids. run: the Run of this phase. base: the path of the frozen
    parameters beside an adapter.
    """
    (train, held_out), folder, mesh = records, run.folder, run.mesh
    params = reward_params(policy.config, policy.params, mesh, jax.random.key(settings.seed))
    model = reward_config(policy.config)

    def measure(when, params):
        with waiting_for(f"measuring {when}: {len(held_out):,} held-out records"):
            return _measure(model, settings, held_out, mesh, params)

    # Before fit, which donates params
    remembered(folder / "before.json", lambda: measure("before", params))
    source = PreferenceSource(train, settings, mesh)
    loss_fn = reward_model_loss(model)
    needed = reward_flops(model, settings.sequence_length, frozen=base is not None)
    # In the difference of two rewards the head's bias cancels out
    untrained = ("head.bias",) if settings.kind == "helpfulness" else ()
    training = run.within(folder / PHASE)
    params = fit(settings, loss_fn, params, source, training, needed, untrained=untrained)
    remembered(folder / "after.json", lambda: measure("after", params))
    files = carried_files(policy.tokenizer, settings.data.template)
    save_reward_model(folder / "params", model, params, dict(kind=settings.kind), base, files)


def reward_flops(model: ModelConfig, sequence_length: int, frozen: bool = False):
    """costs.flops.useful_flops of a token of a reward model, which has no output head."""
    return useful_flops(model, sequence_length, trains_mtp=False, frozen=frozen, logits=0.0)


def reward_model_loss(model: ModelConfig):
    """The loss_fn of training.make_train_step. model: of models.reward.reward_config."""

    def loss_fn(params, batch, rng):
        return reward_loss(model, params, batch)

    return loss_fn


def _measure(
    config: ModelConfig, settings: RewardTrainingSettings, held_out: list, mesh: Mesh, params
):
    """evaluation.preference's report on the held-out records, and samples of them."""
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
    samples = {"held_out": _samples(settings.kind, held_out[:ON_PAGE], rewards_pc)}
    if settings.kind == "safety":
        scores = label_report(rewards_pc[:, 0], [record["safe"] for record in held_out])
    else:
        longer = [len(chosen) - len(rejected) for chosen, rejected in ids_of(held_out)]
        scores = pair_report(rewards_pc[:, 0] - rewards_pc[:, 1], longer)
    return scores | {"samples": samples}


def _samples(kind, records, rewards_pc):
    """The first held-out records: the prompt, each response with a title, and their rewards."""
    return [
        {
            "prompt": "\n".join(message["content"] for message in record["messages"]),
            "responses": [
                {"title": title, "text": text, "length": len(ids)}
                for title, text, ids in zip(
                    _titles(kind, record), record["responses"], record["ids"], strict=True
                )
            ],
            "rewards": rewards.tolist(),
        }
        for record, rewards in zip(records, rewards_pc, strict=False)
    ]


def _titles(kind, record):
    """What a record says of its responses."""
    if kind == "safety":
        return ["safe" if record["safe"] else "unsafe"]
    return RESPONSES[kind]


def reward_programs(
    name: str,
    settings: RewardTrainingSettings,
    config: ModelConfig,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
):
    """The update of a reward model that starts from a policy of config, and its scores: [Program]."""
    model = reward_config(config)
    decoder = abstract_tree(model, mesh, adapter=adapter)
    params = {"decoder": decoder, "head": abstract_head(model, mesh)}
    batch = longest_batch(settings, mesh)
    responses, length = batch["tokens"].shape[1:]
    rows = settings.batch_size * responses
    forward = rows_of_tokens(rows, length, reward_flops(model, length) / 3)
    flops = reward_flops(model, length, frozen=adapter is not None)
    create, step = create_update(settings, reward_model_loss(model), params, mesh)
    state, score = create.eval_shape(params), jax.jit(functools.partial(batch_rewards, model))
    amount = rows_of_tokens(rows, length, flops)
    return [
        update_program(f"{name}update", step, state, batch, amount, config=model, mesh=mesh),
        Program(f"{name}scores", score, (params, batch), mesh, *forward),
    ]


def _check(work: Work):
    check_positions(work.settings, work.config)
    check_rows(work.settings, work.mesh, work.config.pipeline_micro_batches)


def _covers(work: Work):
    return {"settings": work.job.about(work.settings), "data": work.job.preferences(work)}


def _compiles(work: Work):
    return reward_programs(work.prefix, work.settings, work.config, work.mesh, work.adapter)


def _run(work: Work):
    """Leaves the reward model, and its scores before and after, in the stage's folder."""
    train_reward_model(
        work.settings,
        work.start(),
        work.job.preferences_with_ids(work),
        work.phase,
        work.job.base_path(),
    )


PREFER = Kind(
    _check,
    _compiles,
    _run,
    _covers,
    lambda work: work.job.preferences_with_ids(work),
    is_left=lambda folder: is_whole(folder / "params"),
    is_policy=False,
    builds_data=True,
)
