"""A stage of pre-training (arXiv:2412.19437, section 4): trains parameters on a corpus.

Tests: tests/recipes/pretrain/test_run.py, tests/recipes/pretrain/test_sparse.py,
tests/recipes/grpo/test_run.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from typing_extensions import override

from deepseek_jax.checkpoint.tree import abstract_tree
from deepseek_jax.costs.flops import useful_flops, warm_up_flops
from deepseek_jax.costs.program import Program, rows_of_tokens, update_program
from deepseek_jax.data.batches import PackedDocuments, abstract_rows
from deepseek_jax.data.packing import Rows, pack
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.losses.next_token import next_token_loss, parts_trained
from deepseek_jax.models.adapters import whole
from deepseek_jax.models.network_config import Network
from deepseek_jax.models.params import random_params
from deepseek_jax.models.trained_part import indexers_of
from deepseek_jax.parallel.shard import check_batch, check_splits
from deepseek_jax.recipes.kinds.paying import RewardSource, beside_models
from deepseek_jax.recipes.pretrain.settings import BaseSettings, StageSettings, switched_on
from deepseek_jax.recipes.stage import Context, Source, Stage
from deepseek_jax.training.loop import LOSS_TERMS, train
from deepseek_jax.training.micro_batches import over_micro_batches
from deepseek_jax.training.run import Run
from deepseek_jax.training.schedule import number_at, stepwise
from deepseek_jax.training.update import UpdateOptions, create_update
from deepseek_jax.training.watch import Checks, check_terms
from deepseek_jax.trees import PyTree
from deepseek_jax.worlds.registry import find_corpus


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to train on, and how they are read and packed.

    Attributes:
        documents: A source of data.sources, or a Mixture.
        packing: See data.packing.
        fim_rate: See data.packing.
        readers: See data.packing.
    """

    documents: Any
    tokenizer: Tokenizer
    packing: bool = True
    fim_rate: float = 0.0
    readers: int = 1


class CorpusSource(Protocol):
    """A Source that reads a Corpus."""

    def read(self, context: Context) -> Corpus:
        """Return the Corpus."""


class HeldOut(Source):
    """Held-out documents, on which a loss is measured."""

    def loss(self, context: Context):
        """Return a function from params to the held-out loss.

        Its result is [mean, low, high], in nats per token.
        """
        raise NotImplementedError


def train_stage(
    model: Network,
    stage: StageSettings,
    corpus: Corpus,
    params: PyTree,
    run: Run,
    *,
    seed: int,
    evaluate: Callable[[PyTree], dict] | None = None,
) -> Any:
    """Train params, which are donated, over one stage, and return the trained params.

    It resumes from run.folder.

    Args:
        model: The Network of the stage.
        stage: The settings of the stage.
        corpus: The documents.
        params: The parameters to begin from.
        run: The Run of the stage.
        seed: The seed of the documents' order and of the training.
        evaluate: The argument of PackedDocuments.
    """
    params = learned_part(stage, params)
    update_of = updates(stage, params, run.mesh)
    # All packed batches have one size; an update takes one or more of them
    rows = Rows(
        sequence_length=stage.sequence_length,
        batch_size=stage.quantum(),
        packing=corpus.packing,
        readers=corpus.readers,
    )
    scalars = {}
    if switched_on(stage.mtp_weight):
        # In the batches, because a loss_fn does not see the update count
        scalars["mtp_weight"] = stepwise(stage.mtp_weight)
    source = PackedDocuments(
        lambda rows: pack(
            corpus.documents, corpus.tokenizer, rows, seed=seed, fim_rate=corpus.fim_rate
        ),
        rows,
        run.mesh,
        batch_sizes=stage.batch_sizes(),
        scalars=scalars,
        evaluate=evaluate,
        eval_every=stage.eval_every,
    )

    # The number of the latest update
    update_number = None

    def update(state, batch, rng):
        nonlocal update_number
        # Read once only: it waits for the device
        update_number = int(state.step) if update_number is None else update_number + 1
        update_model = stage.model_at(model, update_number)
        _, step = update_of(update_model, len(batch["tokens"]))
        return step(state, batch, rng)

    (create, _), token_flops = update_of(model, stage.quantum()), flops_per_token(stage, model)
    state, checks = create(params), _checks(model, stage, update_of)
    return whole(train(stage, state, update, source, run, seed, checks, token_flops).model)


def _checks(model: Network, stage: StageSettings, update_of):
    """Return the training.watch.Checks of a stage.

    Args:
        model: The Network of the stage.
        stage: The settings of the stage.
        update_of: The result of `updates`.
    """
    trains_mtp = number_at(stage.mtp_weight, 0) > 0
    terms = {}
    if switched_on(stage.mtp_weight):
        reason = "no document has a token so far ahead; use longer documents, or set it to 0"
        terms["mtp_loss"] = f"mtp_weight={stage.mtp_weight} trains nothing: {reason}"
    if model.indexer_loss != "none":
        terms["indexer_loss"] = f"indexer_loss={model.indexer_loss!r} trains nothing"

    def before_first(state, batch):
        if stage.balance_weight:
            check_balance(stage.model_at(model, 0), stage, state.params, batch)

    return Checks(
        terms=LOSS_TERMS | terms,
        before_first=before_first,
        untrained=() if trains_mtp else ("mtp_",),
        locate=lambda state, batch, rng: update_of(model, len(batch["tokens"]))[1].locate(
            state, batch, rng
        ),
    )


def check_balance(model: Network, stage: StageSettings, params, batch):
    """Raise BrokenTerm if the balance loss, or its gradient in the routers, is 0 or not finite."""
    flat_params = flatten_dict(params)
    routers = {path: leaf for path, leaf in flat_params.items() if path[-1] == "router"}

    @jax.jit
    def measure(routers, flat_params, batch):
        def loss_and_norm(part):
            def balance_loss(routers):
                params = unflatten_dict(flat_params | routers)
                return next_token_loss(model, params, part)[1]["balance_loss"]

            value, gradient = jax.value_and_grad(balance_loss)(routers)
            return value, optax.tree.norm(gradient)

        num_micro_batches = len(batch["tokens"]) // (stage.micro_batch_size or len(batch["tokens"]))
        values, norms = over_micro_batches(loss_and_norm, batch, num_micro_batches)
        return values.sum(), norms.max()

    value, norm = measure(routers, flat_params, batch)
    field = "balance_weight"
    check_terms({field: stage.balance_weight}, {field: value}, {field: norm})


def updates(stage: StageSettings, params, mesh: Mesh):
    """Return a function (model, rows) -> (create, update), see training.update.create_update.

    model is a Network of the stage, and rows is the number of rows of a batch.

    Args:
        stage: The settings of the stage.
        params: Arrays, or ShapeDtypeStructs with shardings.
        mesh: The mesh of the run.
    """
    # Shapes, because the arrays are donated before the last batch size comes
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params
    )
    speed = stage.bias_update_speed
    update_options = UpdateOptions(
        bias_update_speed=stepwise(speed) if switched_on(speed) else None
    )

    # One program for each batch size and each expert_buffer: both may change during the stage
    @functools.cache
    def update_of(model, rows):
        def loss_fn(params, batch, rng):
            weight = batch.get("mtp_weight")
            return next_token_loss(
                model, params, batch, balance_weight=stage.balance_weight, mtp_weight=weight
            )

        trained_parts = parts_trained(model, with_mtp=switched_on(stage.mtp_weight))
        num_micro_batches = rows // (stage.micro_batch_size or rows)
        return create_update(
            stage,
            loss_fn,
            shapes,
            mesh,
            trained_parts=trained_parts,
            micro_batches=num_micro_batches,
            beside=update_options,
        )

    return update_of


def learned_part(stage: StageSettings, params):
    """Return params as this stage trains them: whole, or as a models.trained_part.TrainedPart."""
    return params if stage.trains == "all" else indexers_of(params)


def flops_per_token(stage: StageSettings, model: Network) -> float:
    """Return the FLOPs that a token of an update needs.

    Args:
        stage: The settings of the stage.
        model: The Network of the stage.
    """
    flops_function = useful_flops if stage.trains == "all" else warm_up_flops
    return flops_function(model, stage.sequence_length, trains_mtp=switched_on(stage.mtp_weight))


def check_stage(stage: StageSettings, model: Network, mesh: Mesh):
    """Raise ValueError, naming the field, if this model or mesh cannot run the stage."""
    if stage.sequence_length > model.max_position_embeddings:
        raise ValueError(
            f"sequence_length={stage.sequence_length} is beyond the model's "
            f"max_position_embeddings={model.max_position_embeddings}"
        )
    if switched_on(stage.bias_update_speed) and not (
        model.num_moe_layers and model.has_router_bias
    ):
        raise ValueError(
            f"bias_update_speed={stage.bias_update_speed} moves a router's bias, "
            "and this model has none; set it to 0"
        )
    if switched_on(stage.mtp_weight) and not model.num_nextn_predict_layers:
        raise ValueError(
            f"mtp_weight={stage.mtp_weight} trains modules that this model lacks; set it to 0, or the "
            "model's num_nextn_predict_layers to at least 1"
        )
    if stage.balance_weight and not model.num_moe_layers:
        raise ValueError(
            f"balance_weight={stage.balance_weight} balances experts, and this model has none; "
            "set it to 0"
        )
    if stage.trains == "indexer":
        _check_warm_up(stage, model)
    _check_rows(stage, model, mesh)
    if model.is_mla and mesh.shape["context"] > 1:
        # Attention needs whole rows, so MLA splits its heads over the axis context instead
        heads = "the model's num_attention_heads"
        check_splits(mesh, heads, model.num_attention_heads, "attention_heads")


def _check_warm_up(stage: StageSettings, model: Network):
    if model.indexer_loss == "none":
        raise ValueError(
            "trains='indexer' and indexer_loss='none' train nothing; set indexer_loss to 'dense', or "
            "trains to 'all'"
        )
    for name in ("bias_update_speed", "balance_weight"):
        if switched_on(getattr(stage, name)):
            raise ValueError(
                f"{name}={getattr(stage, name)} moves what trains='indexer' freezes; set it to 0"
            )
    if model.num_nextn_predict_layers and not switched_on(stage.mtp_weight):
        raise ValueError(
            f"mtp_weight={stage.mtp_weight} leaves the indexers of the model's num_nextn_predict_layers="
            f"{model.num_nextn_predict_layers} modules random, as nothing runs these; set it above 0"
        )


def _check_rows(stage: StageSettings, model: Network, mesh: Mesh):
    rows_at_once, micro_batches = stage.rows_at_once(), model.pipeline_micro_batches
    field = "micro_batch_size" if stage.micro_batch_size else "batch_size"
    try:
        check_batch(mesh, rows_at_once, stage.sequence_length, pipeline_micro_batches=micro_batches)
    except ValueError as error:
        field_values = f"{field}={rows_at_once}, sequence_length={stage.sequence_length}"
        raise ValueError(f"{field_values}: {error}") from error


def stage_programs(name: str, config: Network, stage: StageSettings, mesh: Mesh) -> list[Program]:
    """Return the updates of a stage at its largest batch, one for each expert_buffer.

    The one of the last expert_buffer comes first.
    """
    ends = [*stage.buffer_starts()[1:], None]
    return [
        _update_program(
            name if end is None else f"{name}, before update {end}",
            config if end is None else stage.model_at(config, end - 1),
            stage,
            mesh,
        )
        for end in reversed(ends)
    ]


def _update_program(name, config, stage, mesh):
    params = learned_part(stage, abstract_tree(config, mesh))
    rows = max(rows for _, rows in stage.batch_sizes())
    create, step = updates(stage, params, mesh)(config, rows)
    scalars = ("mtp_weight",) if switched_on(stage.mtp_weight) else ()
    batch = abstract_rows(mesh, rows, stage.sequence_length, scalars=scalars)
    state = create.eval_shape(params)
    amount = rows_of_tokens(rows, stage.sequence_length, flops_per_token(stage, config))
    return update_program(name, step, state, batch, amount, config=config, mesh=mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrain(Stage):
    """Pre-training on a corpus, of random parameters or of those that its start produced.

    Attributes:
        held_out: Documents for a loss during the training, see data.batches.PackedDocuments; None
            for no such loss.
        waiting: Rewards with models that are on the devices during the training, which does not
            depend on them.
    """

    settings: StageSettings
    corpus: CorpusSource
    held_out: HeldOut | None = None
    waiting: tuple[RewardSource, ...] = ()

    @override
    def model(self, config):
        return self.settings.model(config)

    @override
    def leaves(self, config):
        # Its indexer_loss and expert_buffer hold only in this stage
        return dataclasses.replace(config, rope_scaling=self.model(config).rope_scaling)

    @override
    def check(self, config, mesh):
        check_stage(self.settings, config, mesh)

    @override
    def programs(self, config, mesh, others):
        name = self.prefix.removesuffix(": ") or self.name
        programs = stage_programs(name, config, self.settings, mesh)
        return beside_models(programs, self.waiting, config, mesh)

    @override
    def run(self, context):
        policy = context.policy
        if self.start:
            params = context.load_start().params
        else:
            params = random_params(policy.config, context.mesh, self.seed)
        evaluate = None
        if self.held_out is not None:
            held_out_loss = self.held_out.loss(context)

            def evaluate(params):
                return {"held_out_loss": held_out_loss(params)[0]}

        params = train_stage(
            policy.config,
            self.settings,
            self.corpus.read(context),
            params,
            context.run,
            seed=self.seed,
            evaluate=evaluate,
        )
        # A stage that begins from it trains no indexers, unless its settings say so
        stage_policy = context.policies[self.name]
        config = dataclasses.replace(stage_policy.config, indexer_loss="none")
        return dataclasses.replace(stage_policy, config=config, params=params)


@dataclasses.dataclass(frozen=True, eq=False)
class BaseCorpus(Source):
    """The documents of a world's corpus, which a base learns."""

    settings: BaseSettings
    seed: int

    @functools.cached_property
    def documents(self) -> list[dict]:
        """The documents of the world."""
        _, make_documents = find_corpus(self.settings.corpus)
        return make_documents(num_documents=self.settings.num_documents, seed=self.seed)

    @override
    def covers(self, context):
        # The texts themselves: if a world's text changes, its base does
        return [document["text"] for document in self.documents]

    def read(self, context: Context) -> Corpus:
        """Return the Corpus."""
        return Corpus(self.documents, context.policy.tokenizer)
