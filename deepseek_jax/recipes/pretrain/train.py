"""Pre-training over one stage: a corpus and a loss to trained parameters; the base of other recipes."""

import dataclasses
import functools
from pathlib import Path

from jax.sharding import Mesh

from deepseek_jax.costs.flops import useful_flops
from deepseek_jax.data.batches import PackedDocuments
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, random_params
from deepseek_jax.recipes.pretrain.settings import (
    BaseSettings,
    StageSettings,
    switched_on,
)
from deepseek_jax.training.loop import train
from deepseek_jax.training.run import Run
from deepseek_jax.training.schedule import stepwise
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.step import jitted_step, make_train_step
from deepseek_jax.worlds.registry import find_corpus


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to train on, and how they are read and packed. documents: a source of data.sources, or a
    Mixture. packing, fim_rate, readers: see data.packing.
    """

    documents: object
    tokenizer: Tokenizer
    packing: bool = True
    fim_rate: float = 0.0
    readers: int = 1


def train_stage(
    model: ModelConfig,
    stage: StageSettings,
    corpus: Corpus,
    params,
    run: Run,
    *,
    seed: int,
    evaluate=None,
):
    """Train params, which are donated, over one stage: -> params. Resumes from run.folder.

    evaluate: see PackedDocuments.
    """
    create, step = jitted(model, stage, params, run.mesh)
    # The documents are packed in batches of one size; an update takes several of them
    sizes = dict(sequence_length=stage.sequence_length, batch_size=stage.quantum())
    rows = Rows(packing=corpus.packing, readers=corpus.readers, **sizes)
    how = dict(seed=seed, fim_rate=corpus.fim_rate)
    weight = {}
    if switched_on(stage.mtp_weight):
        # Goes into the batches, because a loss_fn does not see the update count
        weight["mtp_weight"] = stepwise(stage.mtp_weight)
    source = PackedDocuments(
        lambda rows: pack(corpus.documents, corpus.tokenizer, rows, **how),
        rows,
        run.mesh,
        batch_sizes=stage.batch_sizes(),
        scalars=weight,
        evaluate=evaluate,
        eval_every=stage.eval_every,
    )

    def update(state, batch, rng):
        return step(len(batch["tokens"]))(state, batch, rng)

    mtp = switched_on(stage.mtp_weight)
    needed = useful_flops(model, stage.sequence_length, trains_mtp=mtp)
    state = create(params)
    return train(stage, state, update, source, run, seed, flops_per_token=needed).params


def jitted(model: ModelConfig, stage: StageSettings, params, mesh: Mesh):
    """A stage's two jitted functions, (create, step).

    create(params) donates params and returns the TrainState. step(rows) is the train_step of a batch of
    `rows` rows, split into micro-batches. params: arrays, or ShapeDtypeStructs with shardings.
    """
    trains_mtp = switched_on(stage.mtp_weight)
    tx = stage.make_optimizer(trains_mtp=trains_mtp)
    create, placed = state_maker(params, tx, mesh, stage.optimizer.moment_memory)
    speed = None
    if switched_on(stage.bias_update_speed):
        speed = stepwise(stage.bias_update_speed)

    def loss_fn(params, batch, rng):
        weight = batch.get("mtp_weight")
        return next_token_loss(
            model, params, batch, balance_weight=stage.balance_weight, mtp_weight=weight
        )

    # One program for each size of batch, since the rows may grow on the way
    @functools.cache
    def step(rows):
        micro_batches = rows // (stage.micro_batch_size or rows)
        step = make_train_step(loss_fn, tx, micro_batches=micro_batches, bias_update_speed=speed)
        return jitted_step(step, placed)

    return create, step


def base_documents(settings: BaseSettings, data_dir: Path, seed: int):
    """Random access to the documents of settings.corpus, built under data_dir."""
    _, documents = find_corpus(settings.corpus)
    return documents(data_dir, num_documents=settings.num_documents, seed=seed)


def train_base(
    config: ModelConfig, settings: BaseSettings, tokenizer: Tokenizer, run: Run, seed: int
):
    """Pre-train `config` on a world's corpus: -> params. Resumes from run.folder.

    The corpus is built in the folder data beside run.folder.
    """
    documents = base_documents(settings, run.folder.parent / "data", seed)
    params = random_params(config, run.mesh, seed)
    return train_stage(config, settings, Corpus(documents, tokenizer), params, run, seed=seed)
