"""A stage that trains a reward model on preferences (arXiv:2501.12948, section 3.1).

The reward model starts from a policy.

Tests: tests/recipes/test_results.py.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from typing_extensions import override

from deepseek_jax.checkpoint.folder import is_whole
from deepseek_jax.checkpoint.reward_params import save_reward_model
from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.costs.program import Program, rows_of_tokens, update_program
from deepseek_jax.data.carried import carried_files
from deepseek_jax.data.preferences import RESPONSES
from deepseek_jax.evaluation.preference import label_report, pair_report
from deepseek_jax.losses.preference import batch_rewards, reward_loss
from deepseek_jax.models.adapter_settings import AdapterSettings
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.network_config import require_model_config
from deepseek_jax.models.params import count_params
from deepseek_jax.models.reward import abstract_head, reward_config, reward_params
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.progress import waiting_for
from deepseek_jax.recipes.checks import check_positions, check_rows
from deepseek_jax.recipes.kinds.preferences import (
    Preferences,
    PreferenceSource,
    batch_of,
    ids_of,
    longest_batch,
    row_length,
    with_ids,
)
from deepseek_jax.recipes.reward_model.settings import RewardTrainingSettings
from deepseek_jax.recipes.stage import Context, Stage
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.training.loop import fit
from deepseek_jax.training.remembered import remembered
from deepseek_jax.training.run import Run
from deepseek_jax.training.update import create_update

# The page has the rewards of this many held-out records
ON_PAGE = 32


def train_reward_model(
    settings: RewardTrainingSettings,
    policy: Policy,
    records,
    run: Run,
    folder: Path,
    base: str | Path | None = None,
):
    """Train a reward model from a policy and save it in folder/params.

    It resumes from run.folder. The scores on the held-out records are in before.json and after.json
    of `folder`.

    Args:
        settings: The settings of the training.
        policy: The policy to begin from; its params are donated.
        records: (training, held-out) records of with_ids.
        run: The Run of this phase.
        folder: The folder of the stage.
        base: With an adapter, the path of the frozen parameters.
    """
    (train, held_out), mesh = records, run.mesh
    config = require_model_config(policy.config, "a reward model")
    params = reward_params(config, policy.params, mesh, jax.random.key(settings.seed))
    model = reward_config(config)

    def measure(when, params):
        with waiting_for(f"measuring {when}: {len(held_out):,} held-out records"):
            return _measure(model, settings, held_out, mesh, params)

    # Before fit, because it donates params
    remembered(folder / "before.json", lambda: measure("before", params))
    source = PreferenceSource(train, settings, mesh)
    loss_fn = reward_model_loss(model)
    needed = reward_flops(model, settings.sequence_length, frozen=base is not None)
    # In the difference of two rewards the head's bias cancels out
    untrained = ("head.bias",) if settings.kind == "helpfulness" else ()
    params = fit(settings, loss_fn, params, source, run, needed, untrained=untrained)
    remembered(folder / "after.json", lambda: measure("after", params))
    files = carried_files(policy.tokenizer, settings.data.template)
    save_reward_model(folder / "params", model, params, dict(kind=settings.kind), base, files)


def reward_flops(model: ModelConfig, sequence_length: int, frozen: bool = False) -> float:
    """Return costs.flops.useful_flops of a token of a reward model, which has no output head."""
    return useful_flops(model, sequence_length, trains_mtp=False, frozen=frozen, logits=0.0)


def reward_model_loss(model: ModelConfig):
    """Return the loss_fn of training.update.make_train_step.

    Args:
        model: The result of models.reward.reward_config.
    """

    def loss_fn(params, batch, rng):
        return reward_loss(model, params, batch)

    return loss_fn


def _measure(
    config: ModelConfig, settings: RewardTrainingSettings, held_out: list, mesh: Mesh, params
):
    """Return evaluation.preference's report on the held-out records, and samples of them."""
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
    """Return the first held-out records for the page.

    Each has the prompt, the responses with a title, and their rewards.
    """
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
    """Return the titles of a record's responses."""
    if kind == "safety":
        return ["safe" if record["safe"] else "unsafe"]
    return RESPONSES[kind]


def reward_programs(
    name: str,
    settings: RewardTrainingSettings,
    config: ModelConfig,
    mesh: Mesh,
    adapter: AdapterSettings | None = None,
) -> list[Program]:
    """Return the update and the scores of a reward model that starts from a policy of `config`."""
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


@dataclasses.dataclass(frozen=True, eq=False)
class RewardTraining(Stage):
    """A stage that trains a reward model or a judge, and measures it before and after.

    Attributes:
        measured_as: The names of the two measurements in the run's results; None if the results do
            not have them.
    """

    leaves_policy = False

    measured_as: tuple[str, str] | None = None

    @override
    def measurements(self):
        files = [f"{self.name}/{when}.json" for when in ("before", "after")]
        return {} if self.measured_as is None else dict(zip(self.measured_as, files, strict=True))

    @override
    def check(self, config, mesh):
        require_model_config(config, "a reward model")
        check_positions(self.settings, config)
        check_rows(self.settings, mesh, config.pipeline_micro_batches)


@dataclasses.dataclass(frozen=True, eq=False)
class Prefer(RewardTraining):
    """Training of a reward model from the policy that it begins from.

    Its folder gets the reward model, and its scores before and after.
    """

    settings: RewardTrainingSettings
    _: dataclasses.KW_ONLY
    preferences: Preferences

    @override
    def is_left(self, folder):
        return is_whole(folder / "params")

    @override
    def num_params(self, config):
        # The head's weight and bias
        return count_params(reward_config(config)) + config.hidden_size + 1

    @override
    def check_data(self, context):
        super().check_data(context)
        self.records(context)

    def records(self, context: Context):
        """Return (training, held-out) records with the ids of their responses."""
        return context.once((self, "ids"), lambda: self._records(context))

    def _records(self, context):
        records = zip(self.preferences.read(context), ("training", "held-out"), strict=True)
        return [with_ids(self.settings, context.policy, *part) for part in records]

    @override
    def programs(self, config, mesh, others):
        return reward_programs(self.prefix, self.settings, config, mesh, self.adapter)

    @override
    def run(self, context):
        base = None if self.adapter is None else context.path_of(self.start)
        records = self.records(context)
        train_reward_model(
            self.settings, context.load_start(), records, context.run, context.stage_folder, base
        )
