"""Pre-train a base model, in stages, on packed documents (arXiv:2412.19437, section 4).

read documents -> random parameters, or a checkpoint's -> train each stage -> held-out losses, and how much
multi-token prediction speeds up decoding -> report.
"""

import dataclasses
import itertools
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from deepseek_jax.checkpoint import is_orbax, load_hf, load_orbax, save_orbax
from deepseek_jax.checkpoint.hf_config import read_config
from deepseek_jax.checkpoint.tree import checked_by_path
from deepseek_jax.data.batches import held_out_batches
from deepseek_jax.data.infill import check_fim_rate
from deepseek_jax.data.tokenizer import Tokenizer
from deepseek_jax.errors import at
from deepseek_jax.evaluation.perplexity import held_out_loss
from deepseek_jax.files import read_json
from deepseek_jax.losses.next_token import next_token_loss
from deepseek_jax.models import ModelConfig, build_model, random_params
from deepseek_jax.models.trained_part import with_indexers
from deepseek_jax.parallel.processes import first_process, say
from deepseek_jax.recipes.pretrain.documents import open_corpus
from deepseek_jax.recipes.pretrain.settings import (
    CorpusSettings,
    PretrainSettings,
    StageSettings,
    switched_on,
)
from deepseek_jax.recipes.pretrain.train import Corpus, train_stage
from deepseek_jax.reports.deployment import attention_table
from deepseek_jax.reports.tables import loss_table, plot_curves
from deepseek_jax.rollout import generate
from deepseek_jax.rollout.policy import check_vocabulary
from deepseek_jax.training.remembered import before_and_after, remembered
from deepseek_jax.training.run import Run
from deepseek_jax.worlds.registry import named_tokenizer

SETTINGS = PretrainSettings
CURVES = ("next_token_loss", "held_out_loss", "mtp_loss", "max_vio")
# How well the modules of multi-token prediction draft; null for a model without them
DRAFTS = "drafts.json"
# Speculative decoding is measured on DRAFT_PROMPTS prompts of PROMPT_TOKENS, each DRAFT_TOKENS long at most
PROMPT_TOKENS, DRAFT_TOKENS, DRAFT_PROMPTS = 32, 64, 8


def run(settings: PretrainSettings, run: Run):
    """Run the recipe, or resume it. Leaves the parameters in run.folder/params for launch/convert.py. A
    complete run is reported alone.
    """
    # What _train writes last
    if not (run.folder / DRAFTS).exists():
        _train(settings, run)
    _report(settings, run.folder)


def check_data(settings: PretrainSettings, mesh: Mesh, folder: Path):
    """Read the data as a run does, with what it builds in `folder`: -> what there is, in words."""
    with at("config"):
        train, held_out = open_corpus(settings.data, folder, settings.seed)
    return (
        f"{len(train)} documents, and {len(held_out)} held out, such as {train[0]['text'][:60]!r}"
    )


def _train(settings: PretrainSettings, run: Run):
    """Everything up to what the run leaves."""
    mesh, workdir = run.mesh, run.folder
    with at("config"):
        tokenizer, model, params, stages = _prepare(settings, mesh)
        documents, held_out = open_corpus(settings.data, workdir / "data", settings.seed)
    data = settings.data
    corpus = Corpus(documents, tokenizer, data.packing, data.fim_rate, data.readers)
    models = settings.models(model)
    # The batches of all stages come before any training: too few held-out documents raise at once
    measures = [
        _held_out(scaled, stage, settings.data, held_out, tokenizer, mesh, settings.seed)
        for scaled, (_, stage) in zip(models, stages, strict=True)
    ]
    if params is None:
        params = random_params(model, mesh, settings.seed)
    stretches = zip(stages, models, measures, strict=True)
    for index, ((name, stage), model, measure) in enumerate(stretches):
        remembered(workdir / f"{name}_before.json", lambda m=measure, p=params: m(p))
        params = train_stage(
            model,
            stage,
            corpus,
            params,
            run.of(name),
            # Each stage reads the documents in another order
            seed=settings.seed + index,
            evaluate=lambda p, m=measure: {"held_out_loss": m(p)[0]},
        )
        remembered(workdir / f"{name}_after.json", lambda m=measure, p=params: m(p))
    # After the loop, model is the last stage's. Nothing trains its indexers from here on
    model = dataclasses.replace(model, indexer_loss="none")
    # Before drafting, so that a failure there loses nothing
    if not is_orbax(workdir / "params"):
        save_orbax(workdir / "params", model, params)
    # rollout.speculative drafts with MLA alone
    drafts = any(switched_on(stage.mtp_weight) for _, stage in stages) and model.is_mla

    def measured():
        return _drafting(model, params, held_out, tokenizer, mesh) if drafts else None

    remembered(workdir / DRAFTS, measured)
    run.writer.close()


def _prepare(settings: PretrainSettings, mesh: Mesh):
    """(tokenizer, ModelConfig, params or None, checked stages)."""
    if settings.init_from is None:
        settings.check_start()
        model = build_model(settings.model)
    else:
        # config.json alone shows a wrong field, before gigabytes of parameters are read
        with at("init_from"):
            stored = read_config(settings.init_from)
        settings.check_start(stored)
        model = settings.overridden(stored)
    with at("data.tokenizer"):
        tokenizer = named_tokenizer(settings.data.tokenizer)
    with at("data"):
        check_fim_rate(settings.data.fim_rate, tokenizer)
    check_vocabulary(model, tokenizer)
    stages = settings.checked_stages(model, mesh)
    if settings.init_from is None:
        return tokenizer, model, None, stages
    return tokenizer, *_checkpoint(settings, mesh), stages


def _checkpoint(settings: PretrainSettings, mesh: Mesh):
    """(ModelConfig, params) of config.init_from. Its dtype is float32, as training needs it.

    Raises ValueError where config.model needs parameters that the checkpoint does not have.
    """
    load = load_orbax if is_orbax(settings.init_from) else load_hf
    with at("init_from"):
        config, params = load(settings.init_from, dtype="float32", mesh=mesh)
    model = settings.overridden(config)
    if settings.gains_indexers(config):
        say(f"init_from={settings.init_from!r} has no indexers; random ones are added")
        params = with_indexers(model, params, mesh, settings.seed)
    try:
        checked_by_path(model, params)
    except ValueError as error:
        raise ValueError(
            f"init_from={settings.init_from!r} has parameters of another size than model: {error}; remove "
            "the fields that set sizes from model"
        ) from error
    return model, params


def _held_out(
    model: ModelConfig,
    stage: StageSettings,
    data: CorpusSettings,
    documents,
    tokenizer: Tokenizer,
    mesh: Mesh,
    seed: int,
):
    """A function from params to the held-out loss, [mean, low, high] in nats a token, without FIM."""
    with at("config.data"):
        batches = held_out_batches(
            documents,
            tokenizer,
            mesh,
            data,
            # The rows of a micro-batch: their activations fit in memory
            batch_size=stage.rows_at_once(),
            sequence_length=stage.sequence_length,
            seed=seed,
        )
    # The metric: the loss has the indexers' in it
    loss_fn = jax.jit(lambda p, batch: next_token_loss(model, p, batch)[1]["next_token_loss"])
    return lambda params: list(held_out_loss(loss_fn, params, batches))


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
    options = dict(max_completion_length=length, temperature=0.0, eos_ids=(tokenizer.eos_id,))
    # As few slots as split over the devices
    options["slots"] = -(-len(prompts) // mesh.size) * mesh.size
    rollout = generate(model, params, prompts, speculative=True, **options)
    return {"acceptance": rollout.acceptance_rate, "tokens_per_step": rollout.tokens_per_step}


def _report(settings: PretrainSettings, workdir: Path):
    """Draw the curves, print the losses and the drafts. Process 0 alone."""
    if not first_process():
        return
    losses = {}
    for name, stage in settings.in_order():
        plot_curves(workdir / "metrics.jsonl", workdir / f"{name}.png", phase=name, names=CURVES)
        losses[name] = (stage.sequence_length, *before_and_after(workdir, f"{name}_"))
    Console().print(loss_table(losses))
    model = read_config(workdir / "params")
    if model.has_indexer:
        Console().print(attention_table(model))
    drafts = read_json(workdir / DRAFTS)
    if drafts is not None:
        say(
            f"multi-token prediction drafts one token a step; {drafts['acceptance']:.0%} of them are "
            f"accepted, which makes {drafts['tokens_per_step']:.2f} tokens a step"
        )
    say(f"complete; parameters for launch/convert.py are in {workdir / 'params'}")
