"""Preferences that train a reward model: read, checked before any training, and batched.

Tests: tests/recipes/reward_model/test_run.py.
"""

import dataclasses

import grain
import numpy as np
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.data.batches import abstract_batch
from deepseek_jax.data.preferences import read_preferences, render_record
from deepseek_jax.errors import at
from deepseek_jax.parallel.processes import say
from deepseek_jax.parallel.shard import put_share
from deepseek_jax.recipes.reward_model.settings import RewardTrainingSettings
from deepseek_jax.recipes.stage import Context, Source
from deepseek_jax.rewards.model import right_padded
from deepseek_jax.rollout.policy import Policy
from deepseek_jax.worlds.world import World

# Tokens. A row is as long as the longest response, rounded up to a multiple of this
BUCKET = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Preferences(Source):
    """The preferences that a reward model learns: a world's, or a user's own."""

    world: World

    @override
    def covers(self, context):
        return self.read(context)

    @override
    def describe(self, context):
        train, held_out = self.read(context)
        return f"{len(train)} records, and {len(held_out)} held out, such as {train[0]}"

    def read(self, context: Context) -> tuple[list[dict], list[dict]]:
        """Return (training records, held-out records)."""
        stage, settings = context.stage, context.settings
        return context.once((self, stage), lambda: load_preferences(settings, self.world))


def load_preferences(
    settings: RewardTrainingSettings, world: World
) -> tuple[list[dict], list[dict]]:
    """Return (training records, held-out records), from the user's data or from the world.

    They are lists of the records of data.preferences.parse_preference.
    """
    data = settings.data
    if data.path is not None:
        with at("data"):
            return read_preferences(settings.kind, data, data.num_held_out, settings.seed)
    if settings.kind not in world.preferences:
        raise ValueError(
            f"kind={settings.kind!r}: the world {world.name!r} has no such preferences; set data.path to a "
            "path of your own"
        )
    return world.preferences[settings.kind](
        seed=settings.seed, num_train=data.num_train, num_held_out=data.num_held_out
    )


def with_ids(
    settings: RewardTrainingSettings, policy: Policy, records: list, kind: str
) -> list[dict]:
    """Return the records with the ids of each response, without those that do not fit a row.

    Their number is printed.

    Args:
        settings: The settings of the training.
        policy: The policy with the tokenizer and the template.
        records: The records.
        kind: "training" or "held-out", for messages.

    Raises:
        ValueError: No record fits a row, or a token is outside the model's vocabulary.
    """
    fitting_records, limit = [], settings.sequence_length
    for index, record in enumerate(records):
        ids = render_record(policy.tokenizer, record, index, template=policy.template)
        # Under jit a token outside the embedding raises no error
        if max(map(max, ids)) >= policy.config.vocab_size:
            raise ValueError(
                f"record {index} of the data has token {max(map(max, ids))}, and the model's vocab_size is "
                f"{policy.config.vocab_size}; give the model's own tokenizer"
            )
        if max(map(len, ids)) <= limit:
            fitting_records.append(record | {"ids": ids})
    if not fitting_records:
        raise ValueError(
            f"sequence_length={limit}: none of {len(records)} {kind} records fits a row; raise it"
        )
    lengths = np.array([len(row) for record in fitting_records for row in record["ids"]])
    message = f"{len(fitting_records)} {kind} records, {lengths.mean():.1f} tokens a response with its prompt"
    if len(fitting_records) < len(records):
        message += f"; {len(records) - len(fitting_records)} longer than {limit} are left out"
    # Pairs whose lengths differ teach a model to reward length (arXiv:2501.12948, section 3.1)
    if settings.kind == "helpfulness":
        length_difference = np.mean(
            [len(chosen) - len(rejected) for chosen, rejected in ids_of(fitting_records)]
        )
        message += f"; chosen ones are longer by {length_difference:.2f}"
    say(message)
    return fitting_records


def ids_of(records: list[dict]) -> list:
    """Return the ids of each record's responses."""
    return [record["ids"] for record in records]


def row_length(records: list[dict]) -> int:
    """Return the row length, in tokens, that holds every response of these records."""
    max_length = max(len(row) for ids in ids_of(records) for row in ids)
    return -(-max_length // BUCKET) * BUCKET


def batch_of(
    records: list[dict], length: int, rows: int | None = None
) -> dict[str, np.ndarray | np.float32]:
    """Make a batch of records for losses.preference.reward_loss, in numpy arrays.

    Args:
        records: The records.
        length: The row length in tokens.
        rows: Fill the batch up to this many records, with copies of weight 0; None for no copies.
    """
    weights = [record["weight"] for record in records]
    # The last batch gets the shape of the others, so that there is no second compilation
    num_copies = 0 if rows is None else rows - len(records)
    records, weights = records + records[:1] * num_copies, weights + [0.0] * num_copies
    num_responses = len(records[0]["ids"])
    arrays = right_padded([row for ids in ids_of(records) for row in ids], length)
    batch: dict[str, np.ndarray | np.float32] = {
        n: array.reshape(len(records), num_responses, length) for n, array in arrays.items()
    }
    batch["weights"] = np.array(weights, np.float32)
    batch["normalizer"] = np.float32(np.sum(weights))
    if num_responses == 1:
        batch["safe"] = np.array([record["safe"] for record in records], np.float32)
    return batch


def longest_batch(settings: RewardTrainingSettings, mesh: Mesh):
    """Return the largest batch of an update as ShapeDtypeStructs with shardings.

    Its responses are as long as a row.
    """
    num_responses = 1 if settings.kind == "safety" else 2
    record = {"ids": [[0] * settings.sequence_length] * num_responses, "weight": 1.0, "safe": True}
    batch = batch_of([record], row_length([record]))
    return abstract_batch(mesh, batch, settings.batch_size)


class PreferenceSource:
    """The training loop's source of batches: batch_size records a step, each once an epoch."""

    def __init__(self, records: list, settings: RewardTrainingSettings, mesh):
        # Indices in place of records: grain would join the arrays of fields that share a name
        indices = grain.MapDataset.range(len(records))
        self.places, self.position = indices.shuffle(settings.seed).repeat(), 0
        # One length for all batches: another one would compile the update again
        self.records, self.length = records, row_length(records)
        self.settings, self.mesh = settings, mesh

    def next(self, state, step):
        """Return ([one batch on the mesh], {"tokens": the number of its tokens})."""
        start, self.position = self.position, self.position + self.settings.batch_size
        records = [self.records[self.places[i]] for i in range(start, self.position)]
        batch = batch_of(records, self.length)
        tokens = float(batch["segment_ids"].sum())
        return [put_share(self.mesh, batch)], {"tokens": tokens}

    def get_state(self):
        """Return the number of records that were read so far."""
        return {"position": self.position}

    def set_state(self, state):
        """Resume after these records."""
        self.position = state["position"]
