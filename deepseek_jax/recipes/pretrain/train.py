"""Pre-training over one stage: a corpus and a loss to trained parameters; the base of other recipes."""

import dataclasses
import functools
from pathlib import Path

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from deepseek_jax.data.batches import PackedDocuments
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.losses.next_token import next_token_loss, parts_trained
from deepseek_jax.models import ModelConfig, random_params
from deepseek_jax.models.adapters import whole
from deepseek_jax.recipes.pretrain.settings import (
    BaseSettings,
    StageSettings,
    switched_on,
)
from deepseek_jax.training.loop import LOSS_TERMS, train
from deepseek_jax.training.run import Run
from deepseek_jax.training.schedule import number_at, stepwise
from deepseek_jax.training.state import state_maker
from deepseek_jax.training.step import over_micro_batches
from deepseek_jax.training.update import Update
from deepseek_jax.training.watch import Checks, check_terms
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
    params = stage.learns(params)
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

    state, needed = create(params), stage.flops_per_token(model)
    checks = _checks(model, stage, step)
    return whole(train(stage, state, update, source, run, seed, checks, needed).model)


def _checks(model: ModelConfig, stage: StageSettings, step):
    """The training.watch.Checks of a stage. step: of jitted."""
    mtp = number_at(stage.mtp_weight, 0) > 0
    terms = {}
    if switched_on(stage.mtp_weight):
        why = "no document has a token so far ahead; use longer documents, or set it to 0"
        terms["mtp_loss"] = f"mtp_weight={stage.mtp_weight} trains nothing: {why}"
    learns_index = model.indexer_loss != "none" and (mtp or not model.num_nextn_predict_layers)
    if model.indexer_loss != "none":
        terms["indexer_loss"] = f"indexer_loss={model.indexer_loss!r} trains nothing"

    def before_first(state, batch):
        if stage.balance_weight:
            check_balance(model, stage, state.params, batch)

    return Checks(
        terms=LOSS_TERMS | terms,
        before_first=before_first,
        # The modules have indexers too, which nothing trains while mtp_weight is 0
        learns=("mtp_",) * mtp + ("indexer",) * learns_index,
        locate=lambda state, batch, rng: step(len(batch["tokens"])).locate(state, batch, rng),
    )


def check_balance(model: ModelConfig, stage: StageSettings, params, batch):
    """Raise BrokenTerm where the balance loss or its gradient in the routers' weights is 0 or not finite."""
    flat = flatten_dict(params)
    routers = {path: leaf for path, leaf in flat.items() if path[-1] == "router"}

    @jax.jit
    def measure(routers, flat, batch):
        def of_part(part):
            def balance(routers):
                params = unflatten_dict(flat | routers)
                return next_token_loss(model, params, part)[1]["balance_loss"]

            value, gradient = jax.value_and_grad(balance)(routers)
            return value, optax.tree.norm(gradient)

        pieces = len(batch["tokens"]) // (stage.micro_batch_size or len(batch["tokens"]))
        values, norms = over_micro_batches(of_part, batch, pieces)
        return values.sum(), norms.max()

    value, norm = measure(routers, flat, batch)
    field = "balance_weight"
    check_terms({field: stage.balance_weight}, {field: value}, {field: norm})


def jitted(model: ModelConfig, stage: StageSettings, params, mesh: Mesh):
    """A stage's two jitted functions, (create, step).

    create(params) donates params and returns the TrainState. step(rows) is the Update of a batch of `rows`
    rows, split into micro-batches. params: arrays, or ShapeDtypeStructs with shardings.
    """
    parts = parts_trained(model, with_mtp=switched_on(stage.mtp_weight))
    tx = stage.make_optimizer(parts=parts)
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
        return Update(loss_fn, tx, placed, micro_batches=micro_batches, bias_update_speed=speed)

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
