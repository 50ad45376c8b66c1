"""Pre-train a base model, in stages, on packed documents (arXiv:2412.19437, section 4).

read documents -> random parameters, or a checkpoint's -> train each stage
-> held-out losses, and how much multi-token prediction speeds up decoding -> report
"""

import dataclasses
import itertools
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console
from typing_extensions import override

from deepseek_jax.checkpoint.load import load_params, read_any_config
from deepseek_jax.checkpoint.network_config import read_network
from deepseek_jax.checkpoint.tree import abstract_params, checked_by_path, from_paths
from deepseek_jax.data.batches import held_out_batches
from deepseek_jax.data.infill import check_fim_rate
from deepseek_jax.data.mixture import Mixture
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import at
from deepseek_jax.evaluation.perplexity import held_out_loss
from deepseek_jax.files import read_json
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models.config import ModelConfig, names_architecture
from deepseek_jax.models.network_config import Network, build_model, require_model_config
from deepseek_jax.models.trained_part import INDEXER, with_indexers
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.kinds.given import GivenPolicy, Random
from deepseek_jax.recipes.kinds.measure import Measure
from deepseek_jax.recipes.kinds.pretrain import Corpus, HeldOut, Pretrain
from deepseek_jax.recipes.origin import Origin
from deepseek_jax.recipes.page import run_page
from deepseek_jax.recipes.pretrain.documents import digest_of_sources, open_corpus
from deepseek_jax.recipes.pretrain.settings import PretrainSettings, StageSettings, switched_on
from deepseek_jax.recipes.results import Results
from deepseek_jax.recipes.stage import SCORES, Context, Source, Stage
from deepseek_jax.reports.deployment import attention_table
from deepseek_jax.reports.page import Page
from deepseek_jax.reports.tables import loss_table, plot_curves
from deepseek_jax.rollout.generation import generate
from deepseek_jax.rollout.policy import Policy, check_vocabulary
from deepseek_jax.worlds.registry import named_tokenizer

SETTINGS = PretrainSettings
CURVES = ("next_token_loss", "held_out_loss", "mtp_loss", "max_vio")
# Speculative decoding is measured on DRAFT_PROMPTS prompts of PROMPT_TOKENS tokens, with
# completions of at most DRAFT_TOKENS
PROMPT_TOKENS, DRAFT_TOKENS, DRAFT_PROMPTS = 32, 64, 8
# A base continues the text of a question
CONTINUED = "{question}"
BEFORE, AFTER = "_before", "_after"


def stages(s: PretrainSettings) -> list[Stage]:
    """List the stages: the parameters to begin from, then each stage of training, then drafts.

    The parameters are random or a checkpoint's. The held-out loss is measured before and after each
    stage of training. Drafts are measured if multi-token prediction is trained.
    """
    documents, held_out = Documents(s), HeldOutDocuments(s)
    origin = PretrainOrigin(s.model, CONTINUED, s.init_from, settings=s)
    all_stages: list[Stage]
    if s.init_from is None:
        all_stages = [Random("random", None, seed=s.seed, origin=origin, path="", title="random")]
    else:
        all_stages = [Checkpoint("init_from", None, origin=origin, path="", title="checkpoint")]
    start = all_stages[0].name
    for index, (name, stage) in enumerate(s.in_order()):
        # Each stage reads the documents in another order
        seed = s.seed + index

        def measure_loss(end, measured_stage, name=name, stage=stage):
            title = f"{name}{end}".replace("_", " ")
            return MeasureLoss(
                f"{name}{end}", stage, held_out, start=measured_stage, path="", title=title
            )

        all_stages += [
            measure_loss(BEFORE, start),
            Pretrain(
                name,
                stage,
                documents,
                held_out,
                seed=seed,
                start=start,
                path=f"stages.{name}",
                label="",
                title=name.replace("_", " "),
            ),
            measure_loss(AFTER, name),
        ]
        start = name
    if any(switched_on(stage.mtp_weight) for stage in s.stages.values()):
        all_stages.append(
            MeasureDrafts("drafts", None, held_out, start=start, path="", title="drafts")
        )
    return all_stages


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainOrigin(Origin):
    """The model and tokenizer that a pre-training begins from.

    The parameters are random, or a checkpoint's. The fields of config.model change the checkpoint's
    Network.

    Attributes:
        settings: The settings of the whole config.
    """

    settings: PretrainSettings = dataclasses.field(kw_only=True)

    @override
    def config(self):
        settings = self.settings
        with at("config"):
            if self.checkpoint is None or names_architecture(settings.model):
                return build_model(settings.model)
            return settings.overridden(self._stored(self.checkpoint))

    def _stored(self, checkpoint: str):
        # Only config.json is read: a wrong field raises before gigabytes of parameters are read
        with at("init_from"):
            return read_any_config(checkpoint)

    @override
    def policy(self, opened):
        settings, data = self.settings, self.settings.data
        with at("config"):
            # Checked here and not in config(), which a plan calls: a plan may be of a stage that
            # extends the context of an earlier run's model
            if self.checkpoint is None:
                settings.check_start()
                config = self.config()
            else:
                stored_config = self._stored(self.checkpoint)
                settings.check_start(stored_config)
                config = settings.overridden(stored_config)
                _check_sizes(settings, stored_config)
            with at("data.tokenizer"):
                tokenizer = named_tokenizer(data.tokenizer)
            with at("data"):
                check_fim_rate(data.fim_rate, tokenizer)
            check_vocabulary(config, tokenizer)
        return Policy(config, None, tokenizer, CONTINUED)

    @override
    def covers(self):
        origin_inputs = super().covers()
        return origin_inputs | {
            "model": self.settings.model,
            "tokenizer": self.settings.data.tokenizer,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint(GivenPolicy):
    """The checkpoint config.init_from, with random indexers if config.model adds them."""

    origin: PretrainOrigin = dataclasses.field(kw_only=True)

    @override
    def params(self, context, trained, mesh):
        """Load the parameters in float32, as training needs them, and add missing indexers."""
        settings, path = self.origin.settings, self.origin.checkpoint
        assert path is not None, "this stage is there where config.init_from is set"
        with at("config"), at("init_from"):
            config, params = load_params(path, "float32", mesh)
        model = settings.overridden(config)
        if settings.gains_indexers(config):
            say(f"init_from={path!r} has no indexers; random ones are added")
            dense = require_model_config(model, "random indexers")
            params = with_indexers(dense, params, mesh, settings.seed)
        return params


def _check_sizes(settings: PretrainSettings, stored_config: Network):
    """Raise ValueError if config.model needs parameters of other sizes than the checkpoint's."""
    model, stored_params = settings.overridden(stored_config), abstract_params(stored_config)
    if settings.gains_indexers(stored_config):
        # Missing indexers are drawn at random
        model_params = abstract_params(model)
        stored_params |= {
            path: leaf for path, leaf in model_params.items() if INDEXER in path.split("/")
        }
    try:
        checked_by_path(model, from_paths(stored_params))
    except ValueError as error:
        raise ValueError(
            f"init_from={settings.init_from!r} has parameters of another size than model: {error}; remove "
            "the fields that set sizes from model"
        ) from error


class _Sources:
    """The documents of config.data: what the two sources below share."""

    settings: PretrainSettings

    def covers(self, context: Context) -> list:
        """Return what the documents depend on: settings, seed, and digests of the files."""
        return [self.settings.data, self.settings.seed, digest_of_sources(self.settings.data)]

    def both(self, context: Context) -> tuple[Mixture, Mixture]:
        """Return (documents to train on, held-out documents)."""
        with at("config"):
            return context.once(
                "documents",
                lambda: open_corpus(self.settings.data, context.data, self.settings.seed),
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Documents(_Sources, Source):
    """The documents to train on."""

    settings: PretrainSettings

    @override
    def describe(self, context):
        train, held_out = self.both(context)
        counts = f"{len(train)} documents, and {len(held_out)} held out"
        return f"{counts}, such as {train[0]['text'][:60]!r}"

    def read(self, context: Context) -> Corpus:
        """Return the Corpus: the documents, and how to read and pack them."""
        data, tokenizer = self.settings.data, context.policy.tokenizer
        train, _ = self.both(context)
        return Corpus(train, tokenizer, data.packing, data.fim_rate, data.readers)


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutDocuments(_Sources, HeldOut):
    """The held-out documents."""

    settings: PretrainSettings

    def read(self, context: Context) -> Mixture:
        """Return the held-out documents."""
        return self.both(context)[1]

    @override
    def loss(self, context):
        stage = context.settings
        # Stages with the same rows and model share one function: the measurements and the training
        loss_key = stage.rows_at_once(), stage.sequence_length, context.policy.config
        return context.once((self, *loss_key), lambda: self._loss(context))

    def _loss(self, context):
        stage, model = context.settings, context.policy.config
        documents = self.read(context)
        with at("config"), at("data"):
            batches = held_out_batches(
                documents,
                context.policy.tokenizer,
                context.mesh,
                self.settings.data,
                # The rows of a micro-batch: their activations fit in memory
                batch_size=stage.rows_at_once(),
                sequence_length=stage.sequence_length,
                seed=self.settings.seed,
            )
        # The metric and not the loss, which includes the indexers' loss. Held-out documents are not
        # rearranged for fill-in-the-middle
        loss_fn = jax.jit(lambda p, batch: next_token_loss(model, p, batch)[1]["next_token_loss"])
        return lambda params: list(held_out_loss(loss_fn, params, batches))


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureLoss(Measure):
    """The held-out loss before or after a stage of pre-training.

    Attributes:
        settings: The settings of that stage.
    """

    settings: StageSettings
    held_out: HeldOutDocuments

    @override
    def model(self, config):
        return self.settings.model(config)

    @override
    def check_data(self, context):
        super().check_data(context)
        # Raises if there are too few held-out documents
        self.held_out.loss(context)

    @override
    def run(self, context):
        with self.waiting():
            return self.held_out.loss(context)(context.load(self.start).params)

    @override
    def scores(self, contents):
        return {"held_out_loss": contents}


@dataclasses.dataclass(frozen=True, eq=False)
class MeasureDrafts(Measure):
    """The gain of speculative decoding with the multi-token prediction modules.

    It is measured greedily, on the beginnings of held-out documents; see _drafting for the numbers.
    """

    held_out: HeldOutDocuments

    @override
    def run(self, context):
        policy, documents = context.load(self.start), self.held_out.read(context)
        # rollout.speculative needs MLA
        if not policy.config.is_mla:
            return {}
        with self.waiting():
            return _drafting(policy, documents, context.mesh)

    @override
    def measurements(self):
        # The page has no scores of drafts: they do not say how good the policy is
        return {}


def _drafting(policy: Policy, documents, mesh: Mesh) -> dict[str, float]:
    """Measure speculative decoding on the beginnings of documents.

    Prompts and completions are shorter if the model has few positions.

    Returns:
        {"acceptance": share of drafts accepted, "tokens_per_step": float}; {} if no document is
        long enough.
    """
    model = dataclasses.replace(policy.config, indexer_loss="none")
    prompt_length = min(PROMPT_TOKENS, model.max_position_embeddings // 2)
    length = min(DRAFT_TOKENS, model.max_position_embeddings - prompt_length)
    prompts = _beginnings(documents, policy.tokenizer, prompt_length)
    if not prompts:
        return {}
    rollout = generate(
        model,
        policy.params,
        prompts,
        speculative=True,
        max_completion_length=length,
        temperature=0.0,
        eos_ids=(policy.tokenizer.eos_id,),
        # The fewest slots for these prompts that split over the devices
        slots=-(-len(prompts) // mesh.size) * mesh.size,
    )
    return {"acceptance": rollout.acceptance_rate, "tokens_per_step": rollout.tokens_per_step}


def _beginnings(documents, tokenizer: Tokenizer, length: int):
    """Return the first `length` tokens of up to DRAFT_PROMPTS documents that are longer."""
    texts = (documents[i]["text"] for i in range(len(documents)))
    ids = (tokenizer.encode(text.decode() if isinstance(text, bytes) else text) for text in texts)
    return list(itertools.islice((x[:length] for x in ids if len(x) > length), DRAFT_PROMPTS))


def page(results: Results) -> Page:
    """Build the page, with each stage's losses before and after it."""
    common_page = run_page(results, "Pre-training")
    names = [name for name, _ in results.settings.in_order()]
    pairs = [[results.row(f"{name}{end}") for end in (BEFORE, AFTER)] for name in names]
    compared_pairs = [(before, after) for before, after in pairs if after in common_page.scores]
    return dataclasses.replace(common_page, compared=compared_pairs, notes=_drafts(results.folder))


def report(results: Results):
    """Draw the curves, and print the losses and the drafts; only process 0 does so."""
    if not first_process():
        return
    workdir, measurements, losses = results.folder, results.contents(), {}
    for name, stage in results.settings.in_order():
        plot_curves(workdir / "metrics.jsonl", workdir / f"{name}.png", phase=name, names=CURVES)
        stage_losses = (measurements[f"{name}{end}"] for end in (BEFORE, AFTER))
        losses[name] = (stage.sequence_length, *stage_losses)
    Console().print(loss_table(losses))
    params_folder = workdir / name / "params"
    model = read_network(params_folder)
    if isinstance(model, ModelConfig) and model.has_indexer:
        Console().print(attention_table(model))
    for sentence in _drafts(workdir):
        say(sentence)
    say(f"parameters for launch/convert.py are in {params_folder}")


def _drafts(workdir: Path):
    """Return a sentence on the gain of multi-token prediction, in a list; [] if not measured."""
    path = workdir / "drafts" / SCORES
    drafts = read_json(path) if path.exists() else None
    if not drafts:
        return []
    return [
        f"multi-token prediction drafts one token a step; {drafts['acceptance']:.0%} of them are "
        f"accepted, which makes {drafts['tokens_per_step']:.2f} tokens a step"
    ]
