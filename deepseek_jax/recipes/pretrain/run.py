"""Pre-train a base model, in stages, on packed documents (arXiv:2412.19437, section 4).

read documents -> random parameters, or a checkpoint's -> train each stage -> held-out losses, and how much
multi-token prediction speeds up decoding -> report.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from deepseek_jax.checkpoint import is_orbax, load_params, save_orbax
from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.checkpoint.load import read_any_config
from deepseek_jax.checkpoint.tree import checked_by_path
from deepseek_jax.data.batches import held_out_batches
from deepseek_jax.data.infill import check_fim_rate
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import at
from deepseek_jax.evaluation.perplexity import held_out_loss
from deepseek_jax.files import read_json
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, build_model, names_architecture
from deepseek_jax.models.trained_part import with_indexers
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.job import Work, WorkdirJob
from deepseek_jax.recipes.kinds.measure import MEASURE
from deepseek_jax.recipes.kinds.pretrain import GIVEN, PRETRAIN
from deepseek_jax.recipes.page import write_page
from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import PretrainSettings, switched_on
from deepseek_jax.recipes.stage import Stage
from deepseek_jax.recipes.start import Corpus
from deepseek_jax.reports.deployment import attention_table
from deepseek_jax.reports.tables import loss_table, plot_curves
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.policy import Policy, check_vocabulary
from deepseek_jax.training.remembered import before_and_after, remembered
from deepseek_jax.worlds.registry import named_tokenizer

SETTINGS = PretrainSettings
CURVES = ("next_token_loss", "held_out_loss", "mtp_loss", "max_vio")
# How well the modules of multi-token prediction draft; null for a model without them
DRAFTS = "drafts.json"
# Speculative decoding is measured on DRAFT_PROMPTS prompts of PROMPT_TOKENS, each DRAFT_TOKENS long at most
PROMPT_TOKENS, DRAFT_TOKENS, DRAFT_PROMPTS = 32, 64, 8
# A base continues the text of a question
CONTINUED = "{question}"
# The first stage of the list
CHECKPOINT, RANDOM = "init_from", "random"
BEFORE, AFTER = "_before", "_after"


class PretrainJob(WorkdirJob):
    """The documents, and one model that changes by stages. Leaves the parameters in params for
    launch/convert.py.
    """

    settings: PretrainSettings
    page_title = "Pre-training"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stages = tuple(stages_of(self.settings))

    @functools.cached_property
    def model(self):
        """The ModelConfig that the first stage begins with."""
        settings = self.settings
        if settings.init_from is None:
            # A plan may be of a stage that extends the context of what the run before leaves
            if self.run is not None:
                settings.check_start()
            return build_model(settings.model)
        if self.run is None and names_architecture(settings.model):
            return build_model(settings.model)
        # config.json alone shows a wrong field, before gigabytes of parameters are read
        with at("init_from"):
            stored = read_any_config(settings.init_from)
        if self.run is not None:
            settings.check_start(stored)
        return settings.overridden(stored)

    @functools.cached_property
    def stage_models(self):
        """{stage: its ModelConfig}."""
        names = (name for name, _ in self.settings.in_order())
        return dict(zip(names, self.settings.models(self.model), strict=True))

    @functools.cached_property
    def tokenizer(self):
        """The Tokenizer of the documents."""
        data = self.settings.data
        with at("data.tokenizer"):
            tokenizer = named_tokenizer(data.tokenizer)
        with at("data"):
            check_fim_rate(data.fim_rate, tokenizer)
        check_vocabulary(self.model, tokenizer)
        return tokenizer

    @functools.cached_property
    def documents(self):
        """(Mixture to train on, Mixture of held-out documents)."""
        return open_corpus(self.settings.data, self.run.folder / "data", self.settings.seed)

    @functools.cached_property
    def measures(self):
        """{stage: a function from params to the held-out loss, [mean, low, high] in nats a token}."""
        return {name: self._held_out(name, stage) for name, stage in self.settings.in_order()}

    def _held_out(self, name, stage):
        model, (_, held_out) = self.stage_models[name], self.documents
        with at("data"):
            batches = held_out_batches(
                held_out,
                self.tokenizer,
                self.mesh,
                self.settings.data,
                # The rows of a micro-batch: their activations fit in memory
                batch_size=stage.rows_at_once(),
                sequence_length=stage.sequence_length,
                seed=self.settings.seed,
            )
        # The metric: the loss has the indexers' in it. Without FIM
        loss_fn = jax.jit(lambda p, batch: next_token_loss(model, p, batch)[1]["next_token_loss"])
        return lambda params: list(held_out_loss(loss_fn, params, batches))

    def begin(self):
        if self.run is None:
            return self.stage_models
        checkpoint = self.settings.init_from and self.checkpoint
        return self.tokenizer, self.stage_models, checkpoint

    def path_of(self, stage: Stage):
        return f"stages.{stage.name}" if stage.kind is PRETRAIN else ""

    def settings_of(self, stage: Stage):
        # Random parameters have none
        return self.settings.stages.get(stage.name)

    def config_of(self, stage: Stage):
        return self.stage_models.get(stage.name, self.model)

    def seed_of(self, stage: Stage):
        # Each stage reads the documents in another order
        return self.settings.seed + list(self.stage_models).index(stage.name)

    def pretraining_name(self, work: Work):
        """The name of a stage's program."""
        return work.name

    def corpus(self, work: Work):
        """The documents to train on."""
        data = self.settings.data
        return Corpus(self.documents[0], self.tokenizer, data.packing, data.fim_rate, data.readers)

    def evaluate_of(self, work: Work):
        measure = self.measures[work.name]
        return lambda params: {"held_out_loss": measure(params)[0]}

    def policy_of(self, work: Work, params):
        return Policy(self.config_of(work.stage), params, self.tokenizer, CONTINUED)

    @functools.cached_property
    def checkpoint(self):
        """The parameters of config.init_from, in float32, as training needs it.

        Raises ValueError where config.model needs parameters that the checkpoint does not have.
        """
        settings, mesh = self.settings, self.mesh
        with at("init_from"):
            config, params = load_params(settings.init_from, "float32", mesh)
        model = settings.overridden(config)
        if settings.gains_indexers(config):
            say(f"init_from={settings.init_from!r} has no indexers; random ones are added")
            params = with_indexers(model, params, mesh, settings.seed)
        try:
            checked_by_path(model, params)
        except ValueError as error:
            raise ValueError(
                f"init_from={settings.init_from!r} has parameters of another size than model: {error}; "
                "remove the fields that set sizes from model"
            ) from error
        return params

    def given(self, work: Work):
        """The policy of config.init_from."""
        return self.policy_of(work, self.checkpoint)

    def check_measured_data(self, work: Work):
        """Raise ValueError where there are too few held-out documents."""
        return self.measures

    def measure(self, work: Work):
        """The held-out loss before or after a stage of pre-training."""
        name = work.name.removesuffix(BEFORE).removesuffix(AFTER)
        return self.measures[name](work.start().params)

    def scores_of(self, result):
        return {"held_out_loss": result}

    def is_complete(self):
        # What `finish` writes last
        return (self.run.folder / DRAFTS).exists()

    def finish(self):
        folder, (name, _) = self.run.folder, self.settings.in_order()[-1]
        policy = self.policies[name]
        # Nothing trains its indexers from here on
        model = dataclasses.replace(policy.config, indexer_loss="none")
        # Before drafting, so that a failure there loses nothing
        if not is_orbax(folder / "params"):
            save_orbax(folder / "params", model, policy.params, policy.files())
        trained = any(switched_on(stage.mtp_weight) for stage in self.settings.stages.values())

        def measure():
            # rollout.speculative drafts with MLA alone
            if not (trained and model.is_mla):
                return None
            return _drafting(model, policy.params, self.documents[1], self.tokenizer, self.mesh)

        remembered(folder / DRAFTS, measure)

    def describe_data(self):
        train, held_out = self.documents
        counts = f"{len(train)} documents, and {len(held_out)} held out"
        return f"{counts}, such as {train[0]['text'][:60]!r}"

    def page(self, page, measured):
        names = [name for name, _ in self.settings.in_order()]
        pairs = [[self.row_of(f"{name}{end}") for end in (BEFORE, AFTER)] for name in names]
        return dataclasses.replace(
            page,
            compared=[(before, after) for before, after in pairs if after in page.scores],
            notes=_drafts(self.run.folder),
        )

    def report(self):
        """Draw the curves, print the losses and the drafts. Process 0 alone."""
        if first_process():
            write_page(self)
            _report(self.settings, self.run.folder)


def stages_of(settings: PretrainSettings):
    """The stages, with the held-out loss before and after each: [Stage]."""
    checkpoint = settings.init_from is not None
    found = [Stage(CHECKPOINT, GIVEN) if checkpoint else Stage(RANDOM, PRETRAIN)]
    for name, _ in settings.in_order():
        start = found[-1].name.removesuffix(AFTER)
        found += [
            Stage(f"{name}{BEFORE}", MEASURE, start),
            Stage(name, PRETRAIN, start),
            Stage(f"{name}{AFTER}", MEASURE, name),
        ]
    return found


def _drafting(model: ModelConfig, params, documents, tokenizer: Tokenizer, mesh: Mesh):
    """Measure speculative decoding, greedy, on the beginnings of held-out documents.

    Returns {"acceptance": share of drafts accepted, "tokens_per_step": float}, or None where no document is
    long enough. Prompts and completions are shorter where the model has few positions.
    """
    prompt_length = min(PROMPT_TOKENS, model.max_position_embeddings // 2)
    length = min(DRAFT_TOKENS, model.max_position_embeddings - prompt_length)
    texts = (documents[i]["text"] for i in range(len(documents)))
    ids = (tokenizer.encode(text.decode() if isinstance(text, bytes) else text) for text in texts)
    prompts = (x[:prompt_length] for x in ids if len(x) > prompt_length)
    prompts = list(itertools.islice(prompts, DRAFT_PROMPTS))
    if not prompts:
        return None
    rollout = generate(
        model,
        params,
        prompts,
        speculative=True,
        max_completion_length=length,
        temperature=0.0,
        eos_ids=(tokenizer.eos_id,),
        # As few slots as split over the devices
        slots=-(-len(prompts) // mesh.size) * mesh.size,
    )
    return {"acceptance": rollout.acceptance_rate, "tokens_per_step": rollout.tokens_per_step}


def _report(settings: PretrainSettings, workdir: Path):
    losses = {}
    for name, stage in settings.in_order():
        plot_curves(workdir / "metrics.jsonl", workdir / f"{name}.png", phase=name, names=CURVES)
        losses[name] = (stage.sequence_length, *before_and_after(workdir, f"{name}_"))
    Console().print(loss_table(losses))
    model = read_config(workdir / "params")
    if model.has_indexer:
        Console().print(attention_table(model))
    for sentence in _drafts(workdir):
        say(sentence)
    say(
        f"complete; report.html is in {workdir}; parameters for launch/convert.py are in "
        f"{workdir / 'params'}"
    )


def _drafts(workdir: Path):
    """What multi-token prediction brings, as sentences: none where it was not measured."""
    drafts = read_json(workdir / DRAFTS) if (workdir / DRAFTS).exists() else None
    if drafts is None:
        return []
    return [
        f"multi-token prediction drafts one token a step; {drafts['acceptance']:.0%} of them are "
        f"accepted, which makes {drafts['tokens_per_step']:.2f} tokens a step"
    ]


JOB = PretrainJob
